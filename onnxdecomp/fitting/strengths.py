"""Strengths of the shrinkage, and which of them is chosen by held-out rows.

That of the least loss; but where a number of its weight stands out of the others far more than any of the
layer's own, a stronger one that is about as good, as in the rule of one standard error (Breiman et al. 1984,
"Classification and Regression Trees"). An input that hardly varies needs a large number to be of a little
use, and in 8 bits with one scale for the whole weight that number rounds all others away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array

SHRINKAGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The strengths that held-out samples choose among (see `problem`)."""

_PAST = 1.005
"""Beyond a strength that is worse by this factor than a smaller one none is better."""

_BETTER = 0.99
"""Other numbers than the layer's own must leave less than this share of the loss on held-out rows."""

_FAR = 4.0
"""The largest number may stand out of the others so many times as far as in the layer's own weight: that is
two bits of eight."""

_WORTH = 1.05
"""Up to so many times the least loss it may cost to keep within that."""

_BLOCK = 1 << 20
"""Numbers looked at at once."""


@dataclass(frozen=True)
class Trial:
    """A fit at one strength.

    Attributes:
        strength: Of the shrinkage.
        loss: On held-out rows.
        growth: See `growth`.
    """

    strength: float
    loss: float
    growth: float = 1.0


def growth(fitted: Array, own: Array) -> float:
    """How many times as far the largest number of a fitted weight stands out as that of the layer's own.

    By its size over the mean size of them all; 0 where all of them are zeros.
    """
    before = _outstanding(own)
    return _outstanding(fitted) / before if before else 0.0


def chosen(trials: Iterable[Trial], unfitted: float = float("inf")) -> Trial | None:
    """The one of the least loss, or a stronger one, hardly worse, whose largest number stands out less.

    Args:
        trials: By strength.
        unfitted: What the layer's own numbers lose on the same rows.

    Returns:
        None where those do about as well, or hardly worse where a number stands out.
    """
    good = [trial for trial in trials if trial.loss < _BETTER * unfitted]
    if not good:
        return None
    least = max(0.0, min(trial.loss for trial in good))
    first = max(place for place, trial in enumerate(good) if trial.loss <= least)
    stronger = [trial for trial in good[first:] if trial.loss <= _WORTH * least]
    found = min(stronger, key=lambda trial: max(trial.growth, _FAR))
    return None if found.growth > _FAR and unfitted <= _WORTH * least else found


def tried(strengths: Sequence[float], fitted: Callable[[float], Trial]) -> Iterator[Trial]:
    """Trials of strengths in their order, until they are too strong to be chosen."""
    least = float("inf")
    for strength in strengths:
        trial = fitted(strength)
        yield trial
        if trial.loss > (_PAST if trial.growth <= _FAR else _WORTH) * least:
            return
        least = max(0.0, min(least, trial.loss))


def _outstanding(weight: Array) -> float:
    """The largest size over the mean one, from some numbers at a time: it may be as large as a vocabulary."""
    flat = weight.reshape(-1)
    largest, total = 0.0, 0.0
    for start in range(0, flat.size, _BLOCK):
        sizes = np.abs(flat[start : start + _BLOCK])
        largest, total = max(largest, float(sizes.max())), total + float(sizes.sum(dtype=np.float64))
    return largest * flat.size / total if total else 0.0
