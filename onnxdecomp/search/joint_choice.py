"""Choosing a state for every variable at the least loss within budgets, where costs are not separable.

A layer costs less where the channels that it reads and makes are narrower, so its option and their widths
cannot be chosen apart as in the multiple-choice knapsack (`knapsack.allocate`). Here tables say what the
states of a few variables cost and lose together. Prices for the budgets give a bound (`lagrangian`), for
which the least sum is found by eliminating one variable after the other (`elimination`), and a search over
partial choices closes the gap (`partial_choices`). What is too large for that is solved in parts
(`neighbourhoods`).

The work is limited by counting, not by the clock: the same input gives the same choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxdecomp.search.elimination import Floats, Numbers, affordable, buckets, minimise
from onnxdecomp.search.knapsack import SLACK, Allocation, Option, OutOfReach, allocate
from onnxdecomp.search.lagrangian import choose
from onnxdecomp.search.neighbourhoods import ROUNDS, choose_roughly, optimistic
from onnxdecomp.search.partial_choices import better_than

_LARGEST = 1 << 19
"""Combinations of states in all tables of an elimination together."""

_NEVER = "there are no states that go together"


@dataclass(frozen=True, eq=False)
class Table:
    """What the states of some variables cost and lose together.

    Attributes:
        variables: Their numbers, each once.
        cost: [states of each variable …, budgets]; at least 0.
        loss: [states of each variable …]; at least 0, infinite where the states do not go together.
    """

    variables: tuple[int, ...]
    cost: Floats
    loss: Floats


def allocate_jointly(
    states: Sequence[int],
    tables: Sequence[Table],
    limit: float | Sequence[float],
    *,
    fixed: float | Sequence[float] = 0.0,
    rounds: int = ROUNDS,
) -> Allocation | OutOfReach:
    """One state per variable with the least sum of losses over all tables whose costs stay within the limits.

    To limit the loss and some costs while another cost is to be least, give the tables in these roles. Where
    no table holds two variables with more than one state it is the knapsack's own allocation.

    Args:
        states: How many states each variable has; at least one.
        tables: What they cost and lose.
        limit: The most that the costs may add up to; one number per budget.
        fixed: Cost that is there whatever is chosen; one number for all budgets, or one each.
        rounds: Neighbourhoods that are looked through at most where tables are too large for elimination.

    Returns:
        The states, variable by variable; or why no choice keeps the budgets, with the least cost in each
        budget alone (where tables are too large for elimination, a bound of it).

    Raises:
        ValueError: A variable without states, a table of another shape, a negative number (limits may be),
            NaN, or an infinite cost.
    """
    limits = [float(value) for value in np.atleast_1d(limit)]
    constant = [float(value) for value in np.atleast_1d(fixed)]
    constant *= len(limits) if len(constant) == 1 else 1
    _check(states, tables, limits, constant)
    merged = _merged(states, tables, [*constant, 0.0])
    if any(len(entry.variables) > 1 for entry in merged):
        return _solve(states, merged, limits, rounds)
    return _separately(states, merged, limits)


def _check(
    states: Sequence[int], tables: Sequence[Table], limits: Sequence[float], constant: Sequence[float]
) -> None:
    if not limits or len(constant) != len(limits):
        raise ValueError("every table, and what is fixed, needs as many costs as there are limits")
    if not all(map(math.isfinite, limits)):
        raise ValueError(f"limits must be finite: {limits}")
    if not all(math.isfinite(value) and value >= 0 for value in constant):
        raise ValueError("costs and losses must be finite and at least 0")
    if min(states, default=1) < 1:
        raise ValueError(f"variable {list(states).index(min(states))} has no states")
    for table in tables:
        own = table.variables
        if len(set(own)) < len(own) or not set(own) <= set(range(len(states))):
            raise ValueError(f"{own} are not different variables out of {len(states)}")
        shape = tuple(states[variable] for variable in own)
        if table.loss.shape != shape or table.cost.shape != (*shape, len(limits)):
            raise ValueError(
                f"a table over {own} needs losses {shape} and costs {(*shape, len(limits))}, not "
                f"{table.loss.shape} and {table.cost.shape}"
            )
        if not np.isfinite(table.cost).all() or (table.cost < 0).any() or not (table.loss >= 0).all():
            raise ValueError("costs must be finite and at least 0, losses at least 0")


def _merged(states: Sequence[int], tables: Sequence[Table], constant: Sequence[float]) -> list[Numbers]:
    """The tables without variables of one state, those over the same variables added; what is fixed first."""
    found: dict[tuple[int, ...], Numbers] = {(): Numbers((), np.array(constant), np.ones((), bool))}
    for table in tables:
        axes = sorted(range(len(table.variables)), key=lambda axis: table.variables[axis])
        values = np.concatenate([table.cost, table.loss[..., None]], axis=-1, dtype=np.float64)
        values = values.transpose(*axes, len(axes))
        many = [axis for axis in axes if states[table.variables[axis]] > 1]
        scope = tuple(table.variables[axis] for axis in many)
        values = values.reshape(*(states[variable] for variable in scope), len(constant))
        allowed = np.isfinite(values[..., -1])
        values = np.where(allowed[..., None], values, 0.0)
        if scope in found:
            values, allowed = values + found[scope].values, allowed & found[scope].open
        found[scope] = Numbers(scope, values, allowed)
    return list(found.values())


def _separately(
    states: Sequence[int], merged: Sequence[Numbers], limits: Sequence[float]
) -> Allocation | OutOfReach:
    """Every variable is an item of a knapsack."""
    free = Option((0.0,) * len(limits), 0.0)
    items, numbers = [[free] * count for count in states], [list(range(count)) for count in states]
    for entry in merged[1:]:
        variable = entry.variables[0]
        numbers[variable] = np.flatnonzero(entry.open).tolist()
        rows = entry.values[entry.open].tolist()
        items[variable] = [Option(tuple(row[:-1]), row[-1]) for row in rows]
    *constant, loss = merged[0].values.tolist()
    if not all(items) or not merged[0].open:
        return OutOfReach(_NEVER, tuple(constant))
    found = allocate([*items, *([[replace(free, loss=loss)]] if loss else [])], limits, fixed=constant)
    if isinstance(found, OutOfReach):
        return found
    return replace(found, choice=tuple(own[k] for own, k in zip(numbers, found.choice, strict=False)))


def _solve(
    states: Sequence[int], merged: Sequence[Numbers], limits: list[float], rounds: int
) -> Allocation | OutOfReach:
    budgets, scopes = len(limits), [entry.variables for entry in merged]
    if not all(entry.open.any() for entry in merged):
        return OutOfReach(_NEVER, tuple(merged[0].values[:-1].tolist()))
    # What is above every table's smallest numbers, so that rounding is that of what can be chosen.
    smallest = [entry.values[entry.open].min(axis=0) for entry in merged]
    *floor, least_loss = (math.fsum(own) for own in zip(*(r.tolist() for r in smallest), strict=True))
    room = np.array([limit + SLACK / 2 * abs(limit) - low for limit, low in zip(limits, floor, strict=True)])
    lifted = [
        replace(entry, values=np.where(entry.open[..., None], entry.values - low, 0.0))
        for entry, low in zip(merged[1:], smallest[1:], strict=True)
    ]
    few = affordable(states, scopes, _LARGEST)
    exact = few == tuple(states)
    rough = lifted if exact else optimistic(lifted, states, few)
    least = minimise(buckets(few, rough, budgets + 1), np.eye(budgets + 1)[:budgets])
    if not np.isfinite(least.value).all():
        return OutOfReach(_NEVER, tuple(floor))
    reached = tuple((floor + least.value).tolist())
    if (least.value > room).any():
        worst = int((least.value > room).argmax())
        which = f" in budget {worst + 1}" if budgets > 1 else ""
        reason = f"the least that can be reached{which} is {reached[worst]:.6g}, above {limits[worst]:.6g}"
        return OutOfReach(reason, reached)
    tables = [_scaled(entry, room) for entry in lifted]
    if exact:
        found = choose(states, tables, budgets)
    else:
        coarser = [_scaled(entry, room) for entry in rough]
        found = choose_roughly(states, tables, coarser, few, budgets, _LARGEST, rounds)
    if isinstance(found, str):
        return OutOfReach(found, reached)
    picked = [entry.values[tuple(found.choice[v] for v in entry.variables)].tolist() for entry in merged]
    *costs, total = (math.fsum(column) for column in zip(*picked, strict=True))
    proven = found.left >= better_than(found.value)
    bound = total if proven else min(total, least_loss + found.left)
    return Allocation(found.choice, tuple(costs), total, bound, total - bound)


def _scaled(entry: Numbers, room: Floats) -> Numbers:
    """Costs as shares of the room; what is above it alone is out."""
    cost = entry.values[..., :-1]
    fits = entry.open & (cost <= room).all(axis=-1)
    shares = np.where(fits[..., None], cost, 0.0) / np.where(room > 0, room, 1.0)
    loss = np.where(fits, entry.values[..., -1], 0.0)
    return Numbers(entry.variables, np.concatenate([shares, loss[..., None]], axis=-1), fits)
