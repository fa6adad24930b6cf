"""A paired difference with its 95 % interval: two models on the same samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats

from onnxdecomp.core.layer import Array

_RESAMPLES = 4000


@dataclass(frozen=True)
class Difference:
    """The mean of after - before over n samples, and the interval that holds it 19 times in 20.

    Attributes:
        mean, low, high: In the unit of the scores.
        n: Samples.
    """

    mean: float
    low: float
    high: float
    n: int

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        """ "-0.48 (-1.04 to +0.08)"."""
        mean, low, high = (f"{scale * value:+.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"


def paired_difference(before: Array, after: Array) -> Difference:
    """What a model changes in a score, with the interval by bootstrap over samples (Efron 1979).

    Args:
        before, after: [n] scores of the same samples: 0 or 1 for a right answer, a PSNR, ….

    Raises:
        ValueError: The two are of different samples.
    """
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise ValueError(f"scores of {before.shape} and {after.shape} samples are no pairs")
    change = after.astype(np.float64) - before
    if np.ptp(change) == 0:  # every resample is the same
        return Difference(float(change[0]), float(change[0]), float(change[0]), len(change))
    found = scipy.stats.bootstrap(
        (change,), np.mean, n_resamples=_RESAMPLES, method="percentile", batch=100, rng=0
    ).confidence_interval
    return Difference(float(change.mean()), float(found.low), float(found.high), len(change))
