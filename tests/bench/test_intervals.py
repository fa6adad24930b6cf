"""Paired differences: the interval holds the truth about as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from bench.intervals import paired_difference


def test_interval_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        before = (rng.random(400) < 0.9).astype(float)
        flips = rng.random(400) < 0.05
        after = np.where(flips, 1 - before, before)
        found = paired_difference(before, after)
        truth = 0.05 * (0.1 - 0.9)
        covered += found.low <= truth <= found.high
    assert 50 <= covered <= 60


def test_no_difference_has_an_interval_of_nothing() -> None:
    scores = np.array([1.0, 0.0, 1.0])
    found = paired_difference(scores, scores)
    assert (found.mean, found.low, found.high, found.n) == (0, 0, 0, 3)


def test_scores_of_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference(np.ones(3), np.ones(4))


def test_the_text_says_the_interval() -> None:
    found = paired_difference(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0]))
    assert found.text(100).startswith("-25.00 (")
