"""Splitting a weight into a tensor: modes of the inputs, the kernel, modes of the outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxdecomp.core.layer import Array, Layer, channels, common_refusal
from onnxdecomp.errors import UsageError
from onnxdecomp.tensor.linalg import finite_groups
from onnxdecomp.tensor.tensor_network import KERNEL
from onnxdecomp.tensor.tt_matrix_modes import MOST_MODES, balanced_factors

_UNBALANCED = 4
"""The largest ratio of two modes of one side at which splitting it so far is still worth it."""


@dataclass(frozen=True)
class Sides:
    """The modes of one group's weight: S = Π ins, K = prod(kernel), T = Π outs."""

    ins: tuple[int, ...]
    kernel: int
    outs: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the tensor's axes: the inputs, the kernel unless it is 1, the outputs."""
        return (*self.ins, *((self.kernel,) if self.kernel > 1 else ()), *self.outs)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the same axes."""
        kernel = (KERNEL,) if self.kernel > 1 else ()
        return (*self.input_names, *kernel, *self.output_names)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(f"s{k + 1}" for k in range(len(self.ins)))

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(f"t{k + 1}" for k in range(len(self.outs)))


def sides_of(layer: Layer, order: int, shape: str) -> Sides:
    """The modes that `shape` gives or, without it, at most `order` balanced ones per side.

    A side whose size has no balanced divisors takes fewer modes: a prime stays whole. The order 0 is 1
    where the kernel is a mode already and 2 where the weight is a matrix.
    """
    t, s = channels(layer)
    if shape:
        ins, outs = parse_sides(shape)
    else:
        order = order or (2 if layer.is_matrix else 1)
        ins, outs = _side(s, order), _side(t, order)
    return Sides(ins, math.prod(layer.kernel), outs)


def _side(n: int, order: int) -> tuple[int, ...]:
    for count in range(order, 1, -1):
        modes = balanced_factors(n, count)
        if modes[-1] > 1 and modes[0] <= _UNBALANCED * modes[-1]:
            return modes
    return (n,)


def parse_sides(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Read "4x7x4x7:25x25", the modes of the inputs and of the outputs; their numbers may differ.

    Raises:
        UsageError: The text is not of that form.
    """
    try:
        ins, outs = (tuple(int(mode) for mode in side.split("x")) for side in text.lower().split(":"))
    except ValueError:
        ins, outs = (), ()
    if not ins or max(len(ins), len(outs)) > MOST_MODES or min(*ins, *outs) < 1:
        raise UsageError(f'shape {text!r}: give the modes of inputs and outputs, as "16x32:8x8"')
    return ins, outs


def check_options(name: str, order: int, shape: str) -> None:
    """The checks of the options `order` and `shape`.

    Raises:
        UsageError: One of them has no meaning.
    """
    if not 0 <= order <= MOST_MODES:
        raise UsageError(f"{name}: order {order}: give 1 to {MOST_MODES} modes per side, or 0 for automatic")
    if shape:
        try:
            parse_sides(shape)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None


def sides_refusal(layer: Layer, shape: str) -> str | None:
    """Why the weight cannot be split so."""
    if layer.is_stack:
        return "a stack of matrices: use svd"
    if (common := common_refusal(layer)) is not None:
        return common
    if shape:
        ins, outs = parse_sides(shape)
        t, s = channels(layer)
        if (math.prod(ins), math.prod(outs)) != (s, t):
            return f"the shape {shape} is of another size than {s}:{t}"
    return None


def split(layer: Layer, sides: Sides) -> list[Array]:
    """The weight as one tensor of `sides.sizes` per group: views.

    Raises:
        ModelError: The weight holds NaN or infinite values.
    """
    q, p = len(sides.outs), len(sides.ins)
    kernel = (sides.kernel,) if sides.kernel > 1 else ()
    order = [*range(q, q + p + len(kernel)), *range(q)]
    return [w.reshape(*sides.outs, *sides.ins, *kernel).transpose(order) for w in finite_groups(layer)]
