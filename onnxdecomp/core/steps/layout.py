"""Steps without numbers: they read the activation in another shape or order, pad it, or cut it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps.base import Shape, Step


@dataclass(frozen=True, eq=False)
class RegroupBatch(Step):
    """Channels to batch and back: [N, C, *spatial] to [N C / channels, channels, *spatial].

    Static whatever the batch and the spatial sizes are: Reshape to [-1, channels, 0, 0].
    """

    channels: int
    label: str = ""

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0] * shape[1] // self.channels, self.channels, *shape[2:])

    def forward(self, x: Array) -> Array:
        return x.reshape(-1, self.channels, *x.shape[2:])

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return z.reshape(shape)


@dataclass(frozen=True, eq=False)
class RegroupSpatial(Step):
    """Channels to the first spatial axis and back: [N, C, P, *rest] to [N, channels, C P / channels, *rest].

    A 1x1 convolution between two of these mixes the outermost of several channel modes, as RegroupBatch
    makes it mix the innermost. Static whatever the batch and the spatial sizes are: Reshape to
    [0, channels, -1, 0].
    """

    channels: int
    label: str = ""

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.channels, shape[1] * shape[2] // self.channels, *shape[3:])

    def forward(self, x: Array) -> Array:
        return x.reshape(self.output_shape(x.shape))

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return z.reshape(shape)


@dataclass(frozen=True, eq=False)
class PermuteChannels(Step):
    """Put the channels into another order: output channel i is input channel order[i]."""

    order: tuple[int, ...]
    label: str = ""

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], len(self.order), *shape[2:])

    def forward(self, x: Array) -> Array:
        return x[:, list(self.order)]

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return z[:, np.argsort(self.order)]


@dataclass(frozen=True, eq=False)
class Reshape(Step):
    """Give the `source` feature axes the sizes `target`; leading axes stay."""

    source: Shape
    target: Shape
    label: str = ""

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[: len(shape) - len(self.source)], *self.target)

    def forward(self, x: Array) -> Array:
        return x.reshape(self.output_shape(x.shape))

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return z.reshape(shape)


@dataclass(frozen=True, eq=False)
class Transpose(Step):
    """Put the last len(perm) axes, the features, into another order; leading axes stay."""

    perm: tuple[int, ...]
    label: str = ""

    def axes(self, rank: int) -> tuple[int, ...]:
        """The order of all axes of an activation of that rank."""
        lead = rank - len(self.perm)
        return (*range(lead), *(lead + p for p in self.perm))

    def output_shape(self, shape: Shape) -> Shape:
        return tuple(shape[axis] for axis in self.axes(len(shape)))

    def forward(self, x: Array) -> Array:
        return x.transpose(self.axes(x.ndim))

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return z.transpose(np.argsort(self.axes(z.ndim)))


@dataclass(frozen=True, eq=False)
class Pad(Step):
    """`missing` zeros after the channels (axis 1) or the features (axis -1)."""

    missing: int
    axis: int
    label: str = ""

    def output_shape(self, shape: Shape) -> Shape:
        return _resized(shape, self.axis, shape[self.axis] + self.missing)

    def forward(self, x: Array) -> Array:
        return _padded(x, self.axis, self.missing)

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return z.take(range(shape[self.axis]), self.axis)


@dataclass(frozen=True, eq=False)
class Slice(Step):
    """Keep the first `size` channels (axis 1) or features (axis -1)."""

    size: int
    axis: int
    label: str = ""

    def output_shape(self, shape: Shape) -> Shape:
        return _resized(shape, self.axis, self.size)

    def forward(self, x: Array) -> Array:
        return x.take(range(self.size), self.axis)

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return _padded(z, self.axis, shape[self.axis] - self.size)


def _resized(shape: Shape, axis: int, size: int) -> Shape:
    sizes = list(shape)
    sizes[axis] = size
    return tuple(sizes)


def _padded(x: Array, axis: int, missing: int) -> Array:
    zeros = [(0, 0)] * x.ndim
    zeros[axis] = (0, missing)
    return np.pad(x, zeros)
