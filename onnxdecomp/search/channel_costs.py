"""What layers cost where channels between them are cut: each is smaller along every such channel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from onnxdecomp.channels.channel import Channel
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer, Ranks, narrowed
from onnxdecomp.decompositions.base import outline, refusal_of
from onnxdecomp.decompositions.registry import get
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.search.keep_layers import Key
from onnxdecomp.search.plan import Choice, Cost, Cut, Plan, cost_after_first, cost_of
from onnxdecomp.search.stored_parameters import tallied


@dataclass(frozen=True)
class Extent:
    """How many of a layer's outputs and inputs are a channel's."""

    outputs: int = 0
    inputs: int = 0


def extents(channel: Channel, matched: Sequence[LayerMatch]) -> dict[Key, Extent]:
    """The part that a channel has in each layer that makes it, reads it or stands between.

    Args:
        channel: The channel.
        matched: The model's layers: depthwise convolutions between are found among them.
    """
    made = {_key(producer.match): int((producer.units >= 0).sum()) for producer in channel.producers}
    read = {
        _key(reader.match): int((reader.units >= 0).sum()) // math.prod(reader.match.layer.kernel)
        for reader in channel.readers
    }
    weights = {(match.nodes[0], match.adapter.weight_at): match for match in matched}
    for stored in channel.stored:
        match = weights.get((stored.node, stored.at))
        if match is None or _key(match) in made or _key(match) in read:
            continue
        made[_key(match)] = int((stored.units >= 0).sum())
        read[_key(match)] = made[_key(match)] * match.layer.inputs // match.layer.outputs
    return {key: Extent(made.get(key, 0), read.get(key, 0)) for key in (*made, *read)}


def narrowed_by(layer: Layer, cuts: Iterable[tuple[Extent, float]]) -> Layer:
    """The layer without its numbers, where of each channel in it this share of the units is left."""
    outputs, inputs = layer.outputs, layer.inputs
    for extent, share in cuts:
        outputs -= extent.outputs - round(extent.outputs * share)
        inputs -= extent.inputs - round(extent.inputs * share)
    return narrowed(layer, max(1, outputs), max(1, inputs))  # channels may have units in common


def narrowed_layers(
    matched: Sequence[LayerMatch], channels: Sequence[Channel], kept: Mapping[str, int]
) -> dict[Key, Layer]:
    """Every layer that a cut makes smaller as it is then, without its numbers, by graph and name.

    Args:
        matched: The layers.
        channels: The channels.
        kept: How many units stay, by the channels' names; of others all do.
    """
    smaller = [channel for channel in channels if kept.get(channel.name, channel.width) < channel.width]
    return CutCosts.of(matched, smaller).left(kept)


@dataclass(frozen=True, eq=False)
class CutCosts:
    """What layers cost behind any cuts of some channels; it holds no numbers of theirs.

    Attributes:
        layers: The layers at the channels as they are, without their numbers, by graph and name.
        parts: What part each channel has in layers.
        widths: The channels' units.
    """

    layers: Mapping[Key, Layer]
    parts: Mapping[str, Mapping[Key, Extent]]
    widths: Mapping[str, int]

    @classmethod
    def of(cls, matched: Sequence[LayerMatch], channels: Sequence[Channel]) -> Self:
        """The costs of these layers at these channels."""
        parts = {channel.name: extents(channel, matched) for channel in channels}
        at = {key for own in parts.values() for key in own}
        layers = {_key(match): narrowed_by(match.layer, ()) for match in matched if _key(match) in at}
        return cls(layers, parts, {channel.name: channel.width for channel in channels})

    def left(self, kept: Mapping[str, int]) -> dict[Key, Layer]:
        """Every layer that is smaller where of channels, by their names, so many units are kept."""
        cuts: dict[Key, list[tuple[Extent, float]]] = {}
        for name, own in self.parts.items():
            share = kept.get(name, self.widths[name]) / self.widths[name]
            if share < 1:
                for key, extent in own.items():
                    cuts.setdefault(key, []).append((extent, share))
        return {key: narrowed_by(self.layers[key], own) for key, own in cuts.items()}

    def costed(self, plan: Plan) -> Plan:
        """The plan with what its layers and channels cost where its cuts are made, and no others."""
        left = self.left({cut.channel: cut.kept for cut in plan.cuts})
        choices = tuple(
            behind_cuts(self._whole(choice), left.get((choice.graph, choice.layer)))
            for choice in plan.choices
        )
        return replace(plan, choices=choices, channels=tuple(map(self._costed, plan.channels)))

    def _whole(self, choice: Choice) -> Choice:
        """The choice without what earlier cuts had made of it."""
        layer = self.layers.get((choice.graph, choice.layer))
        if not choice.left or layer is None:
            return choice
        after = None if choice.method is None else _cost(choice, layer, choice.ranks)
        return replace(choice, left=(), after=after)

    def _costed(self, cut: Cut) -> Cut:
        """The cut with the cost of all of its channel's layers before and after."""
        if cut.method is None or cut.channel not in self.parts:
            return cut
        smaller = self.left({cut.channel: cut.kept})
        before = _sum(self.layers[key] for key in self.parts[cut.channel])
        return replace(cut, before=before, after=_sum(smaller.values()) if smaller else before)


def recounted(plan: Plan, matched: Sequence[LayerMatch], channels: Sequence[Channel]) -> Plan:
    """The plan with costs that add up, behind its cuts, which may be others than it was counted for."""
    costs = CutCosts.of(matched, channels)
    return tallied(costs.costed(plan), matched, costs.left({cut.channel: cut.kept for cut in plan.cuts}))


def behind_cuts(choice: Choice, layer: Layer | None) -> Choice:
    """The choice for a layer that is smaller behind cuts, or as it is for None: its ranks and its cost."""
    if layer is None:
        return choice
    if choice.method is None:
        return replace(choice, after=cost_of(dense_chain(layer), layer), left=layer.weight.shape)
    method = get(choice.method, **choice.options)
    if refusal_of(method, layer) is not None:
        return choice
    # What a group has in common has more ranks than one of its layers may have alone.
    full = (layer.inputs,) if choice.group else method.full_ranks(layer)
    ranks = tuple(map(min, choice.ranks, full))
    return replace(choice, ranks=ranks, after=_cost(choice, layer, ranks), left=layer.weight.shape)


def _cost(choice: Choice, layer: Layer, ranks: Ranks) -> Cost:
    method = get(choice.method or "", **choice.options)
    # Of siblings the first bears the cost of the factor that they have in common.
    price = cost_after_first if choice.group and choice.group != choice.layer else cost_of
    return price(outline(method, layer, ranks), layer)


def _sum(layers: Iterable[Layer]) -> Cost:
    costs = [cost_of(dense_chain(layer), layer) for layer in layers]
    return Cost(sum(cost.params for cost in costs), sum(cost.macs for cost in costs))


def _key(match: LayerMatch) -> Key:
    return match.layer.graph, match.layer.name
