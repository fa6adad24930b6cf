"""Moments: the sums that they are, however the rows are cut up and wherever their means lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.moments import Gatherer, Moments, features
from onnxdecomp.fitting.quadratic_loss import as_rows
from tests.builders.moments import LAYERS, correlated, gathered

FEW = settings(max_examples=30)


def by_hand(rows: Array, wanted: Array) -> Moments:
    g, n, _ = rows.shape
    y = wanted.reshape(n, g, -1).swapaxes(0, 1)
    xt, yt = rows.swapaxes(1, 2), y.swapaxes(1, 2)
    return Moments(n, xt @ rows, yt @ rows, rows.sum(1), wanted.sum(0), np.square(wanted).sum(0))


def check_equal(found: Moments, expected: Moments, tolerance: float = 1e-11) -> None:
    assert found.count == expected.count
    for name in ("xx", "yx", "x", "y", "yy"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=tolerance * max(1.0, np.abs(theirs).max()), rtol=0)


@FEW
@given(
    groups=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    parts=st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any),
    shift=st.sampled_from([0.0, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_sums_of_all_parts(
    groups: int, sizes: tuple[int, int], parts: list[int], shift: float, seed: int
) -> None:
    d, t = sizes
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((groups, sum(parts), d)) + shift
    wanted = rng.standard_normal((sum(parts), groups * t)) - shift
    gatherer = Gatherer(groups, groups * t, d)
    place = 0
    for count in parts:
        gatherer.add(rows[:, place : place + count], wanted[place : place + count])
        place += count
    check_equal(gatherer.moments(), by_hand(rows, wanted))
    check_equal(gatherer.moments(), by_hand(rows, wanted))  # asking twice changes nothing


def test_moments_add_up() -> None:
    rng = np.random.default_rng(0)
    rows, wanted = rng.standard_normal((2, 9, 3)) + 5, rng.standard_normal((9, 4)) + 7
    halves = []
    for part in (slice(0, 4), slice(4, 9)):
        gatherer = Gatherer(2, 4, 3)
        gatherer.add(rows[:, part], wanted[part])
        halves.append(gatherer.moments())
    check_equal(halves[0] + halves[1], by_hand(rows, wanted))


def test_nothing_gathered() -> None:
    moments = Gatherer(2, 4, 3).moments()
    assert moments.count == 0
    assert not moments.xx.any()


@pytest.mark.parametrize("shift", [1e2, 1e4])
def test_a_large_mean_does_not_drown_the_variance(shift: float) -> None:
    """In float32, sums of squares around zero would be wrong by more than the variance itself."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((1, 400, 5)) + shift).astype(np.float32)
    wanted = (rows[0] @ rng.standard_normal((5, 2))).astype(np.float32)
    gatherer = Gatherer(1, 2, 5)
    for part in range(0, 400, 100):
        gatherer.add(rows[:, part : part + 100], wanted[part : part + 100])
    found = gatherer.moments()
    covariance = found.xx[0] / 400 - np.outer(found.x[0], found.x[0]) / 400**2
    exact = np.cov(rows[0].astype(np.float64).T, bias=True)
    np.testing.assert_allclose(covariance, exact, atol=1e-5 * np.trace(exact))
    cross = found.yx[0] / 400 - np.outer(found.y, found.x[0]) / 400**2
    y, x = (a.astype(np.float64) - a.mean(0, dtype=np.float64) for a in (wanted, rows[0]))
    np.testing.assert_allclose(cross, y.T @ x / 400, atol=1e-5 * np.abs(y.T @ x).max() / 400)


def test_the_length_of_a_row() -> None:
    found = {name: features(layer) for name, layer in LAYERS.items()}
    assert found["conv2d grouped"] == 4 * 3 * 2
    assert found["transposed"] == 8 * 3 * 3
    assert found["linear"] == 18


@pytest.mark.parametrize("kind", LAYERS)
def test_what_a_layer_makes_follows_from_the_moments_of_its_rows(kind: str) -> None:
    layer = LAYERS[kind]
    rows = correlated(layer, 60)
    alone = Gatherer(layer.groups, 0, features(layer))
    alone.add(rows, np.zeros((60, 0)))
    found = alone.moments().of_layer(as_rows(layer.weight, layer), layer.bias)
    check_equal(found, gathered(layer, rows))
