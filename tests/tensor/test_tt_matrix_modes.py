from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.errors import UsageError
from onnxdecomp.tensor.tt_matrix_modes import (
    balanced_factors,
    fits,
    matrix_modes,
    most_padded,
    padded_factors,
    parse_modes,
    sizes,
)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 3000), count=st.integers(1, 4))
def test_balanced_factors(n: int, count: int) -> None:
    factors = balanced_factors(n, count)
    assert len(factors) == count
    assert math.prod(factors) == n
    assert list(factors) == sorted(factors, reverse=True)
    if count == 2:
        assert factors[0] == min(d for d in range(1, n + 1) if n % d == 0 and d * d >= n)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 30000), count=st.integers(2, 4))
def test_padding_is_small_and_pays(n: int, count: int) -> None:
    factors, exact = padded_factors(n, count), balanced_factors(n, count)
    assert n <= math.prod(factors) <= most_padded(n) <= 1.125 * n
    assert list(factors) == sorted(factors, reverse=True)
    if factors != exact:
        assert 1.5 * sum(factors) <= sum(exact)


def test_which_dimensions_are_padded() -> None:
    for n, count, factors in (
        (784, 3, (14, 8, 7)),
        (1000, 3, (10, 10, 10)),
        (25088, 3, (32, 28, 28)),
        (769, 3, (11, 10, 7)),  # 770
        (769, 2, (35, 22)),
        (1021, 3, (16, 8, 8)),  # 1024
        (13, 2, (7, 2)),  # 14
        (7, 2, (7, 1)),  # 8 were more than an eighth more
        (625, 3, (25, 5, 5)),  # 630 = 10 x 9 x 7 would not be 1.5 times better
    ):
        assert padded_factors(n, count) == factors, n


def test_matrix_modes() -> None:
    assert matrix_modes(784, 625, 2) == ((28, 25), (28, 25))
    assert matrix_modes(1000, 512, 3) == ((10, 8), (10, 8), (10, 8))
    assert matrix_modes(769, 512, 3) == ((11, 8), (10, 8), (7, 8))
    assert matrix_modes(12, 7, 2) == ((4, 1), (3, 7))
    assert sizes(matrix_modes(769, 512, 3)) == (770, 512)


def test_modes_fit_with_a_little_padding() -> None:
    modes = parse_modes("4x5x5:3x4x1")
    assert fits(modes, 100, 12)
    assert fits(modes, 89, 11)
    assert not fits(modes, 88, 11)
    assert not fits(modes, 101, 12)
    assert not fits(modes, 100, 13)


def test_parse_modes() -> None:
    assert parse_modes("4x7x4x7:5x5x5x5") == ((4, 5), (7, 5), (4, 5), (7, 5))
    for text in ("4x7", "4x7:5", "4:5", "ax7:5x5", "0x7:5x5", "4x7:5x5:1x1", ""):
        with pytest.raises(UsageError, match="tt: shape"):
            parse_modes(text)
