"""What layers cost where channels between them are cut: each is smaller along every such channel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxdecomp.channels.channel import Channel
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer, narrowed
from onnxdecomp.decompositions.base import outline, refusal_of
from onnxdecomp.decompositions.registry import get
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.search.keep_layers import Key, key_of
from onnxdecomp.search.plan import Choice, Plan, cost_of
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
    parts: dict[Key, list[tuple[Extent, float]]] = {}
    for channel in channels:
        left = kept.get(channel.name, channel.width)
        if left < channel.width:
            for key, extent in extents(channel, matched).items():
                parts.setdefault(key, []).append((extent, left / channel.width))
    layers = {_key(match): match.layer for match in matched}
    return {key: narrowed_by(layers[key], own) for key, own in parts.items()}


def recounted(plan: Plan, matched: Sequence[LayerMatch], channels: Sequence[Channel]) -> Plan:
    """The plan with what its layers cost behind its cuts, which may be others than these were counted for."""

    def fresh(choice: Choice) -> Choice:
        return replace(choice, narrowed=False, after=None) if choice.narrowed else choice

    smaller = narrowed_layers(matched, channels, {cut.channel: cut.kept for cut in plan.cuts})
    counted = tallied(replace(plan, choices=tuple(map(fresh, plan.choices))), matched)
    choices = (behind_cuts(choice, smaller.get(key_of(choice))) for choice in counted.choices)
    return replace(counted, choices=tuple(choices))


def behind_cuts(choice: Choice, layer: Layer | None) -> Choice:
    """The choice for a layer that is smaller behind cuts, or as it is for None: its ranks and its cost."""
    if layer is None:
        return choice
    if choice.method is None:
        return replace(choice, after=cost_of(dense_chain(layer), layer), narrowed=True)
    method = get(choice.method, **choice.options)
    if refusal_of(method, layer) is not None:
        return choice
    ranks = tuple(map(min, choice.ranks, method.full_ranks(layer)))
    return replace(choice, ranks=ranks, after=cost_of(outline(method, layer, ranks), layer), narrowed=True)


def _key(match: LayerMatch) -> Key:
    return match.layer.graph, match.layer.name
