"""A cost model of hardware from what was measured on it: a roof for each kind of kernel.

A kernel takes its launch, and then what moving its bytes or computing its operations takes, whichever is
longer (Williams, Waterman and Patterson, "Roofline", 2009). Tiles are whole: what they are not filled with is
computed as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxdecomp.latency.kernels import Kernel, Kind

_ROUNDS = 8
"""Times that every kernel is put under the roof that it is found to be bound by."""

_TINY = 1e-15

QUANTA = (8, 16, 32, 64)
"""Multiples of channels that kernels are known to work in, by precision and kind."""

_SHOWING = 12
"""Points from which on a multiple shows."""

_CLEARLY = 0.8
"""The part of the error that a coarser multiple must leave to be taken."""


@dataclass(frozen=True)
class Roof:
    """The roof over one kind of kernels.

    Attributes:
        byte_us, flop_us: Microseconds that a byte and an operation take; 0 where nothing shows it.
        quantum: The multiple of channels, in and out, that tiles are laid over.
    """

    byte_us: float = 0.0
    flop_us: float = 0.0
    quantum: int = 1

    def us(self, kernel: Kernel) -> float:
        """Microseconds of a kernel without its launch."""
        return max(kernel.bytes * self.byte_us, padded(kernel, self.quantum) * self.flop_us)


@dataclass(frozen=True)
class Roofline:
    """Hardware as kernels see it.

    Attributes:
        launch_us: Microseconds that a launch takes.
        roofs: By the kind of kernel; a kind without a roof takes its launch alone.
    """

    launch_us: float
    roofs: Mapping[Kind, Roof] = field(default_factory=dict)

    def us(self, kernels: Sequence[Kernel]) -> float:
        """Microseconds that the kernels take one after the other."""
        return sum(self.launch_us + self.roofs.get(k.kind, Roof()).us(k) for k in kernels)


def padded(kernel: Kernel, quantum: int) -> float:
    """The operations of a kernel whose tiles are whole."""
    filled = 1.0
    for size in (kernel.inputs, kernel.outputs):
        filled *= math.ceil(size / quantum) * quantum / max(size, 1)
    return kernel.flops * (filled if kernel.kind != "other" else 1.0)


def fitted(points: Sequence[tuple[Sequence[Kernel], float]]) -> Roofline:
    """The roofline that explains measured times best, by relative error, and with it the multiple of tiles.

    What no point shows stays 0: it is then thought to be free, and worth timing. Of multiples that explain
    the times as well the smallest is taken.

    Args:
        points: Kernels that were timed together, and their microseconds.
    """
    best, least = _fitted(points, 1)
    for quantum in QUANTA if len(points) >= _SHOWING else ():
        line, error = _fitted(points, quantum)
        if error < _CLEARLY * least:
            best, least = line, error
    return best


def _fitted(points: Sequence[tuple[Sequence[Kernel], float]], quantum: int) -> tuple[Roofline, float]:
    """The best roofline whose tiles are laid over multiples of `quantum`, and its mean relative error."""
    from scipy.optimize import nnls

    kinds: list[Kind] = sorted({k.kind for kernels, _ in points for k in kernels})
    times = np.maximum(np.array([us for _, us in points]), _TINY)
    by_flops = _by_intensity([k for kernels, _ in points for k in kernels])
    best, least = Roofline(0.0), math.inf
    for _ in range(_ROUNDS if points else 0):
        table = np.zeros((len(points), 1 + 2 * len(kinds)))
        for row, (kernels, _) in enumerate(points):
            table[row, 0] = len(kernels)
            for k in kernels:
                bound = by_flops[k]
                amount = padded(k, quantum) if bound else k.bytes
                table[row, 1 + 2 * kinds.index(k.kind) + bound] += amount
        table /= times[:, None]
        scale = np.maximum(table.max(axis=0), _TINY)
        found = nnls(table / scale, np.ones(len(times)))[0] / scale
        line = Roofline(
            float(found[0]),
            {
                kind: Roof(float(found[1 + 2 * k]), float(found[2 + 2 * k]), quantum)
                for k, kind in enumerate(kinds)
            },
        )
        errors = [line.us(kernels) / us - 1 for (kernels, _), us in zip(points, times, strict=True)]
        if (error := float(np.abs(errors).mean())) < least:
            best, least = line, error
        again = {k: _computes(line.roofs[k.kind], k, bound) for k, bound in by_flops.items()}
        if again == by_flops:
            break
        by_flops = again
    return best, least


def _by_intensity(kernels: Sequence[Kernel]) -> dict[Kernel, bool]:
    """A first guess of what is bound by its operations: the half of each kind that has most for a byte."""
    each = {k: k.flops / max(k.bytes, 1.0) for k in kernels}
    middle = {
        kind: float(np.median([value for k, value in each.items() if k.kind == kind]))
        for kind in {k.kind for k in kernels}
    }
    return {k: value >= middle[k.kind] and k.flops > 0 for k, value in each.items()}


def _computes(roof: Roof, kernel: Kernel, before: bool) -> bool:
    """Whether operations take longer than bytes; where one of the two shows no cost, as it was thought."""
    if roof.byte_us == 0 or roof.flop_us == 0:
        return before
    return padded(kernel, roof.quantum) * roof.flop_us >= kernel.bytes * roof.byte_us
