"""Chain: the short sequence of linear steps that a layer is replaced by.

A chain knows nothing of ONNX nor of the method that made it. From its steps follow the weight it stands
for (`dense`), its parameters, its multiply-accumulates and its activation traffic; the nodes are emitted
from the same steps in onnxdecomp.layers.lower.

Two layouts of the activation, told apart by the steps themselves:

* convolution: [N, C, *spatial]; steps Convolve, Fold, Spread, Permute;
* linear: [*lead, *features]; steps MatMul, LeftMatMul, BlockMatMul, Lookup, Reshape, Transpose, which
  speak of the feature axes only and leave any number of leading axes (batch, tokens) alone.

Pad and Narrow are of both layouts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array, ConvSpec

Shape: TypeAlias = tuple[int, ...]

_BLOCK = 512
"""Rows of the identity sent through a chain at a time, to bound the memory of `dense`."""


@dataclass(frozen=True, eq=False)
class Convolve:
    """A convolution (or, if `spec.transposed`, a transposed one) with weight [T, S/groups, *kernel]."""

    weight: Array
    spec: ConvSpec
    label: str = ""

    @property
    def params(self) -> int:
        return int(self.weight.size)

    def output_shape(self, shape: Shape) -> Shape:
        spatial = (
            conv_output_size(size, kernel, self.spec, axis)
            for axis, (size, kernel) in enumerate(zip(shape[2:], self.weight.shape[2:], strict=True))
        )
        return (shape[0], self.weight.shape[0], *spatial)

    def macs(self, shape: Shape) -> int:
        # A transposed convolution multiplies once per input position, a plain one once per output position.
        positions = shape[2:] if self.spec.transposed else self.output_shape(shape)[2:]
        return shape[0] * math.prod(positions) * self.params

    def respond(self, x: Array) -> Array:
        """The response [B, T, *kernel] to impulses [B, S, *kernel so far].

        Along each axis either this kernel or what came before must have size 1: chains are made so, and
        then composing two convolutions is an outer product over the kernel positions.
        """
        g = self.spec.groups
        t, s, *kernel = self.weight.shape
        before = x.shape[2:]
        if any(a > 1 and b > 1 for a, b in zip(before, kernel, strict=True)):
            raise ValueError(f"kernels {before} and {tuple(kernel)} overlap on an axis of one chain")
        w = self.weight.reshape(g, t // g, s, -1)
        e = x.reshape(x.shape[0], g, s, -1)
        # batch over the groups: [g, B*P, s] @ [g, s, t/g*Q]
        left = e.transpose(1, 0, 3, 2).reshape(g, -1, s)
        right = w.transpose(0, 2, 1, 3).reshape(g, s, -1)
        out = (left @ right).reshape(g, x.shape[0], e.shape[3], t // g, w.shape[3])
        out = out.transpose(1, 0, 3, 2, 4).reshape(x.shape[0], t, *before, *kernel)
        d = len(kernel)
        interleaved = [2 + k + o for k in range(d) for o in (0, d)]
        sizes = [a * b for a, b in zip(before, kernel, strict=True)]
        return out.transpose(0, 1, *interleaved).reshape(x.shape[0], t, *sizes)


@dataclass(frozen=True, eq=False)
class Fold:
    """Regroup channels and batch: [N, C, *spatial] to [N C / channels, channels, *spatial], and back.

    Static whatever the batch and the spatial sizes are: Reshape to [-1, channels, 0, 0].
    """

    channels: int
    label: str = ""
    params: int = field(default=0, init=False)

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0] * shape[1] // self.channels, self.channels, *shape[2:])

    def macs(self, shape: Shape) -> int:
        return 0

    def respond(self, x: Array) -> Array:
        return x.reshape(-1, self.channels, *x.shape[2:])


@dataclass(frozen=True, eq=False)
class Spread:
    """Regroup channels and the first spatial axis: [N, C, P, *rest] to [N, channels, C P / channels, *rest].

    A 1x1 convolution between two of these mixes the outermost of several channel modes, as Fold makes it
    mix the innermost. Static whatever the batch and the spatial sizes are: Reshape to [0, channels, -1, 0].
    """

    channels: int
    label: str = ""
    params: int = field(default=0, init=False)

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.channels, shape[1] * shape[2] // self.channels, *shape[3:])

    def macs(self, shape: Shape) -> int:
        return 0

    def respond(self, x: Array) -> Array:
        return x.reshape(self.output_shape(x.shape))


@dataclass(frozen=True, eq=False)
class Permute:
    """Put the channels into another order: output channel i is input channel order[i]."""

    order: tuple[int, ...]
    label: str = ""
    params: int = field(default=0, init=False)

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], len(self.order), *shape[2:])

    def macs(self, shape: Shape) -> int:
        return 0

    def respond(self, x: Array) -> Array:
        return x[:, list(self.order)]


@dataclass(frozen=True, eq=False)
class MatMul:
    """x @ weight on the last axis; weight [..., S, T], stacked as ONNX MatMul broadcasts stacks."""

    weight: Array
    label: str = ""

    @property
    def params(self) -> int:
        return int(self.weight.size)

    def output_shape(self, shape: Shape) -> Shape:
        lead = np.broadcast_shapes(shape[:-2], self.weight.shape[:-2])
        return (*lead, *shape[-2:-1], self.weight.shape[-1])

    def macs(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape)) * int(self.weight.shape[-2])

    def respond(self, x: Array) -> Array:
        return np.asarray(x @ self.weight)


@dataclass(frozen=True, eq=False)
class LeftMatMul:
    """weight @ x on the last axis but one: [..., S, m] to [..., T, m], weight [T, S].

    It contracts a mode that is not the innermost without a transpose.
    """

    weight: Array
    label: str = ""

    @property
    def params(self) -> int:
        return int(self.weight.size)

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-2], self.weight.shape[0], shape[-1])

    def macs(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape)) * int(self.weight.shape[1])

    def respond(self, x: Array) -> Array:
        return np.asarray(self.weight @ x)


@dataclass(frozen=True, eq=False)
class BlockMatMul:
    """A block-diagonal product: [..., b, S] to [..., b, T], one matrix for each block; weight [b, S, T]."""

    weight: Array
    label: str = ""

    @property
    def params(self) -> int:
        return int(self.weight.size)

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.weight.shape[-1])

    def macs(self, shape: Shape) -> int:
        return math.prod(shape[:-2]) * self.params

    def respond(self, x: Array) -> Array:
        # blocks first: [b, rows, S] @ [b, S, T]
        rows = x.reshape(-1, *x.shape[-2:]).swapaxes(0, 1)
        return (rows @ self.weight).swapaxes(0, 1).reshape(self.output_shape(x.shape))


@dataclass(frozen=True, eq=False)
class Lookup:
    """x @ weight for one-hot x, given as indices: rows of the table `weight` [S, T] are read, not summed."""

    weight: Array
    label: str = ""

    @property
    def params(self) -> int:
        return int(self.weight.size)

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.weight.shape[-1])

    def macs(self, shape: Shape) -> int:
        return 0

    def respond(self, x: Array) -> Array:
        return np.asarray(x @ self.weight)


@dataclass(frozen=True, eq=False)
class Reshape:
    """Give the `source` feature axes the sizes `target`; leading axes stay."""

    source: Shape
    target: Shape
    label: str = ""
    params: int = field(default=0, init=False)

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[: len(shape) - len(self.source)], *self.target)

    def macs(self, shape: Shape) -> int:
        return 0

    def respond(self, x: Array) -> Array:
        return x.reshape(self.output_shape(x.shape))


@dataclass(frozen=True, eq=False)
class Transpose:
    """Put the last len(perm) axes, the features, into another order; leading axes stay."""

    perm: tuple[int, ...]
    label: str = ""
    params: int = field(default=0, init=False)

    def axes(self, rank: int) -> tuple[int, ...]:
        lead = rank - len(self.perm)
        return (*range(lead), *(lead + p for p in self.perm))

    def output_shape(self, shape: Shape) -> Shape:
        return tuple(shape[axis] for axis in self.axes(len(shape)))

    def macs(self, shape: Shape) -> int:
        return 0

    def respond(self, x: Array) -> Array:
        return x.transpose(self.axes(x.ndim))


@dataclass(frozen=True, eq=False)
class Pad:
    """`missing` zeros after the channels (axis 1) or the features (axis -1)."""

    missing: int
    axis: int
    label: str = ""
    params: int = field(default=0, init=False)

    def output_shape(self, shape: Shape) -> Shape:
        return _resized(shape, self.axis, shape[self.axis] + self.missing)

    def macs(self, shape: Shape) -> int:
        return 0

    def respond(self, x: Array) -> Array:
        zeros = [(0, 0)] * x.ndim
        zeros[self.axis] = (0, self.missing)
        return np.pad(x, zeros)


@dataclass(frozen=True, eq=False)
class Narrow:
    """Keep the first `size` channels (axis 1) or features (axis -1)."""

    size: int
    axis: int
    label: str = ""
    params: int = field(default=0, init=False)

    def output_shape(self, shape: Shape) -> Shape:
        return _resized(shape, self.axis, self.size)

    def macs(self, shape: Shape) -> int:
        return 0

    def respond(self, x: Array) -> Array:
        return x.take(range(self.size), self.axis)


def _resized(shape: Shape, axis: int, size: int) -> Shape:
    sizes = list(shape)
    sizes[axis] = size
    return tuple(sizes)


Step: TypeAlias = (
    Convolve
    | Fold
    | Spread
    | Permute
    | MatMul
    | LeftMatMul
    | BlockMatMul
    | Lookup
    | Reshape
    | Transpose
    | Pad
    | Narrow
)
WEIGHTED = (Convolve, MatMul, LeftMatMul, BlockMatMul, Lookup)
"""The steps that hold numbers."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps applied first to last, then the bias [T] added.

    Attributes:
        steps: At least one step; all of one layout.
        bias: [T] or None.
        inputs: S, the input channels or features of the layer, all groups together.
        groups: Groups of the layer that the chain stands for.
    """

    steps: tuple[Step, ...]
    bias: Array | None
    inputs: int
    groups: int = 1

    @property
    def is_conv(self) -> bool:
        return any(isinstance(step, Convolve) for step in self.steps)

    @property
    def params(self) -> int:
        """Numbers in the factors and the bias."""
        return sum(step.params for step in self.steps) + (0 if self.bias is None else int(self.bias.size))

    def macs(self, input_shape: Shape) -> int:
        """Multiply-accumulates for one input of that shape (the bias not counted)."""
        return sum(step.macs(shape) for step, shape in self._walk(input_shape))

    def traffic(self, input_shape: Shape) -> int:
        """Activation elements written, of all steps."""
        return sum(math.prod(step.output_shape(shape)) for step, shape in self._walk(input_shape))

    def output_shape(self, input_shape: Shape) -> Shape:
        for step in self.steps:
            input_shape = step.output_shape(input_shape)
        return input_shape

    def _walk(self, shape: Shape) -> Iterator[tuple[Step, Shape]]:
        for step in self.steps:
            yield step, shape
            shape = step.output_shape(shape)

    def dense(self) -> Array:
        """The weight that the chain stands for, in the layer's canonical layout (see Layer.weight)."""
        return np.concatenate(list(self.dense_blocks()), axis=1 if self.is_conv else -1)

    def dense_blocks(self, rows: int = _BLOCK) -> Iterator[Array]:
        """`dense` in blocks of input channels [T, <= rows, *kernel]: for weights too large to hold twice.

        A linear chain of stacked matrices gives one block [*stack, T, S].
        """
        first = self.steps[0]
        dtype = next((s.weight.dtype for s in self.steps if isinstance(s, WEIGHTED)), np.float32)
        size = self.inputs // self.groups
        if isinstance(first, MatMul) and first.weight.ndim > 2:
            yield self.apply(np.eye(size, dtype=dtype)).swapaxes(-1, -2)
            return
        for start in range(0, size, rows):
            impulse = np.eye(min(rows, size - start), size, start, dtype=dtype)
            if self.is_conv:
                # Every group is struck at once: the groups do not mix.
                spatial = (1,) * self._spatial_rank()
                struck = np.tile(impulse, (1, self.groups)).reshape(-1, self.inputs, *spatial)
                block = self.apply(struck)
                yield block.reshape(len(impulse), -1, *block.shape[2:]).swapaxes(0, 1)
            else:
                yield self.apply(impulse).reshape(len(impulse), -1).T

    def _spatial_rank(self) -> int:
        return next(step.spec.spatial_rank for step in self.steps if isinstance(step, Convolve))

    def apply(self, x: Array) -> Array:
        """The steps applied in NumPy, without the bias: to features, or to impulses of channels."""
        for step in self.steps:
            x = step.respond(x)
        return x


def with_lookup(chain: Chain) -> Chain:
    """The chain of a layer whose inputs are indices: its first product reads rows of its factor."""
    first, *rest = chain.steps
    if isinstance(first, MatMul) and first.weight.ndim == 2:
        first = Lookup(first.weight, first.label)
    return replace(chain, steps=(first, *rest))


def mirrored(chain: Chain, bias: Array | None) -> Chain:
    """The chain of the transposed weight: its products of matrices in reverse, each transposed.

    Args:
        chain: Of plain products of matrices only.
        bias: The new chain's.
    """
    products = [step for step in chain.steps if isinstance(step, MatMul)]
    labels = [step.label for step in products]
    steps = tuple(
        MatMul(step.weight.T, label) for step, label in zip(reversed(products), labels, strict=True)
    )
    return Chain(steps, bias, int(steps[0].weight.shape[0]))


def conv_output_size(size: int, kernel: int, spec: ConvSpec, axis: int) -> int:
    """The output's size along one spatial axis, as ONNX defines it for Conv and ConvTranspose."""
    stride, dilation = spec.strides[axis], spec.dilations[axis]
    span = dilation * (kernel - 1) + 1
    if isinstance(spec.pads, str):
        if spec.pads.startswith("SAME"):
            return size * stride if spec.transposed else -(-size // stride)
        padding = 0
    else:
        padding = spec.pads[axis] + spec.pads[axis + spec.spatial_rank]
    if spec.transposed:
        extra = spec.output_padding[axis] if spec.output_padding else 0
        return stride * (size - 1) + extra + span - padding
    return max(0, (size + padding - span) // stride + 1)


def pointwise(weight: Array, groups: int, spatial_rank: int, label: str = "") -> Convolve:
    """A 1x1 convolution with the matrix `weight` [T, S/groups] over `spatial_rank` axes."""
    ones = (1,) * spatial_rank
    spec = ConvSpec(strides=ones, dilations=ones, pads=(0,) * (2 * spatial_rank), groups=groups)
    return Convolve(weight.reshape(*weight.shape[:2], *ones), spec, label)
