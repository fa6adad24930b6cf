"""Units exchanged for better ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.exchange import _swept, exchanged
from tests.fitting.test_unit_order import lost, reader


@pytest.mark.parametrize(
    "units",
    [np.arange(7)[None], np.repeat(np.arange(7), 3)[None], np.r_[np.arange(7), -1, -1, 2][None]],
    ids=["single", "kernels", "uneven"],
)
@pytest.mark.parametrize("kept", [2, 3, 5])
def test_a_bad_choice_becomes_as_good_as_the_best(units: Array, kept: int) -> None:
    readers = [reader(units), reader(units, 3)]
    losses = {some: lost(readers, list(some)) for some in itertools.combinations(range(7), kept)}
    worst = max(losses, key=lambda some: losses[some])
    found = exchanged(readers, 7, np.array(worst), shrinkage=0.0)
    assert losses[tuple(found.tolist())] <= 1.1 * min(losses.values()) + 1e-6


def test_the_best_choice_stays() -> None:
    one = [reader(np.arange(7)[None])]
    best = min(itertools.combinations(range(7), 3), key=lambda some: lost(one, list(some)))
    np.testing.assert_array_equal(exchanged(one, 7, np.array(best), shrinkage=0.0), best)


def test_blocks_keep_their_numbers() -> None:
    one = [reader(np.arange(12).reshape(2, 6))]
    found = exchanged(one, 12, np.array([0, 1, 2, 6, 7, 8]), blocks=2, shrinkage=0.0)
    assert sum(found < 6) == 3
    assert lost(one, list(found)) <= lost(one, [0, 1, 2, 6, 7, 8])


@pytest.mark.parametrize("kept", [0, 7])
def test_nothing_to_exchange(kept: int) -> None:
    one = [reader(np.arange(7)[None])]
    np.testing.assert_array_equal(exchanged(one, 7, np.arange(kept), shrinkage=1e-3), np.arange(kept))


@pytest.mark.parametrize(
    "units",
    [np.arange(7)[None], np.repeat(np.arange(7), 3)[None], np.r_[np.arange(7), -1, -1, 2][None]],
    ids=["single", "kernels", "uneven"],
)
def test_what_would_be_is_what_comes_of_a_sweep(units: Array) -> None:
    (part,) = _swept(reader(units), 1e-3)
    part.sweep(np.isin(part.units, [-1, 0, 3, 4]))
    foreseen = part.scores_with(2, 7)
    part.sweep(part.units == 2)
    others = [0, 1, 3, 4, 5, 6]
    np.testing.assert_allclose(foreseen[others], part.scores(7)[others], rtol=1e-7)
