"""Heads of a smaller size: maps of the units inside each block, of values and of queries and keys."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import scipy.linalg

from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.calibration.attention_scores import ScoreProduct, head_sets, nodes_before, score_product
from onnxdecomp.channels.channel import Channel, Producer
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.refine_scores import refine_scores
from onnxdecomp.fitting.rotate_scores import ScoreMaps, ScoreMoments, rotate_scores, score_moments
from onnxdecomp.search.keep_layers import Key

MOST = 64
"""Samples that maps of queries and keys are fitted to one by one."""


def maps_of_values(channel: Channel, maps: Array) -> dict[Key, Array]:
    """What the outputs of the layers that make a channel are mapped by, [T, T], by graph and name.

    Args:
        channel: Of values.
        maps: [S, d', d], of the blocks.
    """
    return {
        _key(producer): _block_diagonal(producer, _whole(maps)[_heads(producer, channel)])
        for producer in channel.producers
    }


def maps_of_scores(channel: Channel, product: ScoreProduct, maps: ScoreMaps) -> dict[Key, Array]:
    """The same of the layers that make the queries and keys of a channel."""
    of_query = nodes_before(product.query)
    found = {}
    for producer in channel.producers:
        asks = producer.match.nodes[0] in of_query
        own = _whole(maps.query) if asks else _whole(maps.key)[_heads(producer, channel)]
        found[_key(producer)] = _block_diagonal(producer, own)
    return found


def first_of_blocks(channel: Channel, kept: int) -> Array:
    """The units that are left of mapped ones: the first of each block."""
    units = np.arange(channel.width).reshape(channel.blocks, -1)
    return units[:, : kept // channel.blocks].reshape(-1)


def score_maps(
    channel: Channel, kept: int, fitter: Fitter | None, pending: Collection[ir.Node]
) -> tuple[ScoreProduct, ScoreMaps]:
    """The maps of queries and keys that change the attention on the calibration inputs least."""
    product = score_product(channel)
    assert not isinstance(product, str)  # see `unrotatable`
    size = kept // channel.blocks
    if fitter is None:
        moments = _moments_of_weights(channel, product)
        return product, rotate_scores(moments, product.groups, size)
    samples = fitter.attention(product, pending)
    sums = [score_moments(s.query[None], s.key[None], product.groups, s.probabilities[None]) for s in samples]
    maps = rotate_scores(sum(sums[1:], sums[0]), product.groups, size)
    some = samples[:: max(1, len(samples) // MOST)]
    held_out = some[3::4]
    rest = [sample for index, sample in enumerate(some) if index % 4 != 3]
    return product, refine_scores(maps, rest, held_out, product.groups) if held_out else maps


def _moments_of_weights(channel: Channel, product: ScoreProduct) -> ScoreMoments:
    """As if all inputs of the layers were independent and of size 1."""
    of_query = nodes_before(product.query)
    size = channel.width // channel.blocks
    query, key = (np.zeros((channel.blocks, size, size)) for _ in range(2))
    for producer in channel.producers:
        into = query if producer.match.nodes[0] in of_query else key
        rows = _rows(producer.match.layer)
        heads = rows[producer.units >= 0].reshape(-1, size, rows.shape[1])
        for block, own in zip(_heads(producer, channel), heads, strict=True):
            into[block] += own @ own.T
    return ScoreMoments(query, key, 1)


def _rows(layer: Layer) -> Array:
    """The weight's rows with the bias behind them."""
    weight = layer.weight.reshape(layer.outputs, -1).astype(np.float64)
    return weight if layer.bias is None else np.hstack([weight, layer.bias[:, None]])


def _key(producer: Producer) -> Key:
    return producer.match.layer.graph, producer.match.layer.name


def _heads(producer: Producer, channel: Channel) -> list[int]:
    found = head_sets(producer.units, channel)
    assert found is not None  # see `unrotatable`
    return found


def _whole(maps: Array) -> Array:
    """Invertible maps [n, d, d] whose first rows are these [n, d', d]."""
    return np.stack([np.vstack([one, scipy.linalg.null_space(one).T]) for one in maps])


def mapped(layer: Layer, maps: Array) -> Layer:
    """The layer with its outputs, the bias included, mapped by [T, T]."""
    kind, weight = layer.weight.dtype, layer.weight.astype(np.float64)
    rows = (maps @ weight.reshape(layer.outputs, -1)).reshape(weight.shape)
    bias = None if layer.bias is None else (maps @ layer.bias.astype(np.float64)).astype(kind)
    return replace(layer, weight=rows.astype(kind), bias=bias)


def _block_diagonal(producer: Producer, maps: Array) -> Array:
    """[T, T], of the maps of its heads, [H, d, d]; outputs that are no unit's stay."""
    whole = np.eye(len(producer.units))
    places = np.flatnonzero(producer.units >= 0)
    whole[np.ix_(places, places)] = scipy.linalg.block_diag(*maps)
    return whole
