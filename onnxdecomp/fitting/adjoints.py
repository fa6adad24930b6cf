"""The adjoints of a chain's steps: what a gradient at a step's response says of its factor and its input.

Every step is linear in what comes in and, if it holds numbers, in its factor; so the loss, a quadratic in
the dense weight, is a quadratic in each factor, and these few transposes give its gradients.
"""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch

import numpy as np

from onnxdecomp.core.chain import (
    BlockMatMul,
    Convolve,
    Fold,
    LeftMatMul,
    Lookup,
    MatMul,
    Narrow,
    Pad,
    Permute,
    Reshape,
    Shape,
    Spread,
    Step,
    Transpose,
)
from onnxdecomp.core.layer import Array


def with_weight(step: Step, weight: Array) -> Step:
    """The step with other numbers in its factor."""
    return replace(step, weight=weight)  # type: ignore[arg-type]


@singledispatch
def pull_back(step: Step, z: Array, shape: Shape) -> Array:
    """The gradient at the step's input, of that shape, from the gradient z at its response."""
    raise NotImplementedError(type(step).__name__)


@singledispatch
def weight_gradient(step: Step, x: Array, z: Array) -> Array:
    """The gradient of the step's factor, from its input x and the gradient z at its response."""
    raise NotImplementedError(type(step).__name__)


def _conv_parts(step: Convolve, z: Array, shape: Shape) -> tuple[Array, Array]:
    """z as [g, B P, T/g Q] and the factor as [g, S/g, T/g Q], P positions before and Q of the kernel."""
    g = step.spec.groups
    t, s, *kernel = step.weight.shape
    batch, before, d = shape[0], shape[2:], len(kernel)
    split = [size for pair in zip(before, kernel, strict=True) for size in pair]
    apart = [2 + 2 * axis for axis in range(d)] + [3 + 2 * axis for axis in range(d)]
    z = z.reshape(batch, t, *split).transpose(0, 1, *apart).reshape(batch, g, t // g, -1, _size(kernel))
    z = z.transpose(1, 0, 3, 2, 4).reshape(g, -1, t // g * _size(kernel))
    weight = step.weight.reshape(g, t // g, s, -1).transpose(0, 2, 1, 3).reshape(g, s, -1)
    return z, weight


@pull_back.register
def _(step: Convolve, z: Array, shape: Shape) -> Array:
    rows, weight = _conv_parts(step, z, shape)
    g, s = weight.shape[:2]
    x = rows @ weight.swapaxes(1, 2)  # [g, B P, S/g]
    return np.asarray(x.reshape(g, shape[0], -1, s).transpose(1, 0, 3, 2).reshape(shape))


@weight_gradient.register
def _(step: Convolve, x: Array, z: Array) -> Array:
    rows, weight = _conv_parts(step, z, x.shape)
    g, s = weight.shape[:2]
    left = x.reshape(x.shape[0], g, s, -1).transpose(1, 2, 0, 3).reshape(g, s, -1)
    gradient = left @ rows  # [g, S/g, T/g Q]
    t = step.weight.shape[0]
    return np.asarray(gradient.reshape(g, s, t // g, -1).transpose(0, 2, 1, 3).reshape(step.weight.shape))


@pull_back.register
def _(step: MatMul | Lookup, z: Array, shape: Shape) -> Array:
    return np.asarray(z @ step.weight.swapaxes(-1, -2))


@weight_gradient.register
def _(step: MatMul | Lookup, x: Array, z: Array) -> Array:
    return np.asarray(x.reshape(-1, x.shape[-1]).T @ z.reshape(-1, z.shape[-1]))


@pull_back.register
def _(step: LeftMatMul, z: Array, shape: Shape) -> Array:
    return np.asarray(step.weight.T @ z)


@weight_gradient.register
def _(step: LeftMatMul, x: Array, z: Array) -> Array:
    t, s = step.weight.shape
    left = z.reshape(-1, t, z.shape[-1]).swapaxes(0, 1).reshape(t, -1)
    right = x.reshape(-1, s, x.shape[-1]).swapaxes(0, 1).reshape(s, -1)
    return np.asarray(left @ right.T)


@pull_back.register
def _(step: BlockMatMul, z: Array, shape: Shape) -> Array:
    blocks, s, t = step.weight.shape
    rows = z.reshape(-1, blocks, t).swapaxes(0, 1) @ step.weight.swapaxes(1, 2)
    return np.asarray(rows.swapaxes(0, 1).reshape(*z.shape[:-1], s))


@weight_gradient.register
def _(step: BlockMatMul, x: Array, z: Array) -> Array:
    blocks, s, t = step.weight.shape
    left = x.reshape(-1, blocks, s).transpose(1, 2, 0)
    return np.asarray(left @ z.reshape(-1, blocks, t).swapaxes(0, 1))


@pull_back.register(Reshape)
@pull_back.register(Fold)
@pull_back.register(Spread)
def _(step: Step, z: Array, shape: Shape) -> Array:
    return z.reshape(shape)


@pull_back.register
def _(step: Permute, z: Array, shape: Shape) -> Array:
    return z[:, np.argsort(step.order)]


@pull_back.register
def _(step: Transpose, z: Array, shape: Shape) -> Array:
    return z.transpose(np.argsort(step.axes(z.ndim)))


@pull_back.register
def _(step: Pad, z: Array, shape: Shape) -> Array:
    return z.take(range(shape[step.axis]), step.axis)


@pull_back.register
def _(step: Narrow, z: Array, shape: Shape) -> Array:
    zeros = [(0, 0)] * z.ndim
    zeros[step.axis] = (0, shape[step.axis] - step.size)
    return np.pad(z, zeros)


def _size(shape: list[int] | Shape) -> int:
    return int(np.prod(shape, dtype=np.int64)) if len(shape) else 1
