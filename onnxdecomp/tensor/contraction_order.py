"""In which order the cores of a train meet the activation, and the steps that it takes.

The activation keeps its modes in the train's order: where core k has been applied its output mode stands
in the place of its input mode, and between an applied core and one that is not stands their bond. What a
core takes and what it gives are therefore neighbours whatever the order of the cores is, and every step is
a product along the middle of [before, taken, after]: there is never a transpose.

All orders are compared by their multiplications. These are proportional to the rows, so that one order is
the cheapest for any batch. Orders that multiply one core by another are left out: ONNX Runtime would fold
such a product into one larger constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from onnxdecomp.core.layer import Array, ConvSpec, Factors
from onnxdecomp.core.steps import (
    Convolve,
    LeftMatMul,
    MatMul,
    RegroupBatch,
    RegroupSpatial,
    Reshape,
    Step,
    pointwise,
)

CoreShape: TypeAlias = tuple[int, ...]
"""[r_{k-1}, i_k, j_k, r_k]"""

_EXHAUSTIVE = 10
"""Cores up to which all orders are compared; of longer trains, those that grow from one core outwards."""


@dataclass(frozen=True)
class Contraction:
    """One core applied to [before, taken, after], which leaves [before, given, after].

    `left` and `right` tell whether the neighbour on that side has been applied: its bond is then taken,
    otherwise the core gives it.
    """

    core: int
    before: int
    taken: int
    given: int
    after: int
    left: bool
    right: bool

    @property
    def macs(self) -> int:
        return self.before * self.taken * self.given * self.after

    def matrix(self, core: Array) -> Array:
        """The core [r, i, j, r'] as the matrix [given, taken]."""
        taken = (*((0,) if self.left else ()), 1, *((3,) if self.right else ()))
        given = (*(() if self.left else (0,)), 2, *(() if self.right else (3,)))
        return core.transpose(*given, *taken).reshape(self.given, self.taken)


Order: TypeAlias = tuple[Contraction, ...]
"""Each core once, each after those before it."""


def contraction(shapes: Sequence[CoreShape], core: int, applied: int) -> Contraction:
    """Core number `core` after those whose bits are set in `applied`."""

    def done(k: int) -> bool:
        return bool(applied >> k & 1)

    def size(first: int, last: int) -> int:
        """Elements of the modes first … last-1 and of the bonds between them."""
        modes = math.prod(shapes[k][2] if done(k) else shapes[k][1] for k in range(first, last))
        return modes * math.prod(shapes[k][3] for k in range(first, last - 1) if done(k) != done(k + 1))

    r, i, j, s = shapes[core]
    left, right = (0 <= k < len(shapes) and done(k) for k in (core - 1, core + 1))
    taken = i * (r if left else 1) * (s if right else 1)
    given = j * (1 if left else r) * (1 if right else s)
    return Contraction(core, size(0, core), taken, given, size(core + 1, len(shapes)), left, right)


def cheapest_order(
    shapes: Sequence[CoreShape], weight: Callable[[int, int], int] = lambda core, applied: 1
) -> Order:
    """The order of the fewest multiplications; the first in lexicographic order among equals.

    Args:
        shapes: The cores'.
        weight: (core, bits of the applied ones) to what that step's multiplications count times.
    """
    d = len(shapes)
    best: dict[int, tuple[int, Order]] = {0: (0, ())}
    for _ in range(d):
        longer: dict[int, tuple[int, Order]] = {}
        for applied, (cost, order) in sorted(best.items(), key=lambda item: [c.core for c in item[1][1]]):
            for core in range(d):
                touches = applied == 0 or applied & (1 << core << 1 | 1 << core >> 1)
                if applied >> core & 1 or not (touches or d <= _EXHAUSTIVE):
                    continue
                step = contraction(shapes, core, applied)
                total = cost + step.macs * weight(core, applied)
                reached = applied | 1 << core
                if reached not in longer or total < longer[reached][0]:
                    longer[reached] = total, (*order, step)
        best = longer
    return best[(1 << d) - 1][1]


def linear_order(cores: Factors) -> Order:
    """The cheapest order of a TT-matrix's cores [r_{k-1}, i_k, j_k, r_k]."""
    return cheapest_order([core.shape for core in cores])


def linear_steps(cores: Factors, order: Order) -> list[Step]:
    """The steps of a TT-matrix with cores [r_{k-1}, i_k, j_k, r_k], from the features Π i_k to Π j_k."""
    steps: list[Step] = []
    state: tuple[int, ...] = (math.prod(core.shape[1] for core in cores),)

    def read_as(target: tuple[int, ...]) -> None:
        nonlocal state
        if state != target:
            steps.append(Reshape(state, target))
            state = target

    for c in order:
        matrix, label = c.matrix(cores[c.core]), f"core{c.core + 1}"
        rows = (c.before,) if c.before > 1 else ()
        if c.after > 1:
            read_as((*rows, c.taken, c.after))
            steps.append(LeftMatMul(matrix, label))
            state = (*rows, c.given, c.after)
        else:
            read_as((*rows, c.taken))
            steps.append(MatMul(matrix.T, label))
            state = (*rows, c.given)
    read_as((math.prod(core.shape[2] for core in cores),))
    return steps


def conv_order(cores: Factors, spec: ConvSpec) -> Order:
    """The cheapest order of a train [r_{k-1}, i_k, j_k, r_k], …, [r_d, *kernel], strides considered."""
    *channel_cores, kernel = cores
    last, strides = len(channel_cores), math.prod(spec.strides)
    before, after = (1, strides) if spec.transposed else (strides, 1)

    def weight(core: int, applied: int) -> int:
        """Kernel positions or image positions."""
        if core == last:
            return math.prod(kernel.shape[1:])
        return after if applied >> last & 1 else before

    return cheapest_order([*(core.shape for core in channel_cores), (kernel.shape[0], 1, 1, 1)], weight)


def conv_steps(cores: Factors, spec: ConvSpec, order: Order) -> list[Step]:
    """The steps of a train whose last core [r, *kernel] holds the kernel, from channels Π i_k to Π j_k.

    The channel modes are contracted by 1x1 convolutions: modes before the one that is contracted are
    regrouped with the batch, modes after it with the first spatial axis. The kernel's core is a
    convolution from one channel to r, or back, shared by all channels; it has the layer's attributes.
    """
    *channel_cores, kernel = cores
    state = _Channels(math.prod(core.shape[1] for core in channel_cores))
    for c in order:
        state.read_as(c.before, c.taken)
        if c.core == len(channel_cores):
            state.steps.append(Convolve(kernel.reshape(c.given, c.taken, *kernel.shape[1:]), spec, "kernel"))
        else:
            # The directions are in the label: layers that share a weight may need different ones.
            sides = "".join(name for name, taken in (("l", c.left), ("r", c.right)) if taken)
            label = f"core{c.core + 1}" + (f"_{sides}" if sides else "")
            state.steps.append(pointwise(c.matrix(cores[c.core]), 1, spec.spatial_rank, label))
        state.channels = c.given
    state.read_as(1, math.prod(core.shape[2] for core in channel_cores))
    return state.steps


class _Channels:
    """Steps, and the activation [N rows, channels, after P, *rest] that they leave of [N, C, P, *rest]."""

    def __init__(self, channels: int) -> None:
        self.steps: list[Step] = []
        self.rows, self.channels, self.after = 1, channels, 1

    def read_as(self, rows: int, channels: int) -> None:
        if rows != self.rows:
            total = self.rows * self.channels
            if total % rows:
                self._regroup_spatial(self.channels * self.after)
                total = self.rows * self.channels
            self.rows, self.channels = rows, total // rows
            self.steps.append(RegroupBatch(self.channels))
        if channels != self.channels:
            self._regroup_spatial(channels)

    def _regroup_spatial(self, channels: int) -> None:
        self.after = self.channels * self.after // channels
        self.channels = channels
        self.steps.append(RegroupSpatial(channels))
