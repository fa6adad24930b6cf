"""Parts of a channel: queries and keys, and values, where one axis has the heads of all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxdecomp.channels.channel import NONE, Channel
from onnxdecomp.core.layer import Array


def scores_and_values(channel: Channel) -> tuple[Channel, Channel] | None:
    """The blocks that end in a product and those that a layer reads, as channels of their own.

    They are cut together, in heads of one size, as after a Reshape to [.., 3, heads, size]; what is known of
    either holds of its blocks.

    Returns:
        The two; None where these blocks are not all, or have units in common.
    """
    ends = {node.inputs[0] for node in channel.products}
    of_scores = [part.units for part in channel.shaped if part.value in ends]
    of_values = [reader.units for reader in channel.readers]
    size = channel.width // channel.blocks
    own = []
    for found in (of_scores, of_values):
        blocks = np.unique(np.concatenate([units.reshape(-1) for units in found] or [np.array([NONE])]))
        own.append(np.unique(blocks[blocks != NONE] // size))
    scores, values = own
    if np.intersect1d(scores, values).size or scores.size + values.size < channel.blocks or not values.size:
        return None
    return _part(replace(channel, readers=()), scores), _part(replace(channel, products=()), values)


def _part(channel: Channel, blocks: Array) -> Channel:
    """The channel of some of the blocks."""
    size = channel.width // channel.blocks
    number = np.full(channel.width + 1, NONE)
    units = (blocks[:, None] * size + np.arange(size)).reshape(-1)
    number[units] = np.arange(units.size)

    def numbered(labels: Array) -> Array:
        return np.asarray(number[labels])

    producers = tuple(replace(own, units=numbered(own.units)) for own in channel.producers)
    shaped = tuple(replace(own, units=numbered(own.units)) for own in channel.shaped)
    stored = tuple(replace(own, units=numbered(own.units)) for own in channel.stored)
    return replace(
        channel,
        width=units.size,
        blocks=blocks.size,
        producers=tuple(own for own in producers if (own.units != NONE).any()),
        readers=tuple(replace(own, units=numbered(own.units)) for own in channel.readers),
        shaped=tuple(own for own in shaped if (own.units != NONE).any()),
        stored=tuple(own for own in stored if (own.units != NONE).any()),
    )
