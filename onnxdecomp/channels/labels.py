"""Arrays of labels: to which unit each place of a tensor belongs.

As many axes as the tensor. An axis along which the units do not differ has size 1, whatever the tensor's
size, which so need not be known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxdecomp.channels.channel import NONE
from onnxdecomp.core.layer import Array


def varies(labels: Array) -> tuple[int, ...]:
    """The axes along which the labels have more than one place."""
    return tuple(axis for axis, size in enumerate(labels.shape) if size > 1)


def collapsed(labels: Array) -> Array:
    """The labels with size 1 along the axes on which they do not differ."""
    axes = varies(labels)
    if len(axes) == 1:  # by far the most
        flat = labels.reshape(-1)
        return (
            labels
            if flat[0] != flat[1] or (flat != flat[0]).any()
            else labels.reshape(-1)[:1].reshape([1] * labels.ndim)
        )
    for axis in axes:
        first = labels.take([0], axis)
        if np.array_equal(np.broadcast_to(first, labels.shape), labels):
            labels = first
    return labels


def along(vector: Array, axis: int, rank: int) -> Array:
    """A vector of labels as those of a tensor that has them along one axis."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def inner(labels: Array) -> int | None:
    """The axis along which neighbours are units next to each other; None for a single unit."""
    axes = varies(labels)
    if len(axes) < 2:
        return axes[0] if axes else None
    steps = {axis: np.median(np.abs(np.diff(labels, axis=axis))) for axis in axes}
    return min(axes, key=lambda axis: (steps[axis], -axis))


def line(labels: Array, axis: int) -> Array:
    """The labels along one axis, of the first place on all others."""
    return np.asarray(np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])[0])


def placed(labels: Array, axes: Sequence[int], rank: int) -> Array:
    """The labels in a space of `rank` axes, of which `axes` says where each of their own lies."""
    order = np.argsort(axes)
    shape = [1] * rank
    for axis, size in zip(axes, labels.shape, strict=True):
        shape[axis] = size
    return labels.transpose(order).reshape(shape)


def is_empty(labels: Array) -> bool:
    """Whether no place belongs to a unit."""
    return bool((labels == NONE).all())


def spelled_out(labels: Array | None, axis: int, size: int, rank: int) -> Array:
    """The labels with the axis' own size there."""
    if labels is None:
        labels = np.full([1] * rank, NONE)
    shape = list(labels.shape)
    shape[axis] = size
    return labels if labels.shape[axis] == size else np.broadcast_to(labels, shape)


def with_places(labels: Array, axis: int, places: Array, values: Array) -> Array:
    """The labels with others at some places along an axis."""
    shape = list(values.shape)
    shape[axis] = labels.shape[axis]
    moved = np.moveaxis(np.broadcast_to(labels, shape).copy(), axis, 0)
    moved[places] = np.moveaxis(values, axis, 0)
    return np.moveaxis(moved, 0, axis)
