"""The order of a channel's units, against brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.elimination import ReaderMoments, even_importance, inverse_of
from onnxdecomp.fitting.moments import Gatherer, Moments
from onnxdecomp.fitting.unit_order import first_units, unit_order

RNG = np.random.default_rng(0)


def gathered(seen: Array, wanted: Array) -> Moments:
    """Moments of rows [g, n, D] and wanted outputs [n, T]."""
    gather = Gatherer(seen.shape[0], wanted.shape[1], seen.shape[2])
    gather.add(seen, wanted)
    return gather.moments()


def outputs(rows: Array, weight: Array) -> Array:
    return np.concatenate(list(rows @ weight.swapaxes(1, 2)), axis=1)


def rows(count: int, features: int, groups: int = 1, seed: int = 1) -> Array:
    """Rectified, correlated features, the first of which vary most."""
    mix = np.random.default_rng(seed).normal(size=(features, features))
    mix *= 0.8 ** np.arange(features)[:, None]
    return np.maximum(RNG.normal(size=(groups, count, features)) @ mix, 0)


def reader(units: Array, outputs_each: int = 5, count: int = 2000, held_out: int = 0) -> ReaderMoments:
    """A reader of features of these units [g, D] which nothing has changed so far."""
    groups, features = units.shape
    weight = RNG.normal(size=(groups, outputs_each, features))
    halves = [
        gathered(x, outputs(x, weight)) if n else None
        for n in (count, held_out)
        for x in [rows(n, features, groups)]
    ]
    assert halves[0] is not None
    return ReaderMoments(halves[0], halves[1], weight, units)


def lost(readers: list[ReaderMoments], kept: list[int]) -> float:
    """What the best weights on the features of these units lose, by normal equations of the raw moments."""
    total = 0.0
    for one in readers:
        m, explained = one.train, 0.0
        energy = float(np.sum(m.yy / m.count - (m.y / m.count) ** 2))
        y = m.y.reshape(len(m.xx), -1)
        for g, units in enumerate(one.units):
            at = np.flatnonzero(np.isin(units, [-1, *kept]))
            mean = m.x[g][at] / m.count
            second = m.xx[g][np.ix_(at, at)] / m.count - np.outer(mean, mean)
            cross = m.yx[g][:, at] / m.count - np.outer(y[g] / m.count, mean)
            explained += float(np.sum(cross * (cross @ np.linalg.pinv(second))))
        total += (energy - explained) / energy
    return total


@pytest.mark.parametrize(
    "units",
    [
        np.arange(7)[None],
        np.repeat(np.arange(7), 3)[None],
        np.r_[np.arange(7), -1, -1, 2][None],
        np.arange(8).reshape(2, 4),
    ],
    ids=["single", "kernels", "uneven", "groups"],
)
def test_losses_are_those_of_brute_force(units: Array) -> None:
    """Exact for what stays, and within a third above the best of all subsets."""
    width = 1 + int(units.max())
    readers = [reader(units), reader(units, 3)]
    found = unit_order(readers, width, shrinkage=0.0)
    for kept in range(width + 1):
        own = lost(readers, list(found.order[:kept]))
        assert found.losses[kept] == pytest.approx(own, rel=1e-3, abs=1e-5)
        best = min(lost(readers, list(some)) for some in itertools.combinations(range(width), kept))
        assert own <= 1.34 * best + 1e-5
    assert found.held_out is None


def test_many_at_once_are_as_good_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one = reader(np.arange(96)[None], 24)
    many = unit_order([one], 96)
    monkeypatch.setattr("onnxdecomp.fitting.unit_order._AT_ONCE", 96)
    single = unit_order([one], 96)
    np.testing.assert_allclose(many.losses, single.losses, rtol=0.05, atol=1e-3)
    assert sorted(many.order) == list(range(96))


@pytest.mark.parametrize("shrinkage", [0.0, 1e-3, 1.0])
def test_less_is_lost_with_more_units(shrinkage: float) -> None:
    found = unit_order([reader(np.arange(40)[None], held_out=900)], 40, shrinkage=shrinkage)
    assert found.held_out is not None
    for losses in (found.losses, found.held_out):
        assert losses.shape == (41,)
        assert (np.diff(losses) <= 0).all()
        assert losses[0] == pytest.approx(1, rel=1e-2)
        assert losses[-1] == pytest.approx(0, abs=1e-4)


def test_equally_many_stay_of_each_block() -> None:
    """The first block's units matter least; as many of them stay nonetheless."""
    one = reader(np.arange(24)[None])
    weight = one.weight * np.repeat([0.01, 1, 1], 8)
    x = rows(2000, 24)
    one = ReaderMoments(gathered(x, outputs(x, weight)), None, weight, one.units)
    blocked, free = unit_order([one], 24, blocks=3), unit_order([one], 24)
    for kept in range(0, 25, 3):
        assert (np.bincount(blocked.order[:kept] // 8, minlength=3) == kept // 3).all()
    assert (np.bincount(free.order[:12] // 8, minlength=3) != 4).any()
    with pytest.raises(ValueError, match="5 blocks"):
        unit_order([one], 24, blocks=5)


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_first_units_are_those_of_the_order(blocks: int) -> None:
    one = reader(np.arange(48)[None], 24, held_out=500)
    order = unit_order([one], 48, blocks=blocks).order
    for kept in (3, 24, 27, 45, 48):
        found = first_units([one], 48, kept, blocks=blocks)
        assert found.tolist() == sorted(order[:kept])


def test_one_of_two_equal_units_goes_for_nothing() -> None:
    x = rows(2000, 6)
    twice = np.concatenate([x, x], axis=2)
    weight = RNG.normal(size=(1, 4, 12))
    one = ReaderMoments(gathered(twice, outputs(twice, weight)), None, weight, np.arange(12)[None])
    found = unit_order([one], 12, shrinkage=1e-6)
    assert found.losses[6] < 1e-5
    assert found.losses[5] > 1e-4
    assert sorted(found.order[:6] % 6) == list(range(6))


def test_more_outputs_than_features() -> None:
    """The basis of the outputs is that of the features' images; the order is that of all outputs."""
    wide = reader(np.arange(6)[None], 40, held_out=500)
    found = unit_order([wide], 6, shrinkage=1e-3)
    for kept in range(7):
        assert found.losses[kept] == pytest.approx(lost([wide], list(found.order[:kept])), rel=0.02, abs=1e-4)
    assert found.held_out is not None
    np.testing.assert_allclose(found.held_out, found.losses, rtol=0.3, atol=1e-3)


def test_fewer_rows_than_features() -> None:
    """Sums in float32 leave the second moments indefinite."""
    x = rows(20, 50).astype(np.float32)
    weight = RNG.normal(size=(1, 4, 50))
    few = ReaderMoments(gathered(x, outputs(x, weight).astype(np.float32)), None, weight, np.arange(50)[None])
    found = unit_order([few], 50, shrinkage=0.0)
    assert np.isfinite(found.losses).all()
    assert sorted(found.order) == list(range(50))


def test_large_inverses_go_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(200, 23)[0]
    second = x.T @ x
    monkeypatch.setattr("onnxdecomp.fitting.elimination.LONG", 4)
    np.testing.assert_allclose(inverse_of(second), np.linalg.inv(second), rtol=1e-6)
    second[20, 20] = -1.0
    assert (np.linalg.eigvalsh(inverse_of(second)) > 0).all()


def test_a_unit_that_nobody_reads_goes_first() -> None:
    found = unit_order([reader(np.array([[0, 1, 3, 4]]))], 5)
    assert found.order[-1] == 2
    assert found.losses[4] == pytest.approx(0, abs=1e-6)


def test_constant_outputs_are_judged_by_the_weight() -> None:
    still = np.ones((1, 100, 4))
    weight = np.array([[[1.0, 2.0, 0.0, 4.0]]])
    one = ReaderMoments(gathered(still, outputs(still, weight)), None, weight, np.arange(4)[None])
    found = unit_order([one], 4)
    assert list(found.order) == [3, 1, 0, 2]
    np.testing.assert_allclose(found.losses, np.array([21, 5, 1, 0, 0]) / 21, atol=1e-6)


def test_outputs_that_count_by_their_own_variance() -> None:
    """An output of a large variance no longer decides alone."""
    x = rows(2000, 8)
    weight = np.zeros((1, 4, 8))
    weight[0, 0, :4], weight[0, 1, 4:], weight[0, 2, 4:6] = 100.0, 1.0, 1.0
    one = ReaderMoments(gathered(x, outputs(x, weight)), None, weight, np.arange(8)[None])
    importance = even_importance(one.train)
    scaled = replace(one, importance=importance).scaled().train
    variances = scaled.yy / scaled.count - (scaled.y / scaled.count) ** 2
    np.testing.assert_allclose(variances[:3], variances[0], rtol=1e-6)
    assert np.isfinite(importance).all()
    assert set(unit_order([one], 8).order[:4]) == {0, 1, 2, 3}
    assert set(unit_order([replace(one, importance=importance)], 8).order[:4]) != {0, 1, 2, 3}
