"""Search over partial choices of a joint problem, variable by variable: dynamic programming with bounds.

As the knapsack's search, but what can follow a partial choice depends on the states of the variables
before, of which elimination says how few still matter. So partial choices are compared among those with the
same states of these, and the bound of all completions comes out of the eliminated minima (Kask & Dechter
2001, "A general scheme for automatic generation of search heuristics from specification dependencies";
within budgets, on paths: Dumitrescu & Boland 2003, "Improved preprocessing, labeling and scaling
algorithms").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxdecomp.search.elimination import Bools, Bucket, Buckets, Floats, Ints, Minimum
from onnxdecomp.search.knapsack import EXACT

ROUNDING = 1e-13
"""Of a budget, by which sums of its shares may be off: far below the slack that limits have."""

_MOST_ROWS, _FEWEST_KEPT = 200_000, 16  # partial choices at once: for memory, and to get anywhere


@dataclass(frozen=True)
class Found:
    """The best choice, its loss, and a bound of the loss of all that was not looked at."""

    choice: tuple[int, ...]
    value: float
    left: float


def better_than(value: float) -> float:
    """What a bound has to be below so that something better than `value` is worth looking for."""
    return value * (1 - EXACT)


@dataclass(frozen=True, eq=False)
class Bounds:
    """A problem at several prices.

    Attributes:
        minimum: Of the loss with priced costs, price by price, and then of the cost in each budget alone.
        start: [trials]: what the least of all choices is by that, without the price of all room.
        priced: How many trials have prices; the others are costs, of which there is 1.
        rounding: How far the bounds of losses may be off.
    """

    minimum: Minimum
    start: Floats
    priced: int
    rounding: float

    @property
    def least(self) -> float:
        """No choice loses less."""
        return float(self.of(self.start))

    def of(self, bound: Floats) -> Floats:
        """[… trials] to [...]: no completion loses less."""
        low: Floats = bound[..., : self.priced].max(axis=-1) - self.rounding
        return low

    def allow(self, bound: Floats, value: float) -> Bools:
        """Whether there may be completions within the budgets that are better than `value`."""
        within = (bound[..., self.priced :] <= 1 + ROUNDING).all(axis=-1)
        better: Bools = within & (self.of(bound) < better_than(value))
        return better


@dataclass(frozen=True, eq=False)
class _Labels:
    """Partial choices.

    Attributes:
        states: Of the variables that still matter.
        numbers: [rows, numbers]: costs and loss of the tables that are decided.
        whole: The same with those of the completion that is cheapest at the first prices.
        bound: [rows, trials]: the least value of all completions.
    """

    states: Mapping[int, Ints]
    numbers: Floats
    whole: Floats
    bound: Floats

    @cached_property
    def group(self) -> Ints:
        """A number per row, equal where the states are."""
        group = np.zeros(len(self.numbers), np.intp)
        for column in self.states.values():
            size = int(column.max(initial=0)) + 1
            if (int(group.max(initial=0)) + 1) * size > 2**62:
                group = np.unique(group, return_inverse=True)[1]
            group = group * size + column
        return group

    def taken(self, rows: Ints) -> _Labels:
        states = {variable: column[rows] for variable, column in self.states.items()}
        return _Labels(states, self.numbers[rows], self.whole[rows], self.bound[rows])


def search(problem: Buckets, bounds: Bounds, best: Found, work: int) -> Found:
    """Look for a better choice; `left` is the least bound of what was put aside on the way.

    Partial choices are also tried as whole ones, with the completions that are cheapest at the first prices.
    """
    count, minimum = len(problem.each), bounds.minimum
    needed = _needed(problem)
    numbers = minimum.numbers[None]
    labels = _Labels({}, np.zeros_like(numbers), numbers, bounds.start[None])
    trail: list[tuple[Ints, Ints]] = []
    left = math.inf
    for depth in range(count + 1):
        best = _better(problem, minimum, trail, labels, best)
        if depth == count or not labels.numbers.size:
            break
        at = _places(problem.each[depth], labels)
        excess = minimum.excess[depth].reshape(-1, *minimum.excess[depth].shape[-2:])
        may = bounds.allow(bounds.start + excess, best.value)[at]
        allowed = min(work // (count - depth), _MOST_ROWS)
        kept = _thinned(labels, bounds, max(allowed * len(may) // max(int(may.sum()), 1), _FEWEST_KEPT))
        left = min(left, float(np.delete(bounds.of(labels.bound), kept).min(initial=np.inf)))
        rows, states = np.nonzero(may[kept])
        work -= rows.size
        bound = labels.bound[kept[rows]] + excess[at[kept[rows]], states]
        fine = bounds.allow(bound, best.value)
        rows, states = kept[rows[fine]], states[fine]
        columns = {v: states if v == depth else labels.states[v][rows] for v in needed[depth]}
        decided, whole = _step(problem, minimum, depth, at[rows], states)
        labels = _Labels(columns, labels.numbers[rows] + decided, labels.whole[rows] + whole, bound[fine])
        kept = _undominated(labels)
        trail.append((rows[kept], states[kept]))
        labels = labels.taken(kept)
    return replace(best, left=min(left, best.value))


def _places(bucket: Bucket, labels: _Labels) -> Ints:
    """Where in the bucket's flattened context every row is."""
    at = np.zeros(len(labels.numbers), np.intp)
    for variable, size in zip(bucket.context, bucket.own.shape, strict=False):
        at = at * size + labels.states[variable]
    return at


def _step(problem: Buckets, minimum: Minimum, depth: int, at: Ints, states: Ints) -> tuple[Floats, Floats]:
    """What a variable's states add to the numbers that are decided and to those of whole choices."""
    sums = minimum.sums[depth]
    own, sums = (each.reshape(-1, *each.shape[-2:]) for each in (problem.each[depth].own, sums))
    before = minimum.least[depth].reshape(-1)[at]
    return own[at, states], sums[at, states] - sums[at, before]


def _needed(problem: Buckets) -> list[tuple[int, ...]]:
    """After every variable, those whose states still matter."""
    found: list[tuple[int, ...]] = []
    later: set[int] = set()
    for depth in reversed(range(len(problem.each))):
        found.append(tuple(sorted(variable for variable in later if variable <= depth)))
        later.update(problem.each[depth].context)
    return found[::-1]


def _better(
    problem: Buckets, minimum: Minimum, trail: Sequence[tuple[Ints, Ints]], labels: _Labels, best: Found
) -> Found:
    """The best whole choice among the partial ones' completions, if it is better than the best known."""
    numbers = labels.numbers if len(trail) == len(problem.each) else labels.whole
    losses = np.where((numbers[:, :-1] <= 1 + ROUNDING).all(axis=1), numbers[:, -1], np.inf)
    if losses.min(initial=np.inf) >= best.value:
        return best
    row = int(losses.argmin())
    choice = [0] * len(problem.each)
    for place, (parents, states) in reversed(list(enumerate(trail))):
        choice[place], row = int(states[row]), int(parents[row])
    for place in range(len(trail), len(choice)):
        choice[place] = int(minimum.least[place][_at(problem.each[place], choice)])
    # The sums were made by adding and taking away.
    picked = [
        bucket.own[(*_at(bucket, choice), choice[place])].tolist()
        for place, bucket in enumerate(problem.each)
    ]
    *costs, value = (math.fsum(column) for column in zip(*picked, strict=True))
    better = value < best.value and max(costs) <= 1 + ROUNDING
    return replace(best, choice=tuple(choice), value=value) if better else best


def _at(bucket: Bucket, choice: Sequence[int]) -> tuple[int, ...]:
    return tuple(choice[variable] for variable in bucket.context)


def _thinned(labels: _Labels, bounds: Bounds, most: int) -> Ints:
    """At most so many rows: the best by bound from as many cells of equal states and of cost."""
    cost = labels.numbers[:, :-1]
    count, budgets = cost.shape
    if count <= most:
        return np.arange(count)
    group = np.unique(labels.group, return_inverse=True)[1]
    a_side = max(int((most / (int(group.max()) + 1)) ** (1 / budgets)), 1)
    low, high = cost.min(axis=0), cost.max(axis=0)
    cell = (cost - low) / np.where(high > low, high - low, 1.0) * a_side
    number = np.minimum(cell.astype(np.intp), a_side - 1) @ (a_side ** np.arange(budgets))
    number = number + group * a_side**budgets
    bound = bounds.of(labels.bound)
    by_cell = np.lexsort((bound, number))
    first: Ints = by_cell[np.diff(number[by_cell], prepend=-1) > 0]
    return np.sort(first[bound[first].argsort(kind="stable")[:most]])


def _undominated(labels: _Labels) -> Ints:
    """Rows that none with the same states beats: all such with one budget, some more with several."""
    group, cost, loss = labels.group, labels.numbers[:, :-1], labels.numbers[:, -1]
    rows: Ints = np.lexsort((loss, *cost.T[::-1], group))
    other = np.diff(group[rows], prepend=-1) != 0
    if cost.shape[1] > 1:
        # To compare all with all would take more time than it saves; equals come one after the other.
        dearer = (np.diff(cost[rows], axis=0, prepend=np.inf) < 0).any(axis=1)
        kept: Ints = rows[other | dearer | (np.diff(loss[rows], prepend=np.inf) < 0)]
        return kept
    # Ranks in place of losses, lower with every group, so that groups do not see each other.
    rank = np.unique(loss, return_inverse=True)[1][rows] - np.cumsum(other) * len(rows)
    lost = np.minimum.accumulate(np.concatenate([[len(rows)], rank]))
    return rows[lost[1:] < lost[:-1]]
