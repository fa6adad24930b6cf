"""Units that stay, and readers fitted to what they leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.elimination import ReaderMoments
from onnxdecomp.fitting.select_units import left_features, refit_reader, select_units
from onnxdecomp.fitting.unit_order import unit_order
from tests.fitting.test_unit_order import RNG, gathered, outputs, rows

WEIGHT = RNG.normal(size=(1, 5, 12))
BIAS = RNG.normal(size=5)
UNITS = np.arange(12)[None]
SEEN = rows(4000, 12) + 0.5
"""What the reader sees in the original."""


def reader(
    seen: Array = SEEN, units: Array = UNITS, *, train: int = 3000, centred: bool = True
) -> ReaderMoments:
    """Sees these rows and should make of them what it made of the original's."""
    wanted = outputs(SEEN, WEIGHT) + (BIAS if centred else 0)
    first, rest = slice(0, train), slice(3000, None)
    train_rows, held_out = gathered(seen[:, first], wanted[first]), gathered(seen[:, rest], wanted[rest])
    return ReaderMoments(train_rows, held_out, WEIGHT, units, BIAS, centred)


@pytest.mark.parametrize("centred", [True, False])
def test_at_full_width_nothing_changes(centred: bool) -> None:
    found = select_units([reader(centred=centred)], 12, 12)
    np.testing.assert_array_equal(found.units, np.arange(12))
    np.testing.assert_array_equal(found.readers[0].weight, WEIGHT)
    assert found.readers[0].bias is BIAS
    assert found.loss == pytest.approx(0, abs=1e-6)
    assert found.held_out == pytest.approx(0, abs=1e-6)


def test_at_full_width_what_was_lost_before_is_made_up_for() -> None:
    found = select_units([reader(SEEN * np.linspace(0.5, 1.5, 12) + 0.3)], 12, 12, shrinkages=(0.0, 0.1))
    assert found.loss < 1e-6
    assert found.readers[0].shrinkage == 0.0
    assert not np.allclose(found.readers[0].weight, WEIGHT, atol=0.1)


@pytest.mark.parametrize("centred", [True, False])
def test_what_stays_is_fitted_by_least_squares(centred: bool) -> None:
    one = reader(centred=centred)
    found = select_units([one], 12, 7, shrinkages=(0.0,))
    (fitted,) = found.readers
    assert list(found.units) == sorted(found.units)
    np.testing.assert_array_equal(fitted.features[0], found.units)
    x, y = SEEN[0][:, found.units], outputs(SEEN, WEIGHT) + (BIAS if centred else 0)
    system = np.concatenate([x, np.ones((len(x), 1))], axis=1) if centred else x
    best = np.linalg.lstsq(system, y, rcond=None)[0].T
    np.testing.assert_allclose(fitted.weight[0], best[:, :7], atol=1e-3)
    assert fitted.bias is not None
    np.testing.assert_allclose(fitted.bias, best[:, 7] if centred else BIAS, atol=1e-3)
    energy = np.sum((y - y.mean(0) if centred else y) ** 2)
    assert fitted.loss == pytest.approx(np.sum((y - system @ best.T) ** 2) / energy, rel=1e-3)
    assert fitted.held_out is not None
    assert fitted.held_out > fitted.loss / 2


def test_held_out_rows_forbid_what_was_learnt_by_heart() -> None:
    noise = RNG.normal(size=SEEN.shape) * 0.3
    free, few = reader(SEEN + noise), reader(SEEN + noise, train=9)
    assert select_units([free], 12, 8, shrinkages=(0.0, 1.0)).readers[0].shrinkage == 0.0
    assert select_units([few], 12, 8, shrinkages=(0.0, 1.0)).readers[0].shrinkage != 0.0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), size=st.floats(0.01, 0.03), told=st.sampled_from([0.15, 1.0]))
def test_an_input_that_hardly_varies_gets_a_huge_number_only_where_that_pays(
    seed: int, size: float, told: float
) -> None:
    """It tells a little of the unit that goes, or all of it."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(1, 4000, 12))
    seen[..., 11] = size * (told * seen[..., 0] + rng.normal(size=4000) * (1 - told))
    weight = rng.uniform(0.5, 1, (1, 5, 12)) * rng.choice([-1, 1], (1, 5, 12))
    wanted = outputs(seen, weight)
    train, held_out = (gathered(seen[:, part], wanted[part]) for part in (slice(0, 3000), slice(3000, None)))
    one = ReaderMoments(train, held_out, weight, UNITS, centred=False)
    fitted = refit_reader(one, np.arange(1, 12))
    largest = abs(fitted.weight).max() / abs(weight).max()
    assert largest > 10 if told == 1 else largest <= 6


def test_without_held_out_rows_the_first_strength_is_taken() -> None:
    alone = replace(reader(), held_out=None)
    found = select_units([alone], 12, 8, shrinkages=(0.01, 0.1))
    assert found.readers[0].shrinkage == 0.01
    assert found.held_out is None


def test_what_belongs_to_no_unit_stays() -> None:
    units = np.array([[0, 0, 1, -1, 1, 2, 2, 3, -1, 3, 4, 4]])
    (fitted,) = select_units([reader(units=units)], 5, 2).readers
    assert {3, 8} <= set(fitted.features[0])
    assert fitted.features.shape == (1, 6)


def test_several_readers_share_the_units() -> None:
    """One reads the first half of the features, the other the second."""
    wanted = [outputs(SEEN, WEIGHT * mask) for mask in (UNITS < 6, UNITS >= 6)]
    pair = [
        ReaderMoments(gathered(SEEN, y), None, WEIGHT * mask, UNITS)
        for y, mask in zip(wanted, (UNITS < 6, UNITS >= 6), strict=True)
    ]
    found = select_units(pair, 12, 6, blocks=2)
    assert sum(found.units < 6) == 3
    assert len(found.readers) == 2
    assert found.loss == pytest.approx(unit_order(pair, 12, blocks=2).losses[6], rel=0.05)


def test_units_given_are_taken() -> None:
    fitted = refit_reader(reader(), np.array([1, 2, 5]))
    np.testing.assert_array_equal(fitted.features, [[1, 2, 5]])
    assert fitted.weight.shape == (1, 5, 3)


def test_groups_must_be_left_alike() -> None:
    units = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(left_features(units, np.array([0, 3, 5, 6])), [[0, 3], [1, 2]])
    with pytest.raises(ValueError, match="1 to 3 features"):
        left_features(units, np.array([0, 4, 5, 6]))


@pytest.mark.parametrize(("kept", "blocks"), [(0, 1), (13, 1), (5, 2)])
def test_widths_that_cannot_be(kept: int, blocks: int) -> None:
    with pytest.raises(ValueError, match="units"):
        select_units([reader()], 12, kept, blocks=blocks)


def test_few_rows_have_held_out_ones_choose_how_far_to_trust_them() -> None:
    """Of as many rows as features the fit learns the noise; the choice is the better of two on others."""
    noisy = reader(SEEN + RNG.normal(size=SEEN.shape) * 0.5, train=20)
    found = select_units([noisy], 12, 4).held_out
    assert found is not None
    alone = [unit_order([noisy], 12, shrinkage=strength) for strength in (1e-3, 1e-1)]
    tried = [select_units([noisy], 12, 4, order=order).held_out or 0.0 for order in alone]
    assert found <= min(tried) * 1.01


def test_outputs_count_by_their_importance() -> None:
    """The first output reads the first six units, the others the rest: whose units stay is who counts."""
    weight = WEIGHT.copy()
    weight[0, 0, 6:], weight[0, 1:, :6] = 0.0, 0.0
    wanted = outputs(SEEN, weight)
    parts = [gathered(SEEN[:, at], wanted[at]) for at in (slice(0, 3000), slice(3000, None))]
    alike = ReaderMoments(parts[0], parts[1], weight, UNITS, np.zeros(5))
    first, others = (
        replace(alike, importance=np.array(count)) for count in ([1e6, 1, 1, 1, 1], [1e-6, 1, 1, 1, 1])
    )
    assert list(select_units([first], 12, 6).units) == list(range(6))
    assert list(select_units([others], 12, 6).units) == list(range(6, 12))
    np.testing.assert_array_equal(
        unit_order([replace(alike, importance=np.full(5, 4.0))], 12).order, unit_order([alike], 12).order
    )
    np.testing.assert_array_equal(select_units([first], 12, 12).readers[0].weight, weight)


def test_importance_does_not_change_what_is_fitted() -> None:
    alike = reader()
    other = replace(alike, importance=np.array([1e-3, 1, 2, 3, 4]))
    first, second = (refit_reader(one, np.arange(3, 12), shrinkages=(0.01,)) for one in (alike, other))
    np.testing.assert_allclose(first.weight, second.weight, atol=1e-9)
    assert first.bias is not None
    assert second.bias is not None
    np.testing.assert_allclose(first.bias, second.bias, atol=1e-9)
    assert first.loss != second.loss


@pytest.mark.parametrize("centred", [True, False])
def test_a_reader_that_is_left_with_nothing_gives_its_mean(centred: bool) -> None:
    one = reader(centred=centred)
    fitted = refit_reader(one, np.array([], dtype=np.int64))
    assert fitted.weight.shape == (1, 5, 0)
    assert fitted.loss == 1
    mean = outputs(SEEN, WEIGHT).mean(0) + BIAS
    assert fitted.bias is not None
    np.testing.assert_allclose(fitted.bias, mean if centred else BIAS)
