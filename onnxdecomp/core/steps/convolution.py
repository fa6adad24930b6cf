"""Convolve: a convolution as a step of a chain, and what it and its transposes do to kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxdecomp.core.layer import Array, ConvSpec
from onnxdecomp.core.steps.base import Shape, WeightedStep


@dataclass(frozen=True, eq=False)
class Convolve(WeightedStep):
    """A convolution (or, if `spec.transposed`, a transposed one) with weight [T, S/groups, *kernel]."""

    output_axis: ClassVar[int] = 0

    spec: ConvSpec
    label: str = ""

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[1]) * self.spec.groups

    @property
    def fan_in(self) -> int:
        return math.prod(self.weight.shape[1:])

    def output_shape(self, shape: Shape) -> Shape:
        spatial = (
            self.spec.output_size(size, kernel, axis)
            for axis, (size, kernel) in enumerate(zip(shape[2:], self.weight.shape[2:], strict=True))
        )
        return (shape[0], self.weight.shape[0], *spatial)

    def macs(self, shape: Shape) -> int:
        # A transposed convolution multiplies once per input position, a plain one once per output position.
        positions = shape[2:] if self.spec.transposed else self.output_shape(shape)[2:]
        return shape[0] * math.prod(positions) * self.params

    def forward(self, x: Array) -> Array:
        """The response [B, T, *kernel] to impulses [B, S, *kernel so far].

        Along each axis either this kernel or what came before must have size 1: chains are made so, and
        then composing two convolutions is an outer product over the kernel positions.
        """
        g = self.spec.groups
        t, s, *kernel = self.weight.shape
        before = x.shape[2:]
        if any(a > 1 and b > 1 for a, b in zip(before, kernel, strict=True)):
            raise ValueError(f"kernels {before} and {tuple(kernel)} overlap on an axis of one chain")
        e = x.reshape(x.shape[0], g, s, -1)
        # batch over the groups: [g, B*P, s] @ [g, s, t/g*Q]
        left = e.transpose(1, 0, 3, 2).reshape(g, -1, s)
        out = (left @ self._matrices()).reshape(g, x.shape[0], e.shape[3], t // g, math.prod(kernel))
        out = out.transpose(1, 0, 3, 2, 4).reshape(x.shape[0], t, *before, *kernel)
        d = len(kernel)
        interleaved = [2 + k + o for k in range(d) for o in (0, d)]
        sizes = [a * b for a, b in zip(before, kernel, strict=True)]
        return out.transpose(0, 1, *interleaved).reshape(x.shape[0], t, *sizes)

    def adjoint(self, z: Array, shape: Shape) -> Array:
        weight = self._matrices()
        g, s = weight.shape[:2]
        x = self._apart(z, shape) @ weight.swapaxes(1, 2)  # [g, B P, S/g]
        return np.asarray(x.reshape(g, shape[0], -1, s).transpose(1, 0, 3, 2).reshape(shape))

    def weight_gradient(self, x: Array, z: Array) -> Array:
        g, (t, s) = self.spec.groups, self.weight.shape[:2]
        left = x.reshape(x.shape[0], g, s, -1).transpose(1, 2, 0, 3).reshape(g, s, -1)
        gradient = left @ self._apart(z, x.shape)  # [g, S/g, T/g Q]
        return np.asarray(gradient.reshape(g, s, t // g, -1).transpose(0, 2, 1, 3).reshape(self.weight.shape))

    def rows(self) -> Array:
        g = self.spec.groups
        return self.weight.reshape(g, self.weight.shape[0] // g, -1)

    def with_rows(self, rows: Array) -> Self:
        return self.with_weight(np.ascontiguousarray(rows.reshape(-1, *self.weight.shape[1:])))

    def _matrices(self) -> Array:
        """The weight as [g, S/g, T/g Q], Q the positions of the kernel."""
        g = self.spec.groups
        t, s = self.weight.shape[:2]
        return self.weight.reshape(g, t // g, s, -1).transpose(0, 2, 1, 3).reshape(g, s, -1)

    def _apart(self, z: Array, shape: Shape) -> Array:
        """A response as [g, B P, T/g Q], P positions of the impulses `shape` and Q of the kernel."""
        g = self.spec.groups
        t, _, *kernel = self.weight.shape
        batch, before, d = shape[0], shape[2:], len(kernel)
        split = [size for pair in zip(before, kernel, strict=True) for size in pair]
        apart = [2 + 2 * axis for axis in range(d)] + [3 + 2 * axis for axis in range(d)]
        q = math.prod(kernel)
        z = z.reshape(batch, t, *split).transpose(0, 1, *apart).reshape(batch, g, t // g, -1, q)
        return z.transpose(1, 0, 3, 2, 4).reshape(g, -1, t // g * q)


def pointwise(weight: Array, groups: int, spatial_rank: int, label: str = "") -> Convolve:
    """A 1x1 convolution with the matrix `weight` [T, S/groups] over `spatial_rank` axes."""
    ones = (1,) * spatial_rank
    spec = ConvSpec(strides=ones, dilations=ones, pads=(0,) * (2 * spatial_rank), groups=groups)
    return Convolve(weight.reshape(*weight.shape[:2], *ones), spec, label)
