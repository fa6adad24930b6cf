"""Products of the activation's features with a matrix, or with several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps.base import Shape, WeightedStep


@dataclass(frozen=True, eq=False)
class MatMul(WeightedStep):
    """x @ weight on the last axis; weight [..., S, T], stacked as ONNX MatMul broadcasts stacks."""

    any_rank: ClassVar[bool] = True

    label: str = ""

    @property
    def is_stack(self) -> bool:
        """Whether it holds several matrices, each for a part of the activation."""
        return self.weight.ndim > 2

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[-2])

    @property
    def fan_in(self) -> int:
        return self.inputs

    def output_shape(self, shape: Shape) -> Shape:
        lead = np.broadcast_shapes(shape[:-2], self.weight.shape[:-2])
        return (*lead, *shape[-2:-1], self.weight.shape[-1])

    def forward(self, x: Array) -> Array:
        return np.asarray(x @ self.weight)

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return _summed(z @ self.weight.swapaxes(-1, -2), shape)

    def weight_gradient(self, x: Array, z: Array) -> Array:
        if self.is_stack:
            return _summed(x.swapaxes(-1, -2) @ z, self.weight.shape)
        return np.asarray(x.reshape(-1, x.shape[-1]).T @ z.reshape(-1, z.shape[-1]))

    def rows(self) -> Array | None:
        return None if self.is_stack else self.weight.T[None]

    def with_rows(self, rows: Array) -> Self:
        return self.with_weight(np.ascontiguousarray(rows[0].T))


@dataclass(frozen=True, eq=False)
class LeftMatMul(WeightedStep):
    """weight @ x on the last axis but one: [..., S, m] to [..., T, m], weight [T, S].

    It contracts a mode that is not the innermost without a transpose.
    """

    output_axis: ClassVar[int] = 0

    label: str = ""

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[1])

    @property
    def fan_in(self) -> int:
        return self.inputs

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-2], self.weight.shape[0], shape[-1])

    def forward(self, x: Array) -> Array:
        return np.asarray(self.weight @ x)

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return np.asarray(self.weight.T @ z)

    def weight_gradient(self, x: Array, z: Array) -> Array:
        t, s = self.weight.shape
        left = z.reshape(-1, t, z.shape[-1]).swapaxes(0, 1).reshape(t, -1)
        right = x.reshape(-1, s, x.shape[-1]).swapaxes(0, 1).reshape(s, -1)
        return np.asarray(left @ right.T)


@dataclass(frozen=True, eq=False)
class BlockMatMul(WeightedStep):
    """A block-diagonal product: [..., b, S] to [..., b, T], one matrix for each block; weight [b, S, T]."""

    label: str = ""

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[0] * self.weight.shape[1])

    @property
    def fan_in(self) -> int:
        return int(self.weight.shape[1])

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.weight.shape[-1])

    def forward(self, x: Array) -> Array:
        # blocks first: [b, rows, S] @ [b, S, T]
        rows = x.reshape(-1, *x.shape[-2:]).swapaxes(0, 1)
        return (rows @ self.weight).swapaxes(0, 1).reshape(self.output_shape(x.shape))

    def adjoint(self, z: Array, shape: Shape) -> Array:
        rows = z.reshape(-1, *z.shape[-2:]).swapaxes(0, 1) @ self.weight.swapaxes(1, 2)
        return np.asarray(rows.swapaxes(0, 1).reshape(shape))

    def weight_gradient(self, x: Array, z: Array) -> Array:
        left = x.reshape(-1, *x.shape[-2:]).transpose(1, 2, 0)
        return np.asarray(left @ z.reshape(-1, *z.shape[-2:]).swapaxes(0, 1))


@dataclass(frozen=True, eq=False)
class Lookup(WeightedStep):
    """x @ weight for one-hot x, given as indices: rows of the table `weight` [S, T] are read, not summed."""

    any_rank: ClassVar[bool] = True

    label: str = ""

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def fan_in(self) -> int:
        return 1

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.weight.shape[-1])

    def macs(self, shape: Shape) -> int:
        return 0

    def forward(self, x: Array) -> Array:
        return np.asarray(x @ self.weight)

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return np.asarray(z @ self.weight.T)

    def weight_gradient(self, x: Array, z: Array) -> Array:
        return np.asarray(x.reshape(-1, x.shape[-1]).T @ z.reshape(-1, z.shape[-1]))


def _summed(array: Array, shape: Shape) -> Array:
    """The transpose of broadcasting an array of that shape to the array's."""
    first = array.ndim - len(shape)
    array = array.sum(axis=tuple(range(first)))
    spread = tuple(axis for axis, size in enumerate(shape) if size == 1 < array.shape[axis])
    return np.asarray(array.sum(axis=spread, keepdims=True))
