"""Which few of many chains are timed on a device where each costs a session, and what the others may take.

A roofline is fitted to what has been timed so far. It says which chains may be faster than their layer: of
these a few of each layer, from the smallest to the largest, are timed; the others get what it says of them,
corrected by what it says of their neighbours. The whole model is timed in the end all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from onnxdecomp.latency.kernels import Kernel
from onnxdecomp.latency.roofline import Roofline, fitted

MOST = 6
"""Chains of a layer that are timed, at most."""

_HOPELESS = 1.3
"""Times as slow as its layer that a chain is thought to be from which on it is not timed."""

_KNOWN = 8
"""Points from which on the roofline is listened to."""


class Timeable(Protocol):
    """A chain that may be timed, with its place among what is timed together."""

    @property
    def key(self) -> str: ...

    @property
    def group(self) -> str: ...

    @property
    def kernels(self) -> tuple[Kernel, ...]: ...

    @property
    def own(self) -> tuple[Kernel, ...]:
        """The kernels of the layer that it is compared with."""
        ...


T = TypeVar("T", bound=Timeable)


@dataclass(eq=False)
class FewTimings:
    """What has been timed on a device so far, and what follows from it."""

    points: list[tuple[tuple[Kernel, ...], float]] = field(default_factory=list)
    line: Roofline = field(default_factory=lambda: Roofline(0.0))

    def worth(self, jobs: Sequence[T]) -> list[T]:
        """The jobs of one layer that are timed: spread over those that may be faster than it."""
        alone = [job for job in jobs if job.key == job.group]
        chains = [job for job in jobs if job.key != job.group]
        if len(self.points) >= _KNOWN:
            chains = [job for job in chains if self.ratio(job) <= _HOPELESS]
        ordered = sorted(chains, key=lambda job: sum(kernel.flops for kernel in job.kernels))
        places = np.unique(np.linspace(0, len(ordered) - 1, min(MOST, len(ordered))).round().astype(int))
        return alone + [ordered[place] for place in places]

    def learn(self, jobs: Sequence[T], times: Mapping[str, tuple[float, float]]) -> None:
        """Take in what was timed: by the key of a job its layer's milliseconds, and its ratio to that."""
        for job in jobs:
            if job.key in times:
                ms, ratio = times[job.key]
                self.points.append((job.own, ms * 1e3))
                self.points.append((job.kernels, max(ms * ratio, 1e-6) * 1e3))
        self.points = list({point[0]: point for point in self.points}.values())
        self.line = fitted(self.points)

    def ratio(self, job: Timeable) -> float:
        """What a job is thought to take of its layer's time."""
        own = self.line.us(job.own)
        return self.line.us(job.kernels) / own if own > 0 else 1.0

    def guess(self, job: Timeable, timed: Sequence[tuple[Timeable, float]]) -> float:
        """The ratio of a job that was not timed, from those of its layer that were, with their ratios."""
        if not timed:
            return self.ratio(job)
        size = sum(kernel.flops for kernel in job.kernels)
        near, ratio = min(
            timed, key=lambda pair: abs(np.log1p(sum(k.flops for k in pair[0].kernels)) - np.log1p(size))
        )
        expected = self.ratio(near)
        return self.ratio(job) * (ratio / expected if expected > 0 else 1.0)

    def ms(self, kernels: Sequence[Kernel]) -> float:
        """Milliseconds that kernels are thought to take."""
        return self.line.us(kernels) / 1e3
