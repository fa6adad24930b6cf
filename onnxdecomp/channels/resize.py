"""Resizing: the sizes of a channel's tensors after a cut, for the nodes that say sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.blocks import shrinking
from onnxdecomp.channels.channel import Channel
from onnxdecomp.channels.sizes import Shape, Sizes
from onnxdecomp.core.layer import Array


@dataclass(frozen=True, eq=False)
class Resizing:
    """What is left of a channel.

    Attributes:
        channel: It.
        left: bool [width + 1]: the units that stay; the last is NONE, which does.
        sizes: Those before the cut.
        units: The labels of each activation.
        opset: The version of ONNX's domain.
        constant: The numbers of a constant operand.
        computed: The same; None where it is computed.
        put: Gives a node another constant operand.
        drop: Leaves an operand of a node out.
    """

    channel: Channel
    left: Array
    sizes: Sizes
    units: dict[ir.Value, Array]
    opset: int
    constant: Callable[[ir.Node, int], Array]
    computed: Callable[[ir.Node, int], Array | None]
    put: Callable[[ir.Node, int, Array], None]
    drop: Callable[[ir.Node, int], None]

    def stays(self, value: ir.Value | None, axis: int) -> Array | None:
        """bool: which places of an activation stay along an axis; None: all do.

        Where other places stay in each block, those of the first one.
        """
        labels = None if value is None else self.units.get(value)
        if labels is None or labels.shape[axis] == 1 or axis != self.shrinking(labels):
            return None
        return np.asarray(self.left[of.line(labels, axis)])

    def shape(self, value: ir.Value | None) -> Shape:
        """The shape of an activation before the cut."""
        return self.sizes.shape(value) or ()

    def size(self, value: ir.Value, axis: int) -> int:
        """The size that an activation has along an axis then; it must be known."""
        stays = self.stays(value, axis)
        if stays is not None:
            return int(stays.sum())
        size = self.shape(value)[axis]
        assert isinstance(size, int)
        return size

    def shrinking(self, units: Array) -> int:
        """The axis along which a tensor with these labels becomes shorter."""
        return shrinking(units, self.channel.width)

    def take(self, array: Array, units: Array) -> Array:
        """What is left of a tensor with these labels; the array itself where that is all."""
        return taken(array, units, self.left)


def taken(array: Array, units: Array, left: Array) -> Array:
    """What is left of a tensor with these labels, where `left` says which units are, NONE last."""
    stays = left[units]
    if stays.all():
        return array
    axis = shrinking(units, left.size - 1)
    if stays.shape[axis] == stays.size:
        return np.compress(stays.reshape(-1), array, axis)
    full = np.moveaxis(np.broadcast_to(stays, array.shape), axis, -1)
    kept = int(full.reshape(-1, full.shape[-1])[0].sum())
    moved = np.moveaxis(array, axis, -1)
    return np.ascontiguousarray(np.moveaxis(moved[full].reshape(*moved.shape[:-1], kept), -1, axis))
