"""Heads of a smaller size: maps of the units inside each block, of values and of queries and keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.linalg

from onnxdecomp.calibration.attention_scores import QUERY, ScoreProduct, head_operands, head_sets
from onnxdecomp.channels.channel import Channel, Producer
from onnxdecomp.channels.new_numbers import NewNumbers
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.elimination import ReaderMoments
from onnxdecomp.fitting.refine_scores import AttentionSample, attention_loss, refine_scores
from onnxdecomp.fitting.rotate_heads import HeadBases, rotate_values
from onnxdecomp.fitting.rotate_scores import (
    ScoreMaps,
    ScoreMoments,
    rotate_scores,
    score_losses,
    score_moments,
)

MOST = 64
"""Samples that maps of queries and keys are fitted to one by one."""


def values_cut(
    channel: Channel, reader: ReaderMoments, kept: int, bases: HeadBases | None = None
) -> NewNumbers:
    """Values in heads of a smaller size, `kept` units in all, and what reads them fitted to that."""
    turned = rotate_values(reader, head_groups(channel, reader), kept // channel.blocks, bases=bases)
    maps = maps_of_values(channel, turned.maps)
    return NewNumbers(first_of_blocks(channel, kept), (turned.output,), turned=maps)


def head_groups(channel: Channel, reader: ReaderMoments) -> list[int]:
    """For each head that the reader reads its block of the channel."""
    found = head_sets(reader.units[0], channel)
    assert found is not None  # see `unrotatable`
    return found


def scores_cut(channel: Channel, product: ScoreProduct, kept: int, maps: ScoreMaps) -> NewNumbers:
    """Queries and keys in heads of a smaller size, `kept` units in all."""
    return NewNumbers(first_of_blocks(channel, kept), turned=maps_of_scores(channel, product, maps))


def both_cut(channel: Channel, kept: int, scores: NewNumbers, values: NewNumbers) -> NewNumbers:
    """Queries, keys and values of a channel in heads of a smaller size, from those of its parts."""
    turned = dict(scores.turned)
    for key, maps in values.turned.items():  # of other outputs
        turned[key] = maps @ turned[key] if key in turned else maps
    return NewNumbers(first_of_blocks(channel, kept), values.readers, turned=turned)


def maps_of_values(channel: Channel, maps: Array) -> dict[tuple[str, str], Array]:
    """What the outputs of the layers that make a channel are mapped by, [T, T], by graph and name.

    Args:
        channel: Of values.
        maps: [S, d', d], of the blocks.
    """
    return {
        _key(producer): _block_diagonal(producer, _whole(maps)[_heads(producer, channel)])
        for producer in channel.producers
    }


def maps_of_scores(channel: Channel, product: ScoreProduct, maps: ScoreMaps) -> dict[tuple[str, str], Array]:
    """The same of the layers that make the queries and keys of a channel."""
    query, key = _whole(maps.query), _whole(maps.key)
    found = {}
    for producer in channel.producers:
        heads = zip(*_sides(producer, channel), strict=True)
        asking = itertools.cycle(query)  # heads of the queries have maps of their own, in their order
        own = [next(asking) if operand == QUERY else key[block] for block, operand in heads]
        found[_key(producer)] = _block_diagonal(producer, own)
    return found


def first_of_blocks(channel: Channel, kept: int) -> Array:
    """The units that are left of mapped ones: the first of each block."""
    units = np.arange(channel.width).reshape(channel.blocks, -1)
    return units[:, : kept // channel.blocks].reshape(-1)


def score_maps(
    channel: Channel, product: ScoreProduct, kept: int, samples: Sequence[AttentionSample]
) -> ScoreMaps:
    """The maps of queries and keys that change the attention of some samples least.

    Args:
        channel: Of queries and keys.
        product: What it ends in.
        kept: The units that stay in all.
        samples: What was seen; none: the maps are chosen by the weights alone.
    """
    size = kept // channel.blocks
    if not samples:
        return rotate_scores(score_moments_of_weights(channel, product), product.groups, size)
    some, held_out = _parted(samples)
    if not held_out:
        return rotate_scores(moments_of_samples(product, samples), product.groups, size)
    maps = rotate_scores(_moments_without(product, samples, held_out), product.groups, size)
    return refine_scores(maps, some, held_out, product.groups)


def score_losses_at(product: ScoreProduct, samples: Sequence[AttentionSample], sizes: Sequence[int]) -> Array:
    """[d + 1], what heads of a smaller size lose: at these sizes on held-out samples, else interpolated.

    Args:
        product: Of queries and keys.
        samples: What was seen of it.
        sizes: At most that of the heads.
    """
    _, held_out = _parted(samples)
    if not held_out:
        return score_losses(moments_of_samples(product, samples))
    moments = _moments_without(product, samples, held_out)
    groups, found = product.groups, {product.size: 0.0}
    for size in sorted({*sizes} - {0, product.size}, reverse=True):
        lost = attention_loss(rotate_scores(moments, groups, size), held_out, groups)
        found[size] = max(*found.values(), float(lost.mean()))
    found[0] = max(1.0, *found.values())
    return np.interp(np.arange(product.size + 1), sorted(found), [found[size] for size in sorted(found)])


def _parted(
    samples: Sequence[AttentionSample],
) -> tuple[list[AttentionSample], list[AttentionSample]]:
    """Some samples to fit to one by one, and others to judge by; none of these where there are few."""
    some = samples[:: max(1, len(samples) // MOST)]
    return [sample for index, sample in enumerate(some) if index % 4 != 3], list(some[3::4])


def _moments_without(
    product: ScoreProduct, samples: Sequence[AttentionSample], held_out: Sequence[AttentionSample]
) -> ScoreMoments:
    """The moments of all samples but these."""
    apart = {id(sample) for sample in held_out}
    return moments_of_samples(product, [sample for sample in samples if id(sample) not in apart])


def moments_of_samples(product: ScoreProduct, samples: Sequence[AttentionSample]) -> ScoreMoments:
    """The moments of the queries and keys of samples, of which there are some."""
    sums = [score_moments(s.query[None], s.key[None], product.groups, s.probabilities[None]) for s in samples]
    return sum(sums[1:], sums[0])


def score_moments_of_weights(channel: Channel, product: ScoreProduct) -> ScoreMoments:
    """As if all inputs of the layers were independent and of size 1."""
    size = channel.width // channel.blocks
    query, key = (np.zeros((channel.blocks, size, size)) for _ in range(2))
    for producer in channel.producers:
        rows = _rows(producer.match.layer)
        heads = rows[producer.units >= 0].reshape(-1, size, rows.shape[1])
        for block, operand, own in zip(*_sides(producer, channel), heads, strict=True):
            (query if operand == QUERY else key)[block] += own @ own.T
    return ScoreMoments(query, key, 1)


def _rows(layer: Layer) -> Array:
    """The weight's rows with the bias behind them."""
    weight = layer.weight.reshape(layer.outputs, -1).astype(np.float64)
    return weight if layer.bias is None else np.hstack([weight, layer.bias[:, None]])


def _key(producer: Producer) -> tuple[str, str]:
    return producer.match.layer.graph, producer.match.layer.name


def _heads(producer: Producer, channel: Channel) -> list[int]:
    found = head_sets(producer.units, channel)
    assert found is not None  # see `unrotatable`
    return found


def _sides(producer: Producer, channel: Channel) -> tuple[list[int], list[int]]:
    """Of each head that a layer makes its block, and which operand of the product it is of."""
    operands = head_operands(producer, channel)
    assert operands is not None  # see `unrotatable`
    return _heads(producer, channel), operands


def _whole(maps: Array) -> Array:
    """Invertible maps [n, d, d] whose first rows are these [n, d', d]."""
    return np.stack([np.vstack([one, scipy.linalg.null_space(one).T]) for one in maps])


def _block_diagonal(producer: Producer, maps: Iterable[Array]) -> Array:
    """[T, T], of the maps of its heads, [H, d, d]; outputs that are no unit's stay."""
    whole = np.eye(len(producer.units))
    places = np.flatnonzero(producer.units >= 0)
    whole[np.ix_(places, places)] = scipy.linalg.block_diag(*maps)
    return whole
