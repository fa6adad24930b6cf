"""Joint problems whose tables are too large for elimination: bounded by a coarser one, solved in parts.

Where neighbouring states of a variable are taken together, each combination with the smallest numbers of
those that it stands for, the problem is smaller and no choice is worse in it (state-space relaxation:
Christofides, Mingozzi & Toth 1981): its bound holds. Choices come from the problem with some states of each
variable only, those around the best choice so far, again and again (Ahuja et al. 2002, "A survey of very
large-scale neighborhood search techniques").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxdecomp.search.elimination import Ints, Numbers
from onnxdecomp.search.lagrangian import bound, choose, largest
from onnxdecomp.search.partial_choices import Found, better_than

_ROUNDS, _IDLE = 12, 3
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
) -> Found | str:
    """The best choice found within budgets that have room for 1, or why there is none.

    Args:
        states: Of every variable.
        tables: Costs and losses.
        coarser: The same as `optimistic` has made them.
        few: How many states of each variable elimination can do with.
        budgets: How many.
    """
    low = bound(few, coarser, budgets)
    if low >= largest(tables):
        return "there is no choice that keeps all budgets at once"
    best: Found | None = None
    idle = 0
    at = _cheapest(states, tables)
    for turn in range(_ROUNDS):
        look = _LOOKS[turn % len(_LOOKS)]
        picked = [look(count, some, state) for count, some, state in zip(states, few, at, strict=True)]
        found = choose(few, [_some(table, picked) for table in tables], budgets, passes=_WORK)
        if isinstance(found, str) or idle == _IDLE:
            break
        idle += 1
        if best is None or found.value < better_than(best.value):
            at = [int(own[state]) for own, state in zip(picked, found.choice, strict=True)]
            best, idle = Found(tuple(at), found.value, low), 0
    return best or "found no choice that keeps all budgets at once"


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
