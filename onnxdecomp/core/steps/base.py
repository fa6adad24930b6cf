"""Step: one linear map of a chain, and what everything else asks it.

Two layouts of the activation, told apart by the steps themselves:

* convolution: [N, C, *spatial]; steps Convolve, RegroupBatch, RegroupSpatial, PermuteChannels;
* linear: [*lead, *features]; steps MatMul, LeftMatMul, BlockMatMul, Lookup, Reshape, Transpose, which
  speak of the feature axes only and leave any number of leading axes (batch, tokens) alone.

Pad and Slice are of both layouts.

In NumPy a chain is applied to unit impulses, and a convolution's response to an impulse is its kernel: there
strides, dilations and pads do not count, while shapes and costs are those of the operator on a real input.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeAlias

from onnxdecomp.core.layer import Array

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Step(ABC):
    """A linear map A of activations: <A x, z> = <x, AT z> for all x and z.

    Attributes:
        any_rank: Its nodes are the same for any number of axes before those that it speaks of.
    """

    any_rank: ClassVar[bool] = False

    @property
    @abstractmethod
    def label(self) -> str:
        """What its node is called after the layer; "" for a name by its place in the chain."""

    @property
    def params(self) -> int:
        """Numbers that it holds."""
        return 0

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """The activation's shape afterwards."""

    def macs(self, shape: Shape) -> int:
        """Multiply-accumulates for one activation of that shape."""
        return 0

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """A x: of features, or the response to impulses [B, S, *kernel so far] of channels."""

    @abstractmethod
    def adjoint(self, z: Array, shape: Shape) -> Array:
        """AT z: the gradient at the step's input, of that shape, from the gradient z at its response."""


@dataclass(frozen=True, eq=False)
class WeightedStep(Step):
    """A step that holds numbers, and is linear in them, too.

    Attributes:
        weight: Its factor.
        output_axis: The axis of the weight along which its output channels or features are.
    """

    output_axis: ClassVar[int] = -1

    weight: Array

    @property
    def params(self) -> int:
        return int(self.weight.size)

    @property
    @abstractmethod
    def inputs(self) -> int:
        """Input channels or features that it reads, all groups or blocks together."""

    @property
    @abstractmethod
    def fan_in(self) -> int:
        """Products that are summed up to one number of the output, at most."""

    def macs(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape)) * self.fan_in

    @abstractmethod
    def weight_gradient(self, x: Array, z: Array) -> Array:
        """The gradient of the factor, from the step's input x and the gradient z at its response."""

    def with_weight(self, weight: Array) -> Self:
        """The step with other numbers in its factor."""
        return replace(self, weight=weight)

    def rows(self) -> Array | None:
        """The weight as [groups, outputs per group, numbers], if every output has numbers of its own.

        None where outputs have numbers in common: then they cannot be found one by one.
        """
        return None

    def with_rows(self, rows: Array) -> Self:
        """The step with these rows, as `rows` returns them, for any number of outputs."""
        raise NotImplementedError(f"the outputs of {type(self).__name__} have numbers in common")
