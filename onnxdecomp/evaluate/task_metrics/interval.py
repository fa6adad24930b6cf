"""The 95 % interval of a difference between two models that were measured on the same samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.evaluate.task_metrics.base import Score

_RESAMPLES = 2000
"""Draws of the bootstrap where a draw is a sum."""

_COSTLY = 400
"""Draws where the metric is computed anew for each."""

_ONCE = 1 << 22
"""Numbers that are drawn at once."""

_Z = 1.959964
"""The normal distribution's 97.5 % quantile."""


def interval(before: Score, after: Score) -> tuple[float, float] | None:
    """What holds the change of a metric, after - before, 19 times in 20; None where nothing tells.

    In pairs, as both models were measured on the same samples. Of right and wrong answers it is that of
    Bonett and Price (2012), which is not too narrow where few samples change, or none; of other numbers of
    single samples, and of metrics that can be computed on drawn samples, the bootstrap's (Efron 1979).
    """
    one, two = before.samples, after.samples
    if one is not None and two is not None and len(one) == len(two) > 1:
        if before.weights is None and after.weights is None:
            if all(np.isin(scores, (0, 1)).all() for scores in (one, two)):
                return _answers(one, two)
            return _means(two - one, np.ones(len(one)))
        weights = before.weights
        if weights is not None and after.weights is not None and np.array_equal(weights, after.weights):
            return _means(two - one, weights)
        return None
    first, second = before.of, after.of
    if first is not None and second is not None and before.units == after.units > 1:
        return _drawn(lambda places: second(places) - first(places), before.units)
    return None


def _answers(before: Array, after: Array) -> tuple[float, float]:
    lost, won = (float(np.sum(one > other)) for one, other in ((before, after), (after, before)))
    n = len(before)
    p, q = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = float(_Z * np.sqrt((p + q - (p - q) ** 2) / (n + 2)))
    return max(-1.0, q - p - half), min(1.0, q - p + half)


def _means(change: Array, weights: Array) -> tuple[float, float]:
    """Of a sum over a sum, by draws of samples."""
    count = len(change)
    draw = np.random.default_rng(0)
    found = []
    for start in range(0, _RESAMPLES, step := max(1, _ONCE // count)):
        places = draw.integers(0, count, (min(step, _RESAMPLES - start), count))
        found.append(change[places].sum(1) / np.maximum(weights[places].sum(1), 1e-300))
    return _middle(np.concatenate(found))


def _drawn(change: Callable[[Array], float], units: int) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    return _middle(np.array([change(draw.integers(0, units, units)) for _ in range(_COSTLY)]))


def _middle(found: Array) -> tuple[float, float]:
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)
