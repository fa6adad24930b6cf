"""Chain: the short sequence of linear steps that a layer is replaced by.

A chain knows nothing of ONNX nor of the method that made it. From its steps follow the weight it stands
for (`dense`), its parameters, its multiply-accumulates and its activation traffic; the nodes are emitted
from the same steps in onnxdecomp.layers.lower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Convolve, Lookup, MatMul, Shape, Step, WeightedStep

_BLOCK = 512
"""Rows of the identity sent through a chain at a time, to bound the memory of `dense`."""


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
    def any_rank(self) -> bool:
        """Whether it can be applied without knowing how many axes the activation has."""
        return all(step.any_rank for step in self.steps)

    @property
    def weighted(self) -> list[WeightedStep]:
        """The steps that hold numbers, in order."""
        return [step for step in self.steps if isinstance(step, WeightedStep)]

    def with_weights(self, weight: Callable[[WeightedStep], Array]) -> Chain:
        """The chain with the numbers that `weight` says for each step that holds some."""
        steps = tuple(s.with_weight(weight(s)) if isinstance(s, WeightedStep) else s for s in self.steps)
        return replace(self, steps=steps)

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
        dtype = next((step.weight.dtype for step in self.weighted), np.dtype(np.float32))
        size = self.inputs // self.groups
        if isinstance(first, MatMul) and first.is_stack:
            yield self.forward(np.eye(size, dtype=dtype)).swapaxes(-1, -2)
            return
        for start in range(0, size, rows):
            impulses = self.impulses(start, min(rows, size - start), dtype)
            block = self.forward(impulses)
            if self.is_conv:
                yield block.reshape(len(impulses), -1, *block.shape[2:]).swapaxes(0, 1)
            else:
                yield block.reshape(len(impulses), -1).T

    def impulses(self, start: int, rows: int, dtype: DTypeLike) -> Array:
        """Unit impulses in the input channels or features start … start + rows - 1.

        Every group is struck at once: the groups do not mix.
        """
        impulses = np.eye(rows, self.inputs // self.groups, start, dtype=dtype)
        if not self.is_conv:
            return impulses
        rank = next(step.spec.spatial_rank for step in self.steps if isinstance(step, Convolve))
        return np.tile(impulses, (1, self.groups)).reshape(rows, self.inputs, *(1,) * rank)

    def forward(self, x: Array) -> Array:
        """The steps applied in NumPy, without the bias: to features, or to impulses of channels."""
        for step in self.steps:
            x = step.forward(x)
        return x


def with_lookup(chain: Chain) -> Chain:
    """The chain of a layer whose inputs are indices: its first product reads rows of its factor."""
    first, *rest = chain.steps
    if isinstance(first, MatMul) and not first.is_stack:
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
