"""Blocks: a tensor with units along several axes, as heads and what is in a head, keeps as many in each."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.channel import NONE
from onnxdecomp.core.layer import Array


def blocks_of(
    tensors: Iterable[tuple[Array, str]], rows: Iterable[tuple[Array, str]], width: int
) -> int | str:
    """How many equal runs the units must be cut in alike, 1 where any may go; or why none can.

    Args:
        tensors: Labels, and where they are, for people.
        rows: Labels [n, m], each row of which must be whole blocks.
        width: Units, numbered in the order of the first producer's outputs.
    """
    count = 1
    for labels, where in tensors:
        if len(of.varies(labels)) > 1:
            size = max((_block_size(_lines(labels, axis), width) for axis in of.varies(labels)), default=0)
            if not size:
                return f"{where} would keep more units in one place than in another"
            count = math.lcm(count, width // size)
    for lines, where in rows:
        if (lines == NONE).all() or (lines == lines[:1]).all():
            continue
        size = _block_size(lines, width)
        if not size:
            return f"{where} would keep more units in one place than in another"
        count = math.lcm(count, width // size)
    return count


def shrinking(labels: Array, width: int) -> int:
    """The axis along which a tensor with units along several of them becomes shorter."""
    axes = of.varies(labels)
    if len(axes) == 1:
        return axes[0]
    return max(axes, key=lambda axis: _block_size(_lines(labels, axis), width))


def _lines(labels: Array, axis: int) -> Array:
    return np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])


def _block_size(lines: Array, width: int) -> int:
    """Units of a block where each line is one, every unit in it as often as the others; else 0."""
    lines = np.unique(np.sort(lines, axis=1), axis=0)
    others = int((lines[0] == NONE).sum())
    units = lines[:, others:]
    if not units.shape[1] or (lines[:, :others] != NONE).any() or (units == NONE).any():
        return 0
    size = int(np.unique(units[0]).size)
    times, rest = divmod(units.shape[1], size)
    if rest or width % size or (units[:, 0] % size).any():
        return 0
    whole = units[:, :1] + np.repeat(np.arange(size), times)
    return size if (units == whole).all() else 0
