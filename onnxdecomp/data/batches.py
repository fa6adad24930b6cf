"""A feed at another batch size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxdecomp.data.random_inputs import Key, dimension, is_batch
from onnxdecomp.runtime.session import Feed, TensorSpec


def rebatched(feed: Feed, inputs: Sequence[TensorSpec], batch: int) -> Feed:
    """The feed with `batch` rows, its own ones again and again; as it is where no axis is a free batch.

    A batch is what is named so, else a free first axis as long as the feed's first one that is not named like
    time, and every other axis of its symbol: a state may have its batch on the second. Free axes of another
    length (boxes of one picture) stay as they are.
    """
    batches, rows = _batches(feed, inputs)
    if not batches or batch == rows or not rows:
        return feed

    def stacked(spec: TensorSpec) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        array = feed[spec.name]
        for axis, dim in enumerate(spec.shape):
            if not isinstance(dim, int) and dimension(spec, axis) in batches and array.shape[axis] == rows:
                array = np.take(array, np.arange(batch) % rows, axis=axis)
        return array

    return {**feed, **{spec.name: stacked(spec) for spec in inputs if spec.name in feed}}


def rows_of(feed: Feed, inputs: Sequence[TensorSpec]) -> int:
    """The batch of a feed: as long as its batch axis, or a fixed first axis; 1 where it has neither."""
    batches, rows = _batches(feed, inputs)
    if batches:
        return rows
    first = next((spec for spec in inputs if spec.name in feed), None)
    if first is None or not first.shape or not isinstance(first.shape[0], int):
        return 1
    return first.shape[0]


def _batches(feed: Feed, inputs: Sequence[TensorSpec]) -> tuple[set[Key], int]:
    """The dimensions that are the batch, and its size."""
    lengths: dict[Key, int] = {}
    for spec in inputs:
        for axis in range(len(spec.shape) if spec.name in feed else 0):
            if is_batch(spec, axis):
                lengths.setdefault(dimension(spec, axis), feed[spec.name].shape[axis])
    rows = next(iter(lengths.values()), 0)
    return {key for key, length in lengths.items() if length == rows}, rows
