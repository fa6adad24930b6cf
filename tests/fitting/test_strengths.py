"""Strengths of the shrinkage: tried until they are too strong."""

from __future__ import annotations

import math

import pytest

from onnxdecomp.fitting.strengths import tried


@pytest.mark.parametrize(
    ("losses", "count"),
    [
        ([5, 4, 3, 2, 1], 5),
        ([5, 3, 4, 1, 1], 3),  # what comes behind is not looked at
        ([1, 2, 0, 0, 0], 2),
        ([1, 1.004, 0.9, 2, 0], 4),  # hardly worse is no end
        ([math.nan, math.nan, 1, 1, 1], 5),
    ],
)
def test_until_one_is_worse_than_a_smaller_one(losses: list[float], count: int) -> None:
    strengths = [10.0**k for k in range(5)]
    found = list(tried(strengths, lambda own: losses[strengths.index(own)]))
    assert [strength for strength, _ in found] == strengths[:count]
