"""Streams that break: layers that make the same units, as all that add to a residual stream do.

Where none of the units can be left out, a search from any of these layers breaks, too. Only the reason may
differ: which is met first goes by what is nearest. So all between two layers with the same reason have it,
and a stream through a whole model takes a few searches, not one for each layer.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels.facts import Facts
from onnxdecomp.channels.layer_rules import layer_rule
from onnxdecomp.layers.adapter import LayerMatch


@dataclass(frozen=True, eq=False)
class Break:
    """A search that broke.

    Attributes:
        reason: Why.
        behind: In graph order the layers behind the one where it began, as far as it came, that make the
            same units.
    """

    reason: str
    behind: tuple[LayerMatch, ...]


def making_same(match: LayerMatch, facts: Facts, order: Mapping[ir.Node, int]) -> tuple[LayerMatch, ...]:
    """The layers behind one that make all of its units, each as often, by the facts of its own search."""
    units, found = np.sort(facts.units.current(np.arange(facts.width))), []
    for node in facts.nodes:
        other = facts.layers.get(node)
        if other is None or order[node] <= order[match.nodes[0]]:
            continue
        labels = layer_rule(other).labelled(other, facts)
        if labels is not None and labels.size == layer_rule(other).outputs(other):
            found += [other] if np.array_equal(np.sort(labels), units) else []
    return tuple(sorted(found, key=lambda other: order[other.nodes[0]]))


def breaking_alike(match: LayerMatch, broken: Callable[[LayerMatch], Break | None]) -> dict[ir.Node, str]:
    """Of the layers of a stream behind one the next that break for the same reason, and the reason.

    Args:
        match: The layer.
        broken: How the search from a layer breaks; None where it does not. Asked of few.
    """
    known = broken(match)
    if known is None or not known.behind:
        return {}

    def otherwise(other: LayerMatch) -> bool:
        found = broken(other)
        return found is None or found.reason != known.reason

    count = len(known.behind)
    if otherwise(known.behind[-1]):
        count = bisect.bisect_left(known.behind, True, hi=count - 1, key=otherwise)
    return {other.nodes[0]: known.reason for other in known.behind[:count]}
