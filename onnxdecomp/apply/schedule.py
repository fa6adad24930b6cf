"""Stages of a fit: what carrying a plan out does one after the other, and in which order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxdecomp.calibration.batchnorm import normalisations
from onnxdecomp.calibration.residual import branch
from onnxdecomp.errors import UsageError
from onnxdecomp.graph.traversal import upstream
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.search.plan import Choice, Plan


@dataclass(frozen=True, eq=False)
class FitStage:
    """Something that is done: to a layer, or to a normalisation (then without a choice and a match)."""

    nodes: tuple[ir.Node, ...]
    choice: Choice | None = None
    match: LayerMatch | None = None


def fit_stages(
    model: ir.Model, matched: Sequence[LayerMatch], plan: Plan, *, repair: bool
) -> deque[FitStage]:
    """What there is to do, in the graph's order.

    A layer whose output is added to another branch comes after the layers of that branch: it makes up for
    what they lose, and nothing that it was fitted to changes any more.

    Args:
        model, matched, plan: As for `carry_out`.
        repair: Whether kept layers and normalisations behind the first decomposed layer have a stage.

    Raises:
        UsageError: The plan names a layer that the model has not.
    """
    by_name = {(match.layer.graph, match.layer.name): match for match in matched}
    place = {node: position for position, node in enumerate(model.graph)}
    found: list[tuple[int, FitStage]] = []
    position = 0
    for choice in plan.choices:
        match = by_name.get((choice.graph, choice.layer))
        if match is None:
            if choice.method is not None:
                raise UsageError(f"the plan is for another model: there is no layer {choice.layer!r} here")
            continue
        # A layer inside a subgraph comes where the plan has it.
        position = max(position, place.get(match.nodes[-1], 0))
        if choice.method is not None or (repair and found and not choice.fixed):
            found.append((position, FitStage(match.nodes, choice, match)))
    if repair and found:
        first = found[0][0]
        found += [(place[node], FitStage((node,))) for node in normalisations(model) if place[node] > first]
    at = {node: position for position, stage in found for node in stage.nodes}

    def turn(position: int, stage: FitStage) -> tuple[int, bool]:
        other = None if stage.match is None else branch(stage.match)
        before = upstream(model.graph, [] if other is None else [other])
        last = max((at[node] for node in before if node in at), default=-1)
        return max(position, last), last > position

    return deque(stage for _, stage in sorted(found, key=lambda pair: turn(*pair)))
