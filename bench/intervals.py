"""A paired difference with its 95 % interval: two models on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxdecomp.core.layer import Array

NOT_MEASURED = "interval not measured"
"""What a table says of a difference whose samples an earlier run did not keep apart."""

_RESAMPLES = 4000
_Z = 1.959964
"""The normal distribution's 97.5 % quantile."""


@dataclass(frozen=True)
class Difference:
    """The mean of after - before over n samples, and the interval that holds it 19 times in 20.

    Attributes:
        mean, low, high: In the unit of the scores.
        n: Samples.
        lost, won: Of scores of 0 and 1, how many samples went from 1 to 0 and from 0 to 1 (what McNemar 1947
            counts); None of others.
    """

    mean: float
    low: float
    high: float
    n: int
    lost: int | None = None
    won: int | None = None

    def text(self, scale: float = 1.0, digits: int = 2, unit: str = "") -> str:
        """ "-0.48 points (-1.04 to +0.08)"."""
        mean, low, high = (f"{scale * value:+.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean}{unit} ({low} to {high})"

    def to_json(self) -> dict[str, float]:
        """What `shown` reads."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def paired_difference(before: Array, after: Array) -> Difference:
    """What a model changes in a score, with its interval.

    Of right and wrong answers the interval is that of Bonett and Price (2012), which is not too narrow where
    few samples change, or none; of other scores it is found by bootstrap over samples (Efron 1979).

    Args:
        before, after: [n] scores of the same samples: 0 or 1 for a right answer, a PSNR, ….

    Raises:
        ValueError: The two are of different samples.
    """
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise ValueError(f"scores of {before.shape} and {after.shape} samples are no pairs")
    if all(np.isin(scores, (0, 1)).all() for scores in (before, after)):
        lost, won = (int(np.sum(one > other)) for one, other in ((before, after), (after, before)))
        return answers_changed(len(before), lost, won)
    change = after.astype(np.float64) - before
    if np.ptp(change) == 0:  # every resample is the same
        return Difference(float(change[0]), float(change[0]), float(change[0]), len(change))
    import scipy.stats  # a second, which most of bench/ does not need

    found = scipy.stats.bootstrap(
        (change,), np.mean, n_resamples=_RESAMPLES, method="percentile", batch=100, rng=0
    ).confidence_interval
    return Difference(float(change.mean()), float(found.low), float(found.high), len(change))


def paired_rate(before: Array, after: Array, of: Array) -> Difference:
    """What a model changes in a rate of errors, all errors over all there is, with its interval.

    Args:
        before, after: [n] errors of the same samples.
        of: [n], what they are errors of: words, characters.

    Raises:
        ValueError: They are of different samples.
    """
    if not before.shape == after.shape == of.shape or before.ndim != 1 or not before.size:
        raise ValueError(f"errors of {before.shape}, {after.shape} and {of.shape} samples are no pairs")
    more = after.astype(np.float64) - before
    drawn = np.random.default_rng(0).integers(0, len(of), (_RESAMPLES, len(of)))
    low, high = np.percentile(more[drawn].sum(1) / of[drawn].sum(1), (2.5, 97.5))
    return Difference(float(more.sum() / of.sum()), float(low), float(high), len(of))


def answers_changed(n: int, lost: int, won: int) -> Difference:
    """The change of accuracy over n samples, of which some were right before alone, or after alone."""
    p, q = ((count + 1) / (n + 2) for count in (lost, won))
    half = _Z * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
    low, high = max(-1.0, q - p - half), min(1.0, q - p + half)
    return Difference((won - lost) / n, float(low), float(high), n, lost, won)


def shown(
    mean: float, found: Mapping[str, Any] | None, *, scale: float = 1.0, digits: int = 2, unit: str = ""
) -> str:
    """A difference as tables show it: with the interval that was recorded, else saying that there is none.

    Args:
        mean: The difference.
        found: What `Difference.to_json` gave, or None.
        scale, digits, unit: As for `Difference.text`.
    """
    if found is None:
        return f"{scale * mean:+.{digits}f}{unit} ({NOT_MEASURED})"
    return Difference(**found).text(scale, digits, unit)
