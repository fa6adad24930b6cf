"""A feed at another batch size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxdecomp.data.random_inputs import dimension
from onnxdecomp.runtime.session import Feed, TensorSpec


def rebatched(feed: Feed, inputs: Sequence[TensorSpec], batch: int) -> Feed:
    """The feed with `batch` rows, its own ones again and again; as it is where no axis is a free batch.

    A batch is a free first axis as long as the feed's first one, and every other axis of its symbol: a state
    may have its batch on the second. Free axes of another length (boxes of one picture) stay as they are.
    """
    fed = [spec for spec in inputs if spec.name in feed]
    lengths = {
        dimension(spec, 0): feed[spec.name].shape[0]
        for spec in fed
        if spec.shape and not isinstance(spec.shape[0], int)
    }
    rows = next(iter(lengths.values()), batch)
    if batch == rows or not rows:
        return feed
    batches = {key for key, length in lengths.items() if length == rows}

    def stacked(spec: TensorSpec) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        array = feed[spec.name]
        for axis, dim in enumerate(spec.shape):
            if not isinstance(dim, int) and dimension(spec, axis) in batches and array.shape[axis] == rows:
                array = np.take(array, np.arange(batch) % rows, axis=axis)
        return array

    return {**feed, **{spec.name: stacked(spec) for spec in fed}}
