"""Padding at the ends of sequences, cut off where a model gives the same without it.

Samples are filled up to one length, often several times their own, and padding takes the time of what is
real. Which axes are those of positions is told by the name that the model declares for the mask's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.data.mask import Mask
from onnxdecomp.graph.attributes import dims
from onnxdecomp.runtime.session import Feed


@dataclass(frozen=True)
class Trimming:
    """How feeds are cut to the length of what is real in them.

    Attributes:
        mask: The input that says what that is, [batch, positions].
        axes: For each input the axes of positions.
    """

    mask: str
    axes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(model: ir.Model, mask: Mask | None) -> Trimming | None:
        """For a model with one mask whose length is free and named; None where there is no such thing."""
        if mask is None or len(mask.inputs) != 1:
            return None
        spec = mask.inputs[0]
        length = spec.shape[-1]
        if len(spec.shape) != 2 or not isinstance(length, str) or length == spec.shape[0]:
            return None
        axes = {
            str(value.name): tuple(axis for axis, dim in enumerate(dims(value) or ()) if dim == length)
            for value in model.graph.inputs
        }
        return Trimming(spec.name, axes)

    def length(self, feed: Feed) -> int:
        """Positions up to the last one that is real in any sample; at least one."""
        return 1 + int(np.flatnonzero(feed[self.mask].any(axis=0)).max(initial=0))

    def cut(self, feed: Feed, length: int) -> Feed:
        """The feed without what stands behind so many positions."""
        found = dict(feed)
        for name, axes in self.axes.items():
            for axis in axes if name in found else ():
                found[name] = found[name].take(range(min(length, found[name].shape[axis])), axis)
        return found

    def typical(self, feeds: Sequence[Feed]) -> Feed:
        """The feed whose length is nearest to the mean, cut to it."""
        lengths = [self.length(feed) for feed in feeds]
        mean = sum(lengths) / len(lengths)
        place = min(range(len(feeds)), key=lambda index: abs(lengths[index] - mean))
        return self.cut(feeds[place], lengths[place])

    def groups(self, feeds: Sequence[Feed], size: int, order: Sequence[int]) -> list[list[int]]:
        """Places of feeds to stack, those of like lengths together: `size` of usual length in each.

        Args:
            feeds: One sample each.
            size: As above; of longer ones fewer.
            order: All places, as feeds of equal length are to follow each other.
        """
        lengths = [self.length(feed) for feed in feeds]
        room = size * sum(lengths) / len(lengths)
        found: list[list[int]] = []
        shapes: tuple[tuple[int, ...], ...] = ()
        for place in sorted(order, key=lambda index: lengths[index]):
            own = tuple(array.shape for array in feeds[place].values())
            if not found or own != shapes or (len(found[-1]) + 1) * lengths[place] > room:
                found.append([])
            shapes = own
            found[-1].append(place)
        return found
