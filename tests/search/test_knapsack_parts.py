"""The parts of the allocation: a wrong one may cost time or a bound where the whole is still right."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from onnxdecomp.search import knapsack
from onnxdecomp.search.knapsack import Floats

Points = list[tuple[int, ...]]


def points(columns: int, least: int = 0) -> st.SearchStrategy[Points]:
    """Rows of few different whole numbers: many equals."""
    return st.lists(st.tuples(*[st.integers(0, 5)] * columns), min_size=least, max_size=12)


def cost_and_loss(rows: Points, budgets: int) -> tuple[Floats, Floats]:
    table = np.array(rows, float).reshape(-1, budgets + 1)
    return table[:, :-1], table[:, -1]


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


@given(points(2))
def test_with_one_budget_what_another_beats_is_dropped(rows: Points) -> None:
    kept = [rows[row] for row in knapsack._undominated(*cost_and_loss(rows, 1))]
    front = {row for row in rows if not any(beats(other, row) for other in rows if other != row)}
    assert sorted(kept) == sorted(front)  # each once


@given(points(3))
def test_with_more_budgets_what_is_dropped_has_a_better_one(rows: Points) -> None:
    kept = knapsack._undominated(*cost_and_loss(rows, 2))
    left = [rows[row] for row in kept]
    assert len(set(kept)) == len(kept)
    assert all(any(beats(one, row) for one in left) for row in rows)
    # In the order of costs those that the one before does not beat.
    ordered = [(math.inf,) * 3, *sorted(rows)]
    assert left == [row for before, row in pairwise(ordered) if not beats(before, row)]


@pytest.mark.parametrize("budgets", [1, 2])
@given(data=st.data(), most=st.integers(1, 12))
def test_a_cell_of_costs_keeps_its_best_bound(budgets: int, data: st.DataObject, most: int) -> None:
    rows = data.draw(points(budgets + 1, least=1))
    cost, bound = cost_and_loss(rows, budgets)
    kept = knapsack._thinned(cost, bound, most)
    assert kept.tolist() == sorted(set(kept.tolist()))
    if len(rows) <= most:
        assert kept.size == len(rows)
        return
    assert 1 <= kept.size <= most
    a_side = math.floor(most ** (1 / budgets) + 1e-9)
    wide = np.maximum(cost.max(axis=0) - cost.min(axis=0), 1e-9)
    cells: dict[tuple[int, ...], list[float]] = {}
    for place, value in zip((cost - cost.min(axis=0)) / wide, bound, strict=True):
        cells.setdefault(tuple(min(int(p * a_side), a_side - 1) for p in place), []).append(value)
    assert sorted(bound[kept]) == sorted(min(values) for values in cells.values())


@given(points(2, least=1))
def test_sums_of_the_rows_from_here(rows: Points) -> None:
    values = np.array(rows, float)
    sums = knapsack._from_here(values)
    assert sums.tolist() == [values[at:].sum(axis=0).tolist() for at in range(len(rows) + 1)]


@given(st.integers(1, 2), st.data())
def test_dominated_options(budgets: int, data: st.DataObject) -> None:
    rows = data.draw(points(budgets + 1, least=1))
    fits = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    (found,) = knapsack._dominated(np.array([rows], float), np.array([fits]))
    for at, row in enumerate(rows):
        better = [other for k, other in enumerate(rows) if fits[k] and beats(other, row) and other != row]
        twin = any(fits[k] and rows[k] == row for k in range(at))
        if fits[at]:
            assert found[at] == (bool(better) or twin)


def problem_of(seed: int, budgets: int) -> knapsack._Problem:
    """Three items with four options, of which some are closed; the first costs nothing and is open."""
    rng = np.random.default_rng(seed)
    cost, loss = rng.integers(0, 9, (3, 4, budgets)) / 16, rng.integers(0, 9, (3, 4)).astype(float)
    cost[:, 0] = 0
    is_open = rng.random((3, 4)) < 0.8
    is_open[:, 0] = True
    return knapsack._Problem(cost, loss, is_open)


def least_losses(problem: knapsack._Problem) -> Floats:
    """Of each option: the least loss of all choices with it within the budgets; infinite without one."""
    least = np.full(problem.loss.shape, np.inf)
    items = np.arange(len(least))
    for choice in np.ndindex(*[problem.loss.shape[1]] * len(least)):
        picked = items, np.array(choice)
        if problem.open[picked].all() and (problem.cost[picked].sum(axis=0) <= 1).all():
            least[picked] = np.minimum(least[picked], problem.loss[picked].sum())
    return least


@pytest.mark.parametrize("budgets", [1, 2, 4])
@settings(max_examples=25)
@given(seed=st.integers(0, 999))
def test_the_relaxation_bounds_every_choice(budgets: int, seed: int) -> None:
    problem = problem_of(seed, budgets)
    relaxed = knapsack._relax(problem)
    assert relaxed is not None
    least = least_losses(problem)
    assert relaxed.bound <= least.min()
    assert (relaxed.least_with <= least).all()
    assert (relaxed.least_with.min(axis=1) >= relaxed.bound - 1e-9).all()
    # The first prices are the dual solution: of all prices they bound highest, as high as mixed options go.
    assert knapsack._prices(problem) == pytest.approx(relaxed.prices[0])
    assert relaxed.bound == pytest.approx(mixed(problem), abs=1e-9)


def mixed(problem: knapsack._Problem) -> float:
    """The least loss where an item may take shares of its options."""
    rows, _ = np.nonzero(problem.open)
    one_each = (rows == np.arange(len(problem.loss))[:, None]).astype(float)
    shares = problem.cost[problem.open].T
    solved = linprog(
        problem.loss[problem.open], shares, np.ones(len(shares)), one_each, np.ones(len(one_each))
    )
    assert solved.fun is not None
    return float(solved.fun)


def test_nothing_is_relaxed_where_not_even_mixed_options_keep_the_budgets() -> None:
    each_in_one_budget = np.tile(np.eye(2), (3, 1, 1))
    problem = knapsack._Problem(each_in_one_budget, np.ones((3, 2)), np.ones((3, 2), bool))
    assert knapsack._relax(problem) is None
    assert knapsack._relax(knapsack._Problem(each_in_one_budget / 2, problem.loss, problem.open)) is not None


@settings(max_examples=25)
@given(seed=st.integers(0, 999), order=st.sampled_from(["core", "large"]))
def test_the_order_of_the_items(seed: int, order: Literal["core", "large"]) -> None:
    problem = problem_of(seed, 1)
    relaxed = knapsack._relax(problem)
    assert relaxed is not None
    items = knapsack._ordered(problem, relaxed, order).tolist()
    if order == "large":
        keys = [-max(problem.cost[item][problem.open[item]].ravel()) for item in range(3)]
    else:
        keys = []
        for charged in relaxed.charged[0]:
            cheapest, second, *_ = sorted(charged)
            keys.append(second - cheapest)
    assert items == sorted(range(3), key=lambda item: keys[item])


def test_an_item_with_one_option_comes_first_in_the_core() -> None:
    problem = knapsack._Problem(np.zeros((2, 1, 1)), np.ones((2, 1)), np.ones((2, 1), bool))
    relaxed = knapsack._relax(problem)
    assert relaxed is not None
    assert knapsack._ordered(problem, relaxed, "core").tolist() == [0, 1]
