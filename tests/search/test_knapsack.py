"""Allocation against trying every choice: never over a budget, never worse than it says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.search import knapsack as module
from onnxdecomp.search.knapsack import EXACT, SLACK, Allocation, Option, OutOfReach, allocate, allocate_loss

Items = list[list[Option]]

# Few different whole numbers: many ties, dominated options and budgets that are met exactly.
few = st.integers(0, 12).map(float)
# Over many orders of magnitude, as losses measured are; the sums of such are rounded.
scales = st.one_of(
    st.just(0.0), st.integers(-9, 6).flatmap(lambda e: st.floats(1, 10).map(lambda m: m * 10.0**e))
)


def items_of(number: st.SearchStrategy[float], budgets: int = 1) -> st.SearchStrategy[Items]:
    cost: st.SearchStrategy[float | tuple[float, ...]] = number
    if budgets > 1:
        cost = st.tuples(*[number] * budgets)
    return st.lists(st.lists(st.builds(Option, cost, number), min_size=1, max_size=5), max_size=5)


def every(items: Items, budgets: int = 1) -> list[tuple[tuple[float, ...], float]]:
    """The costs and the loss of every choice."""
    result = []
    for picked in itertools.product(*items):
        costs = [o.cost if isinstance(o.cost, tuple) else (o.cost,) for o in picked]
        sums = tuple(math.fsum(cost[d] for cost in costs) for d in range(budgets))
        result.append((sums, math.fsum(o.loss for o in picked)))
    return result


def within(cost: float, limit: float) -> bool:
    return cost <= limit + SLACK * abs(limit)


def check(items: Items, made: Allocation, best: float, value: float) -> None:
    """It is what its choice says, its bound holds, and it is the best where it says so."""
    picked = [options[index] for options, index in zip(items, made.choice, strict=True)]
    assert made.loss == math.fsum(option.loss for option in picked)
    assert made.bound <= best * (1 + EXACT)
    assert made.gap == value - made.bound
    assert value >= best * (1 - EXACT)
    if made.optimal:
        assert value <= best * (1 + EXACT)


@given(items_of(few), st.integers(-1, 40), st.integers(0, 9))
def test_whole_numbers(items: Items, limit: int, fixed: int) -> None:
    made = allocate(items, limit, fixed=fixed)
    possible = [loss for (cost,), loss in every(items) if cost + fixed <= limit]
    if not possible:
        assert isinstance(made, OutOfReach)
        assert made.least == (min(cost for (cost,), _ in every(items)) + fixed,)
        assert made.least[0] > limit
        return
    assert isinstance(made, Allocation)
    assert made.optimal
    assert made.cost <= limit
    assert made.loss == made.bound == min(possible)
    check(items, made, min(possible), made.loss)


@given(items_of(scales), st.floats(0, 1.1))
def test_numbers_of_many_sizes(items: Items, share: float) -> None:
    choices = every(items)
    lowest, highest = min(cost for (cost,), _ in choices), max(cost for (cost,), _ in choices)
    limit = lowest + share * (highest - lowest)
    made = allocate(items, limit)
    assert isinstance(made, Allocation)
    assert made.optimal
    assert within(made.cost, limit)
    check(items, made, min(loss for (cost,), loss in choices if within(cost, limit)), made.loss)


@given(st.integers(0, 2**32 - 1), st.integers(5, 25), st.integers(2, 12), st.floats(0.05, 0.8))
def test_against_a_table_of_all_costs(seed: int, count: int, options: int, share: float) -> None:
    # Too many choices to try them all, but few costs: the least loss for every cost, item by item.
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 40, (count, options))
    losses = (
        np.exp(-costs / 10) * rng.lognormal(0, 0.2, costs.shape) * 10.0 ** rng.integers(-3, 1, (count, 1))
    )
    limit = int(share * costs.max(axis=1).sum())
    least = np.zeros(limit + 1)
    for cost, loss in zip(costs, losses, strict=True):
        longer = np.full((options, limit + 1), np.inf)
        for index in range(options):
            longer[index, min(cost[index], limit + 1) :] = (
                least[: max(limit + 1 - cost[index], 0)] + loss[index]
            )
        least = longer.min(axis=0)
    rows = zip(costs.tolist(), losses.tolist(), strict=True)
    made = allocate([[Option(*pair) for pair in zip(*row, strict=True)] for row in rows], limit)
    if isinstance(made, OutOfReach):
        assert least[-1] == math.inf
        return
    assert made.optimal
    assert made.cost <= limit
    assert made.loss == pytest.approx(least[-1], rel=1e-9)


@given(items_of(scales), st.integers(0, 10_000))
def test_a_budget_that_one_choice_meets_exactly(items: Items, which: int) -> None:
    choices = every(items)
    (limit,), loss = choices[which % len(choices)]
    made = allocate(items, limit)
    assert isinstance(made, Allocation)
    assert made.loss <= loss * (1 + EXACT)


@pytest.mark.parametrize("budgets", [2, 3, 4])
@given(data=st.data())
def test_several_budgets(budgets: int, data: st.DataObject) -> None:
    items = data.draw(items_of(few, budgets))
    limits = data.draw(st.lists(st.integers(0, 40), min_size=budgets, max_size=budgets))
    made = allocate(items, limits)
    possible = [
        loss
        for costs, loss in every(items, budgets)
        if all(c <= m for c, m in zip(costs, limits, strict=True))
    ]
    if not possible:
        assert isinstance(made, OutOfReach)
        assert len(made.least) == budgets
        return
    assert isinstance(made, Allocation)
    assert made.optimal
    assert all(cost <= limit for cost, limit in zip(made.costs, limits, strict=True))
    check(items, made, min(possible), made.loss)


@given(items_of(few), st.integers(-1, 40), st.integers(0, 9))
def test_least_cost_within_a_loss(items: Items, max_loss: int, fixed: int) -> None:
    made = allocate_loss(items, max_loss, fixed=fixed)
    possible = [cost + fixed for (cost,), loss in every(items) if loss <= max_loss]
    if not possible:
        assert isinstance(made, OutOfReach)
        assert made.least == (min(loss for _, loss in every(items)),)
        return
    assert isinstance(made, Allocation)
    assert made.optimal
    assert made.loss <= max_loss
    assert made.cost == made.bound == min(possible)
    check(items, made, min(possible), made.cost)


@pytest.mark.parametrize("budgets", [1, 2])
@given(data=st.data())
def test_bound_holds_when_choices_had_to_be_put_aside(budgets: int, data: st.DataObject) -> None:
    items = data.draw(items_of(few, budgets))
    limits = data.draw(st.lists(st.integers(5, 30), min_size=budgets, max_size=budgets))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PASSES", (("large", 0),))
        patch.setattr(module, "_FEWEST_KEPT", 2)
        made = allocate(items, limits)
    possible = [
        loss
        for costs, loss in every(items, budgets)
        if all(c <= m for c, m in zip(costs, limits, strict=True))
    ]
    if isinstance(made, OutOfReach):
        # With several budgets finding any choice is as hard as finding the best.
        assert not possible or (budgets > 1 and made.reason.startswith("found no"))
        return
    assert all(cost <= limit for cost, limit in zip(made.costs, limits, strict=True))
    check(items, made, min(possible), made.loss)


def layers(count: int, options: int, budgets: int = 1, seed: int = 0) -> Items:
    """As of layers at many ranks: the loss falls with the cost, unevenly, over orders of magnitude."""
    rng = np.random.default_rng(seed)
    size = np.round(10 ** rng.uniform(5, 7.5, (count, 1)))
    share = np.sort(rng.uniform(0.02, 1, (count, options)), axis=1)
    loss = 10 ** rng.uniform(-4, -1, (count, 1)) * (1 - share) ** 2 * rng.lognormal(0, 0.3, share.shape)
    cost = np.round(size * share)[..., None] * rng.lognormal(0, 0.3, (count, 1, budgets))
    return [
        [Option(tuple(c) if budgets > 1 else c[0], one) for c, one in zip(costs, losses, strict=True)]
        for costs, losses in zip(cost.tolist(), loss.tolist(), strict=True)
    ]


def half(items: Items) -> float:
    return 0.5 * math.fsum(max(o.cost for o in options if isinstance(o.cost, float)) for options in items)


def test_a_hundred_layers_are_solved_exactly() -> None:
    items = layers(100, 64)
    made = allocate(items, half(items))
    assert isinstance(made, Allocation)
    assert made.optimal
    assert 0.99 * half(items) < made.cost <= half(items)
    back = allocate_loss(items, made.loss)
    assert isinstance(back, Allocation)
    assert back.loss <= made.loss * (1 + SLACK)
    assert made.cost * 0.999 < back.cost <= made.cost


def test_a_hundred_layers_and_three_budgets_are_near_the_bound() -> None:
    items = layers(100, 64, budgets=3)
    costs = np.array([[option.cost for option in options] for options in items])
    limits = (0.5 * costs.max(axis=1).sum(axis=0)).tolist()
    made = allocate(items, limits)
    assert isinstance(made, Allocation)
    assert all(cost <= limit for cost, limit in zip(made.costs, limits, strict=True))
    assert 0 <= made.gap < 0.005 * made.loss


def test_the_same_items_give_the_same_choice() -> None:
    # Equal layers: many choices are equally good.
    items = [[Option(float(rank), 1.0 / rank) for rank in range(16, 272, 16)]] * 30
    first = allocate(items, 3000.0)
    assert isinstance(first, Allocation)
    assert all(allocate(items, 3000.0) == first for _ in range(3))


def test_of_equal_options_the_first_is_taken() -> None:
    made = allocate([[Option(2, 1), Option(1, 1), Option(1, 1)], [Option(0, 0), Option(0, 0)]], 5)
    assert isinstance(made, Allocation)
    assert made.choice == (1, 0)


@pytest.mark.parametrize(("share", "kept"), [(0.0, True), (0.25, True), (0.75, False)])
def test_a_budget_is_kept_up_to_rounding(share: float, kept: bool) -> None:
    """Of the slack one half is for the limit, the other for the sums."""
    for limit in (1e-6, 100.0):
        made = allocate([[Option(limit * (1 + share * SLACK), 0.0)]], limit)
        assert isinstance(made, Allocation) == kept


def test_without_items_only_the_fixed_cost_counts() -> None:
    assert allocate([], 3, fixed=2) == Allocation((), (2.0,), 0.0, 0.0, 0.0)
    assert allocate_loss([], 0, fixed=2) == Allocation((), (2.0,), 0.0, 2.0, 0.0)
    assert isinstance(allocate([], 1, fixed=2), OutOfReach)


def test_budgets_that_cannot_be_kept_say_what_can() -> None:
    items = [[Option((3.0, 1.0), 0.0), Option((1.0, 4.0), 0.0)]]
    alone = allocate(items, [5, 0], fixed=[1.0, 0.5])
    assert alone == OutOfReach("the least that can be reached in budget 2 is 1.5, above 0", (2.0, 1.5))
    together = allocate(items, [2, 2])
    assert together == OutOfReach("there is no choice that keeps all budgets at once", (1.0, 1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_refuses_numbers_that_are_none(bad: float) -> None:
    good = Option(1.0, 1.0)
    for items in ([[good, Option(bad, 1.0)]], [[good], [Option(1.0, bad)]]):
        with pytest.raises(ValueError, match="finite and at least 0"):
            allocate(items, 10.0)
        with pytest.raises(ValueError, match="finite and at least 0"):
            allocate_loss(items, 10.0)
    with pytest.raises(ValueError, match="finite"):
        allocate([[good]], 10.0, fixed=bad)
    if not bad < 0:
        with pytest.raises(ValueError, match="limits must be finite"):
            allocate([[good]], bad)


def test_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="item 1 has no options"):
        allocate([[Option(1, 1)], []], 1)
    with pytest.raises(ValueError, match="as many costs as there are limits"):
        allocate([[Option((1, 2), 1)]], 1)
    with pytest.raises(ValueError, match="as many costs as there are limits"):
        allocate([[Option((1, 2), 1)]], [1, 2], fixed=[1, 2, 3])
    with pytest.raises(ValueError, match="as many costs as there are limits"):
        allocate_loss([[Option((1, 2), 1)]], 1)
    with pytest.raises(ValueError, match="as many costs as there are limits"):
        allocate([], [])
