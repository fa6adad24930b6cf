"""Joint problems whose tables are too large for elimination: bounded by a coarser one, solved in parts.

Where neighbouring states of a variable are taken together, each combination with the smallest numbers of
those that it stands for, the problem is smaller and no choice is worse in it (state-space relaxation:
Christofides, Mingozzi & Toth 1981): its bound holds. Choices come from the problem with some states of each
variable only, those around the best choice so far, again and again (Ahuja et al. 2002, "A survey of very
large-scale neighborhood search techniques"). In turns with that, variables with many states, or those with
few, stay as they are, and all states of the others are in it. It begins at the states that cost least, and at
the best choice where one of these sets has its first states, which is nothing done: so no choice about layers
or about channels alone is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxdecomp.search.elimination import Ints, Numbers, affordable
from onnxdecomp.search.lagrangian import bound, choose, largest
from onnxdecomp.search.partial_choices import Found, better_than

ROUNDS, _IDLE = 12, 3
"""Neighbourhoods that are looked through at most, and without finding anything better."""

_WORK = (300_000, 1_000_000)


def optimistic(tables: Sequence[Numbers], states: Sequence[int], few: Sequence[int]) -> list[Numbers]:
    """The tables where each variable has `few` states, each of several of its `states`."""
    return [_merged(table, [_groups(states[v], few[v]) for v in table.variables]) for table in tables]


def choose_roughly(
    states: Sequence[int],
    tables: Sequence[Numbers],
    coarser: Sequence[Numbers],
    few: Sequence[int],
    budgets: int,
    most: int,
    rounds: int = ROUNDS,
) -> Found | str:
    """The best choice found within budgets that have room for 1, or why there is none.

    Args:
        states: Of every variable.
        tables: Costs and losses.
        coarser: The same as `optimistic` has made them.
        few: How many states of each variable elimination can do with.
        budgets: How many.
        most: Combinations of states in all tables of an elimination together.
        rounds: Neighbourhoods that are looked through at most, from each start.
    """
    low = bound(few, coarser, budgets)
    if low >= largest(tables):
        return "there is no choice that keeps all budgets at once"

    def better(picked: Sequence[Ints], best: Found | None) -> Found | None:
        """The best choice among these states of each variable, where it is better; else None."""
        counts = [own.size for own in picked]
        found = choose(counts, [_some(table, picked) for table in tables], budgets, passes=_WORK)
        if isinstance(found, str) or (best is not None and not found.value < better_than(best.value)):
            return None
        choice = (int(own[state]) for own, state in zip(picked, found.choice, strict=True))
        return Found(tuple(choice), found.value, low)

    def walked(best: Found | None, free: Sequence[Sequence[bool]]) -> Found | None:
        """The best choice found around this one; None: around the states that cost least."""
        idle = 0
        for turn in range(rounds):
            around = _LOOKS[turn % len(_LOOKS)]
            at = _cheapest(states, tables) if best is None else best.choice
            picked = [around(count, some, state) for count, some, state in zip(states, few, at, strict=True)]
            near = better(picked, best)
            best = near or best
            if best is None:
                break  # the states that cost least are among them
            own = free[turn % len(free)]
            alone = better(_all_of(own, states, best.choice), best)
            best = alone or best
            idle = 0 if near or alone else idle + 1
            if idle == _IDLE:
                break
        return best

    free = _free(states, tables, most)
    first: Found | None = None
    for own in free:
        first = better(_all_of(own, states, [0] * len(states)), first) or first
    found = [walked(start, free) for start in dict.fromkeys((None, first))]
    best = min((own for own in found if own is not None), key=lambda own: own.value, default=None)
    return best or "found no choice that keeps all budgets at once"


def _free(states: Sequence[int], tables: Sequence[Numbers], most: int) -> list[list[bool]]:
    """Which variables have all their states where those with most stay, and where those with fewest do."""
    scopes = [table.variables for table in tables]
    order = sorted(range(len(states)), key=lambda variable: states[variable])

    def affords(free: Sequence[int]) -> bool:
        counts = tuple(count if variable in free else 1 for variable, count in enumerate(states))
        return affordable(counts, scopes, most) == counts

    found = []
    for own in (order, order[::-1]):
        low, high = 0, len(own)
        while high - low > 1:  # so many may be free, and so many may not
            middle = (low + high) // 2
            low, high = (middle, high) if affords(own[:middle]) else (low, middle)
        found.append([variable in own[:low] for variable in range(len(states))])
    return found


def _all_of(free: Sequence[bool], states: Sequence[int], at: Sequence[int]) -> list[Ints]:
    """All states of the free variables, of the others the given one."""
    return [
        np.arange(count) if own else np.array([state], np.intp)
        for own, count, state in zip(free, states, at, strict=True)
    ]


def _groups(states: int, few: int) -> Ints:
    """Where each group of neighbouring states begins."""
    return np.arange(few) * states // few


def _merged(table: Numbers, starts: Sequence[Ints]) -> Numbers:
    values, may = np.where(table.open[..., None], table.values, np.inf), table.open
    for axis, own in enumerate(starts):
        values, may = np.minimum.reduceat(values, own, axis), np.logical_or.reduceat(may, own, axis)
    return Numbers(table.variables, np.where(may[..., None], values, 0.0), may)


def _cheapest(states: Sequence[int], tables: Sequence[Numbers]) -> list[int]:
    """The state of each variable that may cost least, in the budget where it costs most of the room."""
    costs = [np.zeros(count) for count in states]
    for table in tables:
        share = np.where(table.open, table.values[..., :-1].max(axis=-1), np.inf)
        for axis, variable in enumerate(table.variables):
            others = tuple(other for other in range(share.ndim) if other != axis)
            costs[variable] = costs[variable] + share.min(axis=others)
    return [int(own.argmin()) for own in costs]


def _spread(states: int, few: int, at: int) -> Ints:
    """So many states, one of them given, the others far from each other."""
    picked = np.linspace(0, states - 1, few).round().astype(np.intp)
    picked[np.abs(picked - at).argmin()] = at
    return picked


def _above(states: int, few: int, at: int) -> Ints:
    """So many neighbouring states, of which the given one is in the middle or just before it."""
    return min(max(0, at - (few - 1) // 2), states - few) + np.arange(few)


def _below(states: int, few: int, at: int) -> Ints:
    """So many neighbouring states, of which the given one is in the middle or just after it."""
    return min(max(0, at - few // 2), states - few) + np.arange(few)


_LOOKS = (_spread, _above, _below)
"""Neighbourhoods, in turns."""


def _some(table: Numbers, picked: Sequence[Ints]) -> Numbers:
    at = np.ix_(*(picked[variable] for variable in table.variables))
    return replace(table, values=table.values[at], open=table.open[at])
