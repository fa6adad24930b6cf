"""The joint choice against trying every choice: never over a budget, never worse than it says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.search import joint_choice as module
from onnxdecomp.search import lagrangian, partial_choices
from onnxdecomp.search.elimination import Floats, affordable
from onnxdecomp.search.joint_choice import Table, allocate_jointly
from onnxdecomp.search.knapsack import EXACT, SLACK, Allocation, Option, OutOfReach, allocate


@dataclass(frozen=True, eq=False)
class Joint:
    """A joint problem."""

    states: tuple[int, ...]
    tables: tuple[Table, ...]
    limits: tuple[float, ...]
    fixed: tuple[float, ...]

    def solve(self) -> Allocation | OutOfReach:
        return allocate_jointly(self.states, self.tables, self.limits, fixed=self.fixed)

    def totals(self, choice: Sequence[int]) -> tuple[tuple[float, ...], float]:
        """The costs and the loss of a choice."""
        picked = [
            (table.cost[at], float(table.loss[at]))
            for table in self.tables
            for at in [tuple(choice[variable] for variable in table.variables)]
        ]
        costs = (
            math.fsum([fix, *(float(cost[b]) for cost, _ in picked)]) for b, fix in enumerate(self.fixed)
        )
        return tuple(costs), sum(loss for _, loss in picked)

    def best(self) -> float:
        """The least loss of all choices within the budgets, infinite where there is none."""
        totals = (self.totals(choice) for choice in itertools.product(*map(range, self.states)))
        return min((loss for costs, loss in totals if self.within(costs)), default=math.inf)

    def within(self, costs: Sequence[float]) -> bool:
        return all(cost <= limit + SLACK * abs(limit) for cost, limit in zip(costs, self.limits, strict=True))


def whole(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Few different whole numbers: many ties, and budgets that are met exactly."""
    return rng.integers(0, 12, shape).astype(np.float64)


def scales(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Over many orders of magnitude, as losses measured are."""
    values: Floats = 10.0 ** rng.integers(-9, 6, shape) * rng.uniform(1, 10, shape)
    return values


@st.composite
def joints(draw: st.DrawFn, budgets: int = 1, variables: int = 5) -> Joint:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numbers = draw(st.sampled_from([whole, scales]))
    states = tuple(rng.integers(1, 4, rng.integers(1, variables + 1)).tolist())
    tables = []
    for _ in range(rng.integers(1, 7)):
        own = tuple(rng.permutation(len(states))[: rng.integers(1, 4)].tolist())
        shape = tuple(states[variable] for variable in own)
        loss = np.where(rng.random(shape) < 0.1, np.inf, numbers(rng, shape))
        tables.append(Table(own, numbers(rng, (*shape, budgets)), loss))
    most = sum(table.cost.reshape(-1, budgets).max(axis=0) for table in tables)
    share = rng.uniform(0.1, 0.9, budgets) if numbers is whole else 10.0 ** -rng.uniform(0, 3, budgets)
    limits = np.round(most * share) if numbers is whole else most * share
    fixed = rng.integers(0, 3, budgets).astype(float)
    return Joint(states, tuple(tables), tuple(limits.tolist()), tuple(fixed.tolist()))


def check(joint: Joint, made: Allocation, best: float) -> None:
    """It is what its choice says, its bound holds, and it is the best where it says so."""
    costs, loss = joint.totals(made.choice)
    assert joint.within(made.costs)
    assert made.costs == pytest.approx(costs, rel=1e-12, abs=1e-300)
    assert made.loss == pytest.approx(loss, rel=1e-12, abs=1e-300)
    assert made.bound <= best * (1 + EXACT)
    assert made.gap == made.loss - made.bound
    assert made.loss >= best * (1 - EXACT)
    if made.optimal:
        assert made.loss <= best * (1 + EXACT)


@pytest.mark.parametrize("budgets", [1, 2, 3])
@given(data=st.data())
def test_small_problems_are_solved_exactly(budgets: int, data: st.DataObject) -> None:
    joint = data.draw(joints(budgets))
    made, best = joint.solve(), joint.best()
    if isinstance(made, OutOfReach):
        assert best == math.inf
        assert not made.reason.startswith("found no")
        assert len(made.least) == budgets
        return
    assert made.optimal
    check(joint, made, best)


@pytest.mark.parametrize("budgets", [1, 2])
@given(data=st.data())
def test_bound_holds_where_tables_are_too_large(budgets: int, data: st.DataObject) -> None:
    joint = data.draw(joints(budgets))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LARGEST", 12)
        made = joint.solve()
    best = joint.best()
    if isinstance(made, OutOfReach):
        assert best == math.inf or made.reason.startswith("found no")
        return
    check(joint, made, best)


@pytest.mark.parametrize("budgets", [1, 2])
@given(data=st.data())
def test_bound_holds_where_choices_had_to_be_put_aside(budgets: int, data: st.DataObject) -> None:
    joint = data.draw(joints(budgets))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lagrangian, "_PASSES", (0,))
        patch.setattr(partial_choices, "_FEWEST_KEPT", 1)
        made = joint.solve()
    best = joint.best()
    if isinstance(made, OutOfReach):
        assert best == math.inf or (budgets > 1 and made.reason.startswith("found no"))
        return
    check(joint, made, best)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2))
def test_without_a_table_over_two_variables_it_is_the_knapsack(seed: int, budgets: int) -> None:
    rng = np.random.default_rng(seed)
    states = [*rng.integers(2, 6, 5).tolist(), 1]
    rows = [(whole(rng, (count, budgets)), whole(rng, (count,))) for count in states]
    # A variable of one state ties nothing together.
    tables = [Table((index, 5), cost[:, None], loss[:, None]) for index, (cost, loss) in enumerate(rows[:-1])]
    items = [
        [Option(tuple(c), one) for c, one in zip(cost.tolist(), loss.tolist(), strict=True)]
        for cost, loss in rows[:-1]
    ]
    made = allocate_jointly(states, tables, [25] * budgets, fixed=1)
    found = allocate(items, [25] * budgets, fixed=1)
    if isinstance(found, Allocation):
        assert isinstance(made, Allocation)
        assert made == Allocation((*found.choice, 0), found.costs, found.loss, found.bound, found.gap)
    else:
        assert made == found


def chained(layers: int, seed: int = 0, budgets: int = 1, stages: int = 0) -> Joint:
    """Layers of 30 chains and channels of 8 widths along a path; within stages of so many, some are alike."""
    rng = np.random.default_rng(seed)
    width, states, tables = np.arange(8, 0, -1) / 8, [8], []
    full = 0.0
    before = stream = 0
    for layer in range(layers):
        made = len(states)
        states += [8, 31]
        size = 10 ** rng.uniform(4, 6)
        share = np.append(1.0, np.sort(rng.uniform(0.02, 0.9, 30)))[:, None, None]
        cost = size * np.minimum(width[:, None] * width, share * (width[:, None] + width) / 2)
        loss = 10 ** rng.uniform(-4, -1) * (1 - share) ** 2 * rng.lognormal(0, 0.3, share.shape)
        loss = np.broadcast_to(loss, cost.shape)
        costs = cost[..., None] * rng.lognormal(0, 0.3, budgets)
        tables.append(Table((made + 1, before, made), costs, loss))
        narrower = 10 ** rng.uniform(-4, -1) * (1 - width) ** 2
        tables.append(Table((made,), np.zeros((8, budgets)), narrower))
        full += size
        if stages and layer % 2:
            tables.append(Table((stream, made), np.zeros((8, 8, budgets)), np.where(np.eye(8), 0.0, np.inf)))
        if stages and layer % (2 * stages) == 2 * stages - 1:
            stream = made
        before = made
    return Joint(tuple(states), tuple(tables), (0.5 * full,) * budgets, (0.0,) * budgets)


@pytest.mark.parametrize("stages", [0, 10])
def test_a_hundred_layers_and_channels_are_solved_exactly(stages: int) -> None:
    joint = chained(100, stages=stages)
    made = joint.solve()
    assert isinstance(made, Allocation)
    assert made.optimal
    assert 0.99 * joint.limits[0] < made.cost <= joint.limits[0]
    assert made.loss == pytest.approx(joint.totals(made.choice)[1], rel=1e-12)
    assert joint.solve() == made
    # The other way round: the least cost within that loss.
    turned = [
        Table(
            t.variables,
            np.where(np.isfinite(t.loss), t.loss, 0.0)[..., None],
            np.where(np.isfinite(t.loss), t.cost[..., 0], np.inf),
        )
        for t in joint.tables
    ]
    back = allocate_jointly(joint.states, turned, made.loss)
    assert isinstance(back, Allocation)
    assert back.cost <= made.loss * (1 + SLACK)
    assert made.cost * 0.999 < back.loss <= made.cost


def blocks(count: int, seed: int = 0) -> Joint:
    """Blocks of a transformer: four layers of 30 chains around heads and their sizes, of which one is cut."""
    rng = np.random.default_rng(seed)
    states, tables, full = list[int](), list[Table](), 0.0
    width = np.arange(8, 0, -1) / 8
    share = np.append(1.0, np.sort(rng.uniform(0.02, 0.95, 30)))
    for _ in range(count):
        first = len(states)
        states += [31] * 4 + [8] * 3
        whole, scores, values = range(first + 4, first + 7)
        loss = 10 ** rng.uniform(-3, -1) * (1 - share) ** 2
        for at, other in zip(range(first, first + 4), (scores, scores, values, values), strict=True):
            cost = share[:, None, None] * width[:, None] * width
            tables.append(
                Table((at, whole, other), cost[..., None], np.broadcast_to(loss[:, None, None], cost.shape))
            )
            full += 1.0
        for at in (whole, scores, values):
            less = 10 ** rng.uniform(-3, -1) * (1 - width) ** 2
            tables.append(Table((at,), np.zeros((8, 1)), less))
        for at in (scores, values):
            both = np.zeros((8, 8))
            both[1:, 1:] = np.inf
            tables.append(Table((whole, at), np.zeros((8, 8, 1)), both))
    return Joint(tuple(states), tuple(tables), (0.6 * full,), (0.0,))


def kept_where(joint: Joint, stays: Sequence[bool]) -> Joint:
    """The problem in which some variables have their first state alone."""
    states = tuple(1 if own else count for own, count in zip(stays, joint.states, strict=True))

    def left(table: Table) -> Table:
        at = tuple(slice(states[variable]) for variable in table.variables)
        return Table(table.variables, table.cost[at], table.loss[at])

    return replace(joint, states=states, tables=tuple(map(left, joint.tables)))


@pytest.mark.parametrize("seed", range(3))
def test_no_part_of_a_problem_has_a_better_choice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the tables are that there is room for."""
    joint = blocks(3, seed)
    parts = [kept_where(joint, [count == own for count in joint.states]).solve() for own in (8, 31)]
    monkeypatch.setattr(module, "_LARGEST", 1 << 12)
    made = joint.solve()
    assert isinstance(made, Allocation)
    assert joint.within(made.costs)
    least = min(part.loss for part in parts if isinstance(part, Allocation))
    assert made.loss <= least * (1 + EXACT)


def test_two_budgets_are_near_the_bound() -> None:
    joint = chained(60, budgets=2)
    made = joint.solve()
    assert isinstance(made, Allocation)
    assert joint.within(made.costs)
    assert 0 <= made.gap < 0.03 * made.loss


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_a_path_against_a_table_of_all_costs(seed: int) -> None:
    """Too many choices to try them all, but few costs: the least loss for every cost and state."""
    rng = np.random.default_rng(seed)
    count, states, limit = 12, 4, 60
    costs, losses = rng.integers(0, 15, (count, states, states)), rng.uniform(0, 1, (count, states, states))
    least = np.zeros((states, limit + 1))
    for cost, loss in zip(costs, losses, strict=True):
        longer = np.full((states, limit + 1), np.inf)
        for one, other in itertools.product(range(states), repeat=2):
            moved = least[one, : limit + 1 - cost[one, other]] + loss[one, other]
            longer[other, cost[one, other] :] = np.minimum(longer[other, cost[one, other] :], moved)
        least = longer
    pairs = enumerate(zip(costs, losses, strict=True))
    tables = [Table((at, at + 1), cost[..., None].astype(float), loss) for at, (cost, loss) in pairs]
    made = allocate_jointly([states] * (count + 1), tables, limit)
    if isinstance(made, OutOfReach):
        assert least.min() == math.inf
        return
    assert made.optimal
    assert made.loss == pytest.approx(least.min(), rel=1e-9)


def test_states_that_do_not_go_together() -> None:
    never = Table((0, 1), np.zeros((2, 2, 1)), np.full((2, 2), np.inf))
    assert allocate_jointly([2, 2], [never], 1) == OutOfReach("there are no states that go together", (0.0,))
    only = Table((0, 1), np.ones((2, 2, 1)), np.array([[np.inf, np.inf], [2.0, np.inf]]))
    assert allocate_jointly([2, 2], [only], 1) == Allocation((1, 0), (1.0,), 2.0, 2.0, 0.0)
    one = Table((0,), np.ones((2, 1)), np.array([np.inf, 3.0]))
    assert allocate_jointly([2], [one], 1) == Allocation((1,), (1.0,), 3.0, 3.0, 0.0)
    # Each with some, but not together.
    left, right = Table((0,), np.zeros((2, 1)), np.array([0.0, np.inf])), only
    assert isinstance(allocate_jointly([2, 2], [left, right], 9), OutOfReach)


def test_budgets_that_cannot_be_kept_say_what_can() -> None:
    cost = np.array([[[3.0, 1.0], [1.0, 4.0]], [[3.0, 2.0], [4.0, 2.0]]])
    table = Table((0, 1), cost, np.zeros((2, 2)))
    alone = allocate_jointly([2, 2], [table], [5, 0.5], fixed=[1.0, 0.5])
    assert alone == OutOfReach("the least that can be reached in budget 2 is 1.5, above 0.5", (2.0, 1.5))
    together = allocate_jointly([2, 2], [table], [2, 2])
    assert together == OutOfReach("there is no choice that keeps all budgets at once", (1.0, 1.0))


def test_affordable_states_are_those_of_many_tables_first() -> None:
    hub = [(0, leaf) for leaf in range(1, 5)]
    assert affordable([8, 4, 4, 4, 4], hub, 200) == (8, 4, 4, 4, 4)
    assert affordable([8, 4, 4, 4, 4], hub, 100) == (4, 4, 4, 4, 4)
    assert affordable([8, 4, 4, 4, 4], hub, 5) == (1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("states", "table", "said"),
    [
        ([2], Table((0,), np.zeros((2, 2)), np.zeros(2)), "costs"),
        ([2], Table((0,), np.zeros((3, 1)), np.zeros(3)), "costs"),
        ([2], Table((1,), np.zeros((2, 1)), np.zeros(2)), "different variables"),
        ([2], Table((0, 0), np.zeros((2, 2, 1)), np.zeros((2, 2))), "different variables"),
        ([0], Table((0,), np.zeros((0, 1)), np.zeros(0)), "variable 0 has no states"),
        ([2], Table((0,), np.full((2, 1), np.inf), np.zeros(2)), "finite"),
        ([2], Table((0,), np.full((2, 1), -1.0), np.zeros(2)), "at least 0"),
        ([2], Table((0,), np.zeros((2, 1)), np.full(2, np.nan)), "at least 0"),
    ],
)
def test_refuses_what_does_not_fit_together(states: list[int], table: Table, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        allocate_jointly(states, [table], 1.0)
    with pytest.raises(ValueError, match="limits must be finite"):
        allocate_jointly([1], [], math.inf)
