"""Resizing: the sizes of a channel's tensors after a cut, for the nodes that say sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels.blocks import shrinking
from onnxdecomp.channels.channel import Channel
from onnxdecomp.core.layer import Array


@dataclass(frozen=True, eq=False)
class Resizing:
    """What is left of a channel.

    Attributes:
        channel: It.
        left: bool [width + 1]: the units that stay; the last is NONE, which does.
        units: The labels of each activation.
        constant: The numbers of a constant operand.
        put: Gives a node another constant operand.
    """

    channel: Channel
    left: Array
    units: dict[ir.Value, Array]
    constant: Callable[[ir.Node, int], Array]
    put: Callable[[ir.Node, int, Array], None]

    def stays(self, value: ir.Value | None, axis: int) -> Array | None:
        """bool: which places of an activation stay along an axis; None: all do.

        Where other places stay in each block, those of the first one.
        """
        labels = None if value is None else self.units.get(value)
        if labels is None or labels.shape[axis] == 1:
            return None
        first = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])[0]
        return np.asarray(self.left[first])

    def shrinking(self, units: Array) -> int:
        """The axis along which a tensor with these labels becomes shorter."""
        return shrinking(units, self.channel.width)

    def take(self, array: Array, units: Array) -> Array:
        """What is left of a tensor with these labels; the array itself where that is all."""
        stays = self.left[units]
        if stays.all():
            return array
        axis = shrinking(units, self.channel.width)
        others = [k for k in range(units.ndim) if k != axis and units.shape[k] > 1]
        if not others:
            return np.compress(stays.reshape(-1), array, axis)
        full = np.moveaxis(np.broadcast_to(stays, array.shape), axis, -1)
        kept = int(full.reshape(-1, full.shape[-1])[0].sum())
        moved = np.moveaxis(array, axis, -1)
        return np.ascontiguousarray(np.moveaxis(moved[full].reshape(*moved.shape[:-1], kept), -1, axis))
