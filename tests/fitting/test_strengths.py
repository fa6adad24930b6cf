"""Strengths of the shrinkage: tried until they are too strong, and which is taken."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxdecomp.fitting.strengths import Trial, chosen, growth, tried

STRENGTHS = [10.0**k for k in range(5)]
INF = math.inf


@pytest.mark.parametrize(
    ("losses", "growths", "count"),
    [
        ([5, 4, 3, 2, 1], [1] * 5, 5),
        ([5, 3, 4, 1, 1], [1] * 5, 3),  # what comes behind is not looked at
        ([1, 2, 0, 0, 0], [1] * 5, 2),
        ([1, 1.004, 0.9, 2, 0], [1] * 5, 4),  # hardly worse is no end
        ([math.nan, math.nan, 1, 1, 1], [1] * 5, 5),
        ([1, 1.02, 1.03, 0, 0], [20, 10, 2, 1, 1], 3),  # the large number is still to be shrunk
        ([1, 1.02, 1.06, 0, 0], [20, 10, 9, 1, 1], 3),  # which may not cost as much
        ([-1e-9, -2e-9, 1, 0, 0], [1] * 5, 3),  # nothing is lost, up to rounding
    ],
)
def test_until_one_is_worse_than_a_smaller_one(losses: list[float], growths: list[float], count: int) -> None:
    trials = [Trial(*trial) for trial in zip(STRENGTHS, losses, growths, strict=True)]
    found = list(tried(STRENGTHS, lambda own: trials[STRENGTHS.index(own)]))
    assert [trial.strength for trial in found] == STRENGTHS[:count]


@pytest.mark.parametrize(
    ("losses", "growths", "unfitted", "place"),
    [
        ([3, 1, 2], [1, 1, 1], INF, 1),
        ([1, 1, 2], [1, 1, 1], INF, 1),  # as good, and stronger
        ([1, 1.04, 1.045], [20, 10, 9], 1.05, None),  # which has no large numbers
        ([1, 1.04, 1.045], [20, 10, 9], 1.06, 2),
        ([1, 1.004, 2], [1, 1, 1], INF, 0),
        ([1, 1.004, 2], [20, 1, 1], 1.012, None),  # the stronger is no better than the own weight
        ([-1e-9, 1e-9, 1], [1, 1, 1], INF, 0),
        ([1, 1.04, 1.045], [20, 3, 1], INF, 1),  # the first without far larger numbers
        ([1, 1.04, 1.045], [20, 10, 9], INF, 2),  # the least of those with them
        ([1, 1.06, 1.07], [20, 3, 1], INF, 0),  # where they are worth it they stay
        ([3, 1, 1.04], [1, 20, 5], INF, 2),  # a weaker one has none, but is worse
        ([math.nan, 1, 2], [1, 1, 1], INF, 1),
        ([1, 2, 3], [1, 1, 1], 1, None),
        ([math.nan] * 3, [1, 1, 1], INF, None),
    ],
)
def test_of_the_best_the_strongest_that_is_tame(
    losses: list[float], growths: list[float], unfitted: float, place: int | None
) -> None:
    trials = [Trial(*trial) for trial in zip(STRENGTHS, losses, growths, strict=False)]
    assert chosen(trials, unfitted) == (None if place is None else trials[place])


def test_growth_is_of_the_largest_beside_all() -> None:
    own = np.array([[1.0, -2.0]])
    assert growth(own * 7, own) == pytest.approx(1)
    assert growth(np.array([[2.0, -8.0]]), own) == pytest.approx(1.2)
    assert growth(np.array([[9.0, -1.0]]), own) == pytest.approx(1.35)
    assert growth(own, np.zeros((1, 2))) == 0


def test_growth_of_a_large_weight_is_found_piece_by_piece() -> None:
    own = np.ones((1 << 11, 1 << 10), np.float32)
    fitted = own.copy()
    fitted[-1, -1] = -3
    assert growth(fitted, own) == pytest.approx(3, rel=1e-5)
