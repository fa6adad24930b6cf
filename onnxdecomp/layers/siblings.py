"""Siblings: layers that read one activation, so that their first factor can be one and the same.

Queries, keys and values of an attention; gate and up of a gated feed-forward; the branches of an Inception or
Fire module; a residual's projection and its first convolution; recurrent operators in both directions.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxdecomp.decompositions.base import refusal_of
from onnxdecomp.decompositions.shared import Shared
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.tied_weights import Tie

_ALONE = "no other layer of its kind reads its activation"


@dataclass(frozen=True, eq=False)
class Siblings:
    """Layers that read one activation.

    Attributes:
        groups: Places in the list of matches, in its order, at least two in each group.
        refusals: By its place, why a layer is in none, a phrase for people.
    """

    groups: tuple[tuple[int, ...], ...]
    refusals: dict[int, str]


def siblings(matched: Sequence[LayerMatch], ties: Collection[Tie]) -> Siblings:
    """The groups of siblings among the matches, of which `ties` are those of their weights."""
    tied = {place for tie in ties if tie.is_shared for place in tie.members}
    refusals: dict[int, str] = {}
    groups: dict[Hashable, list[int]] = {}
    for place, match in enumerate(matched):
        if refusal := obstacle(match) or ("its weight is read elsewhere, too" if place in tied else None):
            refusals[place] = refusal
        else:
            groups.setdefault(kinship(match), []).append(place)
    refusals |= {members[0]: _ALONE for members in groups.values() if len(members) == 1}
    return Siblings(tuple(tuple(members) for members in groups.values() if len(members) > 1), refusals)


def obstacle(match: LayerMatch) -> str | None:
    """Why a layer can have no first factor in common with others; None where it can."""
    if (refusal := refusal_of(Shared(), match.layer)) is not None:
        return refusal
    if not match.adapter.reads_as_stored:
        return f"its {match.layer.op_type} reads its activation in another order of axes"
    return None


def kinship(match: LayerMatch) -> Hashable:
    """Equal for layers whose first factor can be one: it reads the same value in the same way.

    Numbers that are stored quantized again are stored alike, so that the factor is, too.
    """
    layer = match.layer
    kind = (layer.conv is None, len(layer.kernel), match.adapter.left, layer.dtype, layer.inputs)
    return layer.graph, id(source(match.x)), *kind, match.requantizes, match.storage


def source(value: ir.Value) -> ir.Value:
    """The value that is given on by Identity, or the value itself."""
    while (node := value.producer()) is not None and (node.domain, node.op_type) == ("", "Identity"):
        (value,) = (operand for operand in node.inputs if operand is not None)
    return value
