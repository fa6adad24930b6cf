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
    """Rows [groups, N P, S/groups K] of an input [N, S, *spatial] at the output positions `at`.

    The features lie as those of `layer.weight.reshape(T, -1)` do.
    """
    spec = layer.conv
    assert spec is not None
    begins = pad_begins(layer, x)
    n, s = x.shape[:2]
    d = spec.spatial_rank
    p = len(at[0]) if d else 1
    columns = []
    for offset in np.ndindex(*layer.kernel):
        index, valid = [], np.ones(p, bool)
        for axis in range(d):
            size = x.shape[2 + axis]
            if spec.transposed:
                # output o receives kernel k from input i where o + pad = i stride + k dilation
                place = at[axis] + begins[axis] - offset[axis] * spec.dilations[axis]
                valid &= place % spec.strides[axis] == 0
                place = place // spec.strides[axis]
            else:
                place = at[axis] * spec.strides[axis] + offset[axis] * spec.dilations[axis] - begins[axis]
            valid &= (place >= 0) & (place < size)
            index.append(np.clip(place, 0, size - 1))
        column = x[(slice(None), slice(None), *index)]
        columns.append(np.where(valid, column, np.zeros((), x.dtype)) if not valid.all() else column)
    stacked = np.stack(columns, axis=-1)  # [N, S, P, K]
    g = spec.groups
    rows = stacked.reshape(n, g, s // g, p, len(columns)).transpose(1, 0, 3, 2, 4)
    return rows.reshape(g, n * p, s // g * len(columns))


def at_positions(y: Array, at: Positions) -> Array:
    """The rows [N P, T] of an activation [N, T, *spatial] at the positions that `conv_rows` was given."""
    picked = y[(slice(None), slice(None), *at)]  # type: ignore[arg-type]
    return np.asarray(picked.swapaxes(1, 2).reshape(-1, y.shape[1]))


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
