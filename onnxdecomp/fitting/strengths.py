"""Strengths of the shrinkage, tried one after the other on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

SHRINKAGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The strengths that held-out samples choose among (see `problem`)."""

_PAST = 1.005
"""Beyond a strength that is worse by this factor than a smaller one none is better."""


def tried(strengths: Sequence[float], lost: Callable[[float], float]) -> Iterator[tuple[float, float]]:
    """Strengths in their order with what a fit at each loses on held-out rows, until they are too strong."""
    least = float("inf")
    for strength in strengths:
        found = lost(strength)
        yield strength, found
        if found > _PAST * least:
            return
        least = min(least, found)
