"""Stages of a fit: what carrying a plan out does one after the other, and in which order."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxdecomp.calibration.batchnorm import normalisations
from onnxdecomp.calibration.residual import branch
from onnxdecomp.channels.channel import Channel
from onnxdecomp.channels.find_channels import find_channel
from onnxdecomp.errors import UsageError
from onnxdecomp.graph.traversal import node_graphs, upstream
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.search.check_plan import channel_of
from onnxdecomp.search.plan import Choice, Cut, Plan


@dataclass(frozen=True, eq=False)
class FitStage:
    """Something that is done: to a layer, to a channel, or to a normalisation (then only with its node).

    A channel's turn comes before that of the first layer that makes it, or `behind` the last.
    """

    nodes: tuple[ir.Node, ...]
    choice: Choice | None = None
    match: LayerMatch | None = None
    cut: Cut | None = None
    behind: bool = False


def fit_stages(
    model: ir.Model,
    matched: Sequence[LayerMatch],
    plan: Plan,
    channels: Sequence[Channel] = (),
    *,
    repair: bool,
) -> deque[FitStage]:
    """What there is to do, in the graph's order.

    A layer whose output is added to another branch comes after the layers of that branch: it makes up for
    what they lose, and nothing that it was fitted to changes any more. A channel is cut before anything is
    done to the layers that make it: a chain is then one for the layer that is left. But queries and keys are
    cut behind the repair of layers that are kept, as their maps are fitted to what these give in the end.

    Args:
        model, matched, plan: As for `carry_out`.
        channels: Those that the plan names.
        repair: Whether kept layers and normalisations behind the first decomposed layer have a stage.

    Raises:
        UsageError: The plan names a layer that the model has not.
    """
    by_name = {(match.layer.graph, match.layer.name): match for match in matched}
    place = {node: position for position, node in enumerate(model.graph)}
    decomposed = {(choice.graph, choice.layer) for choice in plan.choices if choice.method is not None}
    found: list[tuple[int, FitStage]] = _cut_stages(model, plan, channels, decomposed)
    position = 0
    for choice in plan.choices:
        match = by_name.get((choice.graph, choice.layer))
        if match is None:
            if choice.method is not None:
                raise UsageError(f"the plan is for another model: there is no layer {choice.layer!r} here")
            continue
        # A layer inside a subgraph comes where the plan has it.
        position = max(position, place.get(match.nodes[-1], 0))
        changed = any(before <= position for before, _ in found)
        if choice.method is not None or (repair and changed and not choice.fixed):
            found.append((position, FitStage(match.nodes, choice, match)))
    if repair and found:
        first = min(position for position, _ in found)
        found += [(place[node], FitStage((node,))) for node in normalisations(model) if place[node] > first]
    at = {node: position for position, stage in found if stage.cut is None for node in stage.nodes}

    def turn(position: int, stage: FitStage) -> tuple[int, bool]:
        if stage.cut is not None:
            return position, stage.behind
        other = None if stage.match is None else branch(stage.match)
        before = upstream(model.graph, [] if other is None else [other])
        last = max((at[node] for node in before if node in at), default=-1)
        return max(position, last), last > position

    return deque(stage for _, stage in sorted(found, key=lambda pair: turn(*pair)))


def as_they_are(model: ir.Model, work: Sequence[FitStage]) -> deque[FitStage]:
    """What there is left to do with the nodes and layers that a cut has left.

    A table that has become too small to be a layer has nothing done to it any more.
    """
    matched = find(model, freeze=True)[0]
    by_name = {(match.layer.graph, match.layer.name): match for match in matched}

    def now(stage: FitStage) -> FitStage | None:
        if stage.cut is not None:
            if all(node.graph is not None for node in stage.nodes):
                return stage
            channel = find_channel(model, matched, stage.cut.channel, freeze=True)
            return stage if channel is None else replace(stage, nodes=channel.nodes)
        if stage.match is None:
            return stage
        match = by_name.get((stage.match.layer.graph, stage.match.layer.name))
        return None if match is None else replace(stage, nodes=match.nodes, match=match)

    return deque(stage for stage in map(now, work) if stage is not None)


def _cut_stages(
    model: ir.Model, plan: Plan, channels: Sequence[Channel], decomposed: Collection[tuple[str, str]]
) -> list[tuple[int, FitStage]]:
    """The channels that are cut, each where the first layer that makes it stands.

    Queries and keys come where the last one does, unless one of the layers is among the `decomposed`.
    """
    if not plan.cuts:
        return []
    place = {inner: position for position, node in enumerate(model.graph) for inner in _inside(node)}
    found = []
    for cut in plan.cuts:
        channel = channel_of(cut, channels)
        made = [producer.match for producer in channel.producers]
        whole = not any((match.layer.graph, match.layer.name) in decomposed for match in made)
        apart = not any(match.nodes[0] in channel.products for match in made)
        if channel.products and not channel.readers and whole and apart:
            last = max(place[match.nodes[-1]] for match in made)
            found.append((last, FitStage(channel.nodes, cut=cut, behind=True)))
        else:
            first = min(place[match.nodes[0]] for match in made)
            found.append((first, FitStage(channel.nodes, cut=cut)))
    return found


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """The node, and those of its subgraphs."""
    yield node
    for _, graph in node_graphs(node):
        for inner in graph:
            yield from _inside(inner)
