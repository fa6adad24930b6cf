"""Choosing one option per item at the least loss within a budget: the multiple-choice knapsack.

The linear relaxation gives a price for each budget. At any prices, charging every option its loss and its
costs and picking the cheapest for each item bounds the loss of all choices from below (Sinha & Zoltners
1979, "The multiple-choice knapsack problem"). The search then goes item by item over partial choices and
drops those that are dominated or whose bound is no better than the best choice found so far (dynamic
programming with bounds; Pisinger 1995, "A minimal algorithm for the multiple-choice knapsack problem";
Kellerer, Pferschy & Pisinger 2004, "Knapsack Problems", chapter 11). It is exact unless too many partial
choices are left: then some are put aside, and their bounds go into the bound that is reported.

The work is limited by counting, not by the clock: the same input gives the same choice. (HiGHS' solver of
integer programs takes longer, keeps a budget only up to a millionth, and prints to stdout.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

SLACK = 1e-12
"""Budgets are kept up to this share of the limit: a sum that equals its limit but for rounding is within."""

EXACT = 1e-10
"""A choice is called optimal where no other is better by more than this share."""

# Prices are tried around those of the relaxation, by the number of budgets: a partial choice that spent
# more or less than its share is bounded best by higher or lower ones.
PRICE_FACTORS = {
    1: (1.0, 0.5, 0.7, 0.85, 0.93, 0.97, 0.99, 1.01, 1.03, 1.07, 1.15, 1.3, 2.0),
    2: (1.0, 0.7, 0.93, 1.07, 1.4),
    3: (1.0, 0.85, 1.15),
}  # with more budgets 1.0 only
_Order = Literal["core", "large"]
# Two quick looks find a good choice; the third, with all the work, mostly has to prove it only.
_PASSES: tuple[tuple[_Order, int], ...] = (("core", 1_000_000), ("large", 1_000_000), ("large", 30_000_000))
_MOST_ROWS, _FEWEST_KEPT = 200_000, 16  # partial choices at once: for memory, and to get anywhere


@dataclass(frozen=True)
class Option:
    """One way to treat an item.

    Attributes:
        cost: What it takes of the budget, or of each of several; at least 0.
        loss: What it loses; at least 0.
    """

    cost: float | tuple[float, ...]
    loss: float


@dataclass(frozen=True)
class Allocation:
    """One option for each item, and how good that provably is.

    Attributes:
        choice: The index of the option chosen, item by item.
        costs: The sum of the costs, with the fixed cost, for each budget.
        loss: The sum of the losses.
        bound: No choice within the budget has a smaller loss (from `allocate_loss`: a smaller cost).
        gap: How far above the bound this choice is; 0 where it is proven optimal (up to EXACT).
    """

    choice: tuple[int, ...]
    costs: tuple[float, ...]
    loss: float
    bound: float
    gap: float

    @property
    def cost(self) -> float:
        """The cost in the first, mostly the only, budget."""
        return self.costs[0]

    @property
    def optimal(self) -> bool:
        return self.gap == 0


@dataclass(frozen=True)
class OutOfReach:
    """No choice keeps the budget.

    Attributes:
        reason: Why, a phrase for people.
        least: The smallest cost that can be reached, with the fixed cost, for each budget alone (from
            `allocate_loss`: the smallest loss).
    """

    reason: str
    least: tuple[float, ...]


def allocate(
    items: Sequence[Sequence[Option]], limit: float | Sequence[float], *, fixed: float | Sequence[float] = 0.0
) -> Allocation | OutOfReach:
    """The choice of one option per item with the least sum of losses whose costs stay within the limit.

    With several limits every option has as many costs, and all limits hold at once. To limit the loss and
    some costs while another cost is to be least, give the options in these roles.

    Args:
        items: The options of each item; at least one each.
        limit: The most that the costs may add up to; one number per budget.
        fixed: Cost that is there whatever is chosen; one number for all budgets, or one each.

    Raises:
        ValueError: No options, a negative number (limits may be), NaN, infinity, or not one cost per limit.
    """
    limits = [float(value) for value in np.atleast_1d(limit)]
    constant = [float(value) for value in np.atleast_1d(fixed)]
    constant *= len(limits) if len(constant) == 1 else 1
    # What is fixed is one more item, with a single option.
    rows = [[(*_costs(option), option.loss) for option in options] for options in items]
    return _solve([*rows, [(*constant, 0.0)]], limits)


def allocate_loss(
    items: Sequence[Sequence[Option]], max_loss: float, *, fixed: float = 0.0
) -> Allocation | OutOfReach:
    """The choice of one option per item with the least sum of costs whose losses stay within `max_loss`.

    Args:
        items: The options of each item, of one cost each; at least one option each.
        max_loss: The most that the losses may add up to.
        fixed: Cost that is there whatever is chosen; part of the cost and of its bound.

    Raises:
        ValueError: As `allocate`.
    """
    rows = [[(option.loss, *_costs(option)) for option in options] for options in items]
    solved = _solve([*rows, [(0.0, float(fixed))]], [float(max_loss)])
    if isinstance(solved, OutOfReach):
        return solved
    return replace(solved, costs=(solved.loss,), loss=solved.cost)


def _costs(option: Option) -> tuple[float, ...]:
    return option.cost if isinstance(option.cost, tuple) else (option.cost,)


def _solve(rows: list[list[tuple[float, ...]]], limits: list[float]) -> Allocation | OutOfReach:
    """Every option is its costs and then the loss; the last item is left out of the choice."""
    if not all(map(math.isfinite, limits)):
        raise ValueError(f"limits must be finite: {limits}")
    table, present = _table(rows, len(limits))
    smallest = np.where(present[..., None], table, np.inf).min(axis=1)
    *least, least_loss = (math.fsum(column) for column in smallest.T)
    room = np.array([limit + SLACK / 2 * abs(limit) - low for limit, low in zip(limits, least, strict=True)])
    if (room < 0).any():
        worst = int((room < 0).argmax())
        which = f" in budget {worst + 1}" if len(limits) > 1 else ""
        reason = f"the least that can be reached{which} is {least[worst]:.6g}, above {limits[worst]:.6g}"
        return OutOfReach(reason, tuple(least))
    table = np.where(present[..., None], table - smallest[:, None], 0.0)
    cost, loss = table[..., :-1], table[..., -1]
    fits = present & (cost <= room).all(axis=-1)
    cost = np.where(fits[..., None], cost, 0.0) / np.where(room > 0, room, 1.0)
    found = _choose(_Problem(cost, loss, fits & ~_dominated(table, fits)))
    if isinstance(found, str):
        return OutOfReach(found, tuple(least))
    picked = [options[index] for options, index in zip(rows, found.choice, strict=True)]
    *costs, total = (math.fsum(values) for values in zip(*picked, strict=True))
    proven = found.left >= _better_than(found.value)
    bound = total if proven else min(total, least_loss + found.left)
    return Allocation(found.choice[:-1], tuple(costs), total, bound, total - bound)


def _table(rows: list[list[tuple[float, ...]]], budgets: int) -> tuple[Floats, Bools]:
    """Items × options × numbers, padded with zeros, and where there is an option."""
    table = np.zeros((len(rows), max(map(len, rows)), budgets + 1))
    present = np.zeros(table.shape[:2], bool)
    for item, options in enumerate(rows):
        if not options:
            raise ValueError(f"item {item} has no options")
        if not budgets or any(len(values) != budgets + 1 for values in options):
            raise ValueError("every option, and what is fixed, needs as many costs as there are limits")
        table[item, : len(options)] = options
        present[item, : len(options)] = True
    if not np.isfinite(table).all() or (table < 0).any():
        raise ValueError("costs and losses must be finite and at least 0")
    return table, present


def _dominated(table: Floats, fits: Bools) -> Bools:
    """Options that another of the same item beats in all respects; of equal ones all but the first."""
    result = np.zeros_like(fits)
    first = np.arange(table.shape[1])[:, None] < np.arange(table.shape[1])
    for item, (values, usable) in enumerate(zip(table, fits, strict=True)):
        better = (values[:, None] <= values).all(axis=-1) & usable[:, None]
        result[item] = (better & (~better.T | first)).any(axis=0)
    return result


@dataclass(frozen=True)
class _Problem:
    """What is above every item's smallest cost and loss, so that each budget has room for 1.

    Attributes:
        cost: Items × options × budgets, as shares of the room.
        loss: Items × options.
        open: Items × options: those that may be in a choice better than the best known.
    """

    cost: Floats
    loss: Floats
    open: Bools


@dataclass(frozen=True)
class _Found:
    """The best choice, its loss, and a bound of the loss of all that was not looked at."""

    choice: tuple[int, ...]
    value: float
    left: float


def _better_than(value: float) -> float:
    """What a bound has to be below so that something better than `value` is worth looking for."""
    return value * (1 - EXACT)


def _choose(problem: _Problem) -> _Found | str:
    """The best choice found, or why there is none."""
    best = _Found((), math.inf, 0.0)
    for order, work in _PASSES:
        relaxed = _relax(problem)
        if relaxed is None:
            best = replace(best, left=math.inf)
            break
        found = _search(problem, relaxed, best, order, work // len(relaxed.prices))
        best = replace(found, left=max(best.left, relaxed.bound, found.left))
        if best.left >= _better_than(best.value):
            break
        # What the next pass need not look at. A smaller range of losses makes its prices more precise, too.
        still = (relaxed.least_with < _better_than(best.value)) & (problem.loss < best.value)
        problem = replace(problem, open=problem.open & still)
    if best.value < math.inf:
        return best
    return ("there is" if best.left == math.inf else "found") + " no choice that keeps all budgets at once"


@dataclass(frozen=True)
class _Relaxed:
    """The problem without its budgets, but with prices for them.

    Attributes:
        prices: Trials × budgets: what the whole room of a budget costs; the first as the relaxation says.
        charged: Trials × items × options: loss and priced cost; infinite where an option is not open.
        rounding: How far sums of these may be off.
        bound: Of the loss of all choices of open options.
        least_with: Items × options: the same for all choices with this option.
    """

    prices: Floats
    charged: Floats
    rounding: float
    bound: float
    least_with: Floats


def _relax(problem: _Problem) -> _Relaxed | None:
    """None if an item has no open option, or not even mixed options keep the budgets."""
    prices = _prices(problem) if problem.open.any(axis=1).all() else None
    if prices is None:
        return None
    factors = itertools.product(PRICE_FACTORS.get(len(prices), (1.0,)), repeat=len(prices))
    trials = prices * np.array(list(factors))
    charged = problem.loss + np.einsum("ikb,tb->tik", problem.cost, trials)
    charged = np.where(problem.open, charged, np.inf)
    least, paid = charged.min(axis=2), trials.sum(axis=1)
    rounding = len(problem.loss) * float(np.finfo(np.float64).eps * (least.sum(axis=1) + paid).max())
    bounds = least.sum(axis=1) - paid - rounding
    least_with = (bounds[:, None, None] + (charged - least[..., None])).max(axis=0)
    return _Relaxed(trials, charged, rounding, float(bounds.max()), least_with)


def _prices(problem: _Problem) -> Floats | None:
    """The dual solution of the linear relaxation; any prices give a bound, these the highest."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    (count, _), budgets = problem.loss.shape, problem.cost.shape[-1]
    rows = np.nonzero(problem.open)[0]
    one_each = csr_array((np.ones(rows.size), (rows, np.arange(rows.size))), shape=(count, rows.size))
    loss = problem.loss[problem.open]
    scale = float(loss.max()) or 1.0
    shares, ones = problem.cost[problem.open].T, np.ones(count)
    solved = linprog(  # type: ignore[call-overload]  # the stubs know no sparse matrices
        loss / scale, shares, np.ones(budgets), one_each, ones, method="highs-ds"
    )
    if solved.status == 2 and budgets > 1:
        return None
    if solved.status != 0:
        return np.zeros(budgets)
    return np.maximum(-np.asarray(solved.ineqlin.marginals, np.float64), 0.0) * scale


def _search(problem: _Problem, relaxed: _Relaxed, best: _Found, order: _Order, work: int) -> _Found:
    """Look for a better choice, item by item; `left` is the least bound of what was put aside on the way.

    A partial choice is three numbers: the cost, the loss and the bound of its completions. Each is also
    tried as a whole one, with the options that are cheapest at the relaxation's prices for the other items.
    """
    count = len(problem.loss)
    items = _ordered(problem, relaxed, order)
    base = relaxed.charged[0].argmin(axis=1)
    rest_cost = _from_here(problem.cost[items, base[items]])
    rest_loss = _from_here(problem.loss[items, base[items]])
    rest_charged = _from_here(relaxed.charged.min(axis=2).T[items]) - relaxed.prices.sum(axis=1)
    cost, loss, bound = np.zeros((1, problem.cost.shape[-1])), np.zeros(1), np.zeros(1)
    trail: list[tuple[Ints, Ints]] = []
    left = math.inf
    for depth in range(count + 1):
        within = (cost + rest_cost[depth] <= 1).all(axis=1)
        whole = np.where(within, loss + rest_loss[depth], np.inf)
        if whole.min(initial=np.inf) < best.value:
            choice = _traced(base, items, trail, int(whole.argmin()))
            best = _Found(choice, float(whole.min()), left)
        if depth == count or not whole.size or relaxed.bound >= _better_than(best.value):
            break
        item = items[depth]
        options = np.flatnonzero(relaxed.least_with[item] < _better_than(best.value))
        most = min(work // (count - depth), _MOST_ROWS) // max(options.size, 1)
        kept = _thinned(cost, bound, max(most, _FEWEST_KEPT))
        left = min(left, float(np.delete(bound, kept).min(initial=np.inf)))
        work -= kept.size * options.size
        parent, option = np.repeat(kept, options.size), np.tile(options, kept.size)
        cost, loss = cost[parent] + problem.cost[item, option], loss[parent] + problem.loss[item, option]
        charged = loss[:, None] + cost @ relaxed.prices.T + rest_charged[depth + 1]
        bound = charged.max(axis=1) - relaxed.rounding
        rows = np.flatnonzero((cost <= 1).all(axis=1) & (bound < _better_than(best.value)))
        rows = rows[_undominated(cost[rows], loss[rows])]
        cost, loss, bound = cost[rows], loss[rows], bound[rows]
        trail.append((parent[rows], option[rows]))
    return replace(best, left=min(left, best.value))


def _ordered(problem: _Problem, relaxed: _Relaxed, order: _Order) -> Ints:
    """The items as the search takes them.

    "core": where another option than the cheapest is closest to it first, for a good choice soon. "large":
    by the size of their costs, so that few partial choices are left when the small ones multiply them.
    """
    if order == "large":
        key = -np.where(problem.open[..., None], problem.cost, 0.0).max(axis=(1, 2))
    else:
        charged = np.sort(relaxed.charged[0], axis=1)
        key = charged[:, min(1, charged.shape[1] - 1)] - charged[:, 0]
    return np.argsort(key, kind="stable")


def _from_here(values: Floats) -> Floats:
    """Row i is the sum of the rows from i on; one row more than `values`, of zeros."""
    sums = np.cumsum(values[::-1], axis=0)[::-1]
    return np.concatenate([sums, np.zeros((1, *values.shape[1:]))])


def _traced(base: Ints, items: Ints, trail: list[tuple[Ints, Ints]], row: int) -> tuple[int, ...]:
    """The options of the last partial choices' row, and those of `base` for the items after it."""
    choice = base.copy()
    for item, (parents, options) in reversed(list(zip(items, trail, strict=False))):
        choice[item], row = options[row], int(parents[row])
    return tuple(choice.tolist())


def _thinned(cost: Floats, bound: Floats, most: int) -> Ints:
    """At most so many rows: the best by bound from each of as many cells of cost."""
    count, budgets = cost.shape
    if count <= most:
        return np.arange(count)
    a_side = max(int(most ** (1 / budgets)), 1)
    low, high = cost.min(axis=0), cost.max(axis=0)
    cell = (cost - low) / np.where(high > low, high - low, 1.0) * a_side
    number = np.minimum(cell.astype(np.intp), a_side - 1) @ (a_side ** np.arange(budgets))
    by_cell = np.lexsort((bound, number))
    return np.sort(by_cell[np.diff(number[by_cell], prepend=-1) > 0])


def _undominated(cost: Floats, loss: Floats) -> Ints:
    """Rows that no other beats in cost and loss: all such with one budget, some more with several."""
    by_cost = np.lexsort((loss, *cost.T[::-1]))
    lost = np.concatenate([[np.inf], loss[by_cost]])
    if cost.shape[1] == 1:
        return by_cost[lost[1:] < np.minimum.accumulate(lost)[:-1]]
    # To compare all with all would take more time than it saves; equals come one after the other.
    dearer = (np.diff(cost[by_cost], axis=0, prepend=np.inf) < 0).any(axis=1)
    return by_cost[dearer | (lost[1:] < lost[:-1])]
