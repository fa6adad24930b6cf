"""Rows: what a layer multiplies its weight by, cut out of its input at sampled output positions.

For every layer y = W x + b holds row by row: x is the im2col column of a convolution's input at one output
position, or the features of a linear layer. Everything that is fitted to activations is fitted to rows.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array, Layer

Positions: TypeAlias = tuple[Array, ...]
"""Sampled positions of an output, the same for all samples of a batch: one index array [P] per axis."""


def draw_positions(sizes: tuple[int, ...], count: int, rng: np.random.Generator) -> Positions:
    """`count` different positions of a grid, all of it if it has no more; one index array per axis."""
    total = math.prod(sizes)
    flat = np.arange(total) if count >= total else np.sort(rng.choice(total, count, replace=False))
    return tuple(np.asarray(axis) for axis in np.unravel_index(flat, sizes)) if sizes else ()


def output_sizes(layer: Layer, x: Array) -> tuple[int, ...]:
    """The spatial sizes of a convolution's output for this input, as ONNX Runtime has it."""
    spec = layer.conv
    assert spec is not None
    given = enumerate(zip(x.shape[2:], layer.kernel, strict=True))
    return tuple(spec.output_size(size, kernel, axis) for axis, (size, kernel) in given)


def conv_rows(layer: Layer, x: Array, at: Positions) -> Array:
    """Rows [groups, N P, K S/groups] of an input [N, S, *spatial] at the output positions `at`.

    The channels of one kernel position lie together, as they are read: `kernel_first` says which number of
    the weight each feature belongs to.
    """
    n, s, *spatial = x.shape
    total, groups = math.prod(spatial), layer.groups
    places = _input_places(layer, x, at)  # [P, K], `total` where the kernel reaches over an edge
    flat = x.reshape(n, s, total)
    if 2 * places.size < total:
        found = flat.take(np.minimum(places, total - 1).reshape(-1), axis=2).swapaxes(1, 2)
        rows = np.where((places < total).reshape(-1, 1), found, np.zeros((), x.dtype))
    else:
        padded = np.zeros((n, total + 1, s), x.dtype)
        padded[:, :total] = flat.swapaxes(1, 2)
        rows = padded.take(places.reshape(-1), axis=1)
    p, k = places.shape
    rows = rows.reshape(n, p, k, groups, s // groups).transpose(3, 0, 1, 2, 4)
    return rows.reshape(groups, n * p, k * (s // groups))


def kernel_first(layer: Layer) -> Array:
    """Of each feature of `conv_rows`, its place in a row of `layer.weight.reshape(T, -1)`, int [D]."""
    k = math.prod(layer.kernel)
    return np.arange(layer.weight[0].size).reshape(-1, k).T.reshape(-1)


def _input_places(layer: Layer, x: Array, at: Positions) -> Array:
    """Where each kernel position [K] reads at each output position [P]: flat places of the spatial axes."""
    spec = layer.conv
    assert spec is not None
    begins, d = pad_begins(layer, x), spec.spatial_rank
    offsets = np.indices(layer.kernel).reshape(d, -1)
    flat = np.zeros((len(at[0]) if d else 1, offsets.shape[1]), np.intp)
    valid = np.ones(flat.shape, bool)
    for axis in range(d):
        size, reach = x.shape[2 + axis], offsets[axis] * spec.dilations[axis]
        if spec.transposed:
            # output o receives kernel k from input i where o + pad = i stride + k dilation
            place = at[axis][:, None] + begins[axis] - reach
            valid &= place % spec.strides[axis] == 0
            place = place // spec.strides[axis]
        else:
            place = at[axis][:, None] * spec.strides[axis] + reach - begins[axis]
        valid &= (place >= 0) & (place < size)
        flat = flat * size + place
    return np.where(valid, flat, math.prod(x.shape[2:]))


def at_positions(y: Array, at: Positions) -> Array:
    """The rows [N P, T] of an activation [N, T, *spatial] at the positions that `conv_rows` was given."""
    n, t, *spatial = y.shape
    flat = np.ravel_multi_index(at, tuple(spatial))
    return np.asarray(y.reshape(n, t, -1).take(flat, axis=2).swapaxes(1, 2).reshape(-1, t))


def pad_begins(layer: Layer, x: Array) -> tuple[int, ...]:
    """The padding before each spatial axis; with `auto_pad` as the input's size makes it."""
    spec = layer.conv
    assert spec is not None
    d = spec.spatial_rank
    if not isinstance(spec.pads, str):
        return spec.pads[:d]
    begins = []
    for axis, kernel in enumerate(layer.kernel):
        size, span = x.shape[2 + axis], spec.dilations[axis] * (kernel - 1) + 1
        if not spec.pads.startswith("SAME"):
            begins.append(0)
            continue
        if spec.transposed:
            extra = spec.output_padding[axis] if spec.output_padding else 0
            total = spec.strides[axis] * (size - 1) + extra + span - size * spec.strides[axis]
        else:
            total = (spec.output_size(size, kernel, axis) - 1) * spec.strides[axis] + span - size
        total = max(0, total)
        begins.append(total // 2 if spec.pads == "SAME_UPPER" else total - total // 2)
    return tuple(begins)
