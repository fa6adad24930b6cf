"""The Lagrangian of a joint problem: prices for its budgets, the bound that they give, and the best choice.

At any prices the least sum of losses and priced costs, less the price of all room, bounds the loss of all
choices (Geoffrion 1974, "Lagrangean relaxation for integer programming"). The best prices are found by
cutting planes (Kelley 1960), which for one budget close in from both sides (Handler & Zang 1980, "A dual
algorithm for the constrained shortest path problem").
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxdecomp.search.elimination import Buckets, Floats, Numbers, buckets, least, minimise
from onnxdecomp.search.knapsack import PRICE_FACTORS
from onnxdecomp.search.partial_choices import Bounds, Found, better_than, search

_CUTS = 60
"""Prices that are tried to find the best ones."""

_DEAREST = 1e6
"""The most that the room of a budget may be worth, over the largest loss."""

# A quick look finds a good choice; the others mostly have to prove it only.
_PASSES = (300_000, 3_000_000, 30_000_000)


def choose(
    states: Sequence[int], tables: Sequence[Numbers], budgets: int, *, passes: Sequence[int] = _PASSES
) -> Found | str:
    """The best choice found within budgets that have room for 1, or why there is none.

    Args:
        states: Of every variable.
        tables: Costs and losses.
        budgets: How many.
        passes: Partial choices and prices that are tried, search after search.
    """
    posed = buckets(states, tables, budgets + 1)
    bounds, most = _bounds(posed, tables, budgets), largest(tables)
    best = Found((), most, 0.0)
    for work in passes if bounds.least < most else ():
        found = search(posed, bounds, best, work // len(bounds.start))
        best = replace(found, left=max(best.left, bounds.least, found.left))
        if best.left >= better_than(best.value):
            break
    if not best.choice:
        return (
            "there is" if max(best.left, bounds.least) >= most else "found"
        ) + " no choice that keeps all budgets at once"
    inside = dict(zip(posed.order, best.choice, strict=True))
    return replace(best, choice=tuple(inside[variable] for variable in range(len(inside))))


def bound(states: Sequence[int], tables: Sequence[Numbers], budgets: int) -> float:
    """What every choice loses at least; see `choose`."""
    return _bounds(buckets(states, tables, budgets + 1), tables, budgets).least


def largest(tables: Sequence[Numbers]) -> float:
    """More than any choice loses: a bound above it says that there is none."""
    return math.fsum(float(entry.values[..., -1].max()) for entry in tables) * (1 + 1e-6) or 1.0


def _bounds(posed: Buckets, tables: Sequence[Numbers], budgets: int) -> Bounds:
    """The problem at the best prices and at some around them, and its costs alone."""
    prices = _best_price(posed) if budgets == 1 else _best_prices(posed, budgets, largest(tables))
    factors = itertools.product(PRICE_FACTORS.get(budgets, (1.0,)), repeat=budgets)
    trials = np.unique(prices * np.array(list(factors)), axis=0)
    # The prices themselves come first.
    trials = np.concatenate([prices[None], trials[(trials != prices).any(axis=1)]])
    weights = np.concatenate([np.insert(trials, budgets, 1.0, axis=1), np.eye(budgets + 1)[:budgets]])
    minimum = minimise(posed, weights)
    paid = np.concatenate([trials.sum(axis=1), np.zeros(budgets)])
    size = np.where(np.isfinite(minimum.value), minimum.value, 0.0) + 2 * paid
    rounding = 4 * (len(tables) + 1) * float(np.finfo(np.float64).eps * size.max())
    return Bounds(minimum, minimum.value - paid, len(trials), rounding)


def _best_price(posed: Buckets) -> Floats:
    """The price of one budget at which the bound is highest, by closing in from both sides.

    Of two choices, one of which costs too much and one too little, the price at which both are equally good
    is tried next; where nothing is better there, it is the best.
    """
    (dear, dear_loss), (cheap, cheap_loss) = (
        least(posed, weights)[1].tolist() for weights in ((0.0, 1.0), (1.0, 0.0))
    )
    price = 0.0
    for _ in range(_CUTS):
        if not (dear > 1 and dear > cheap and cheap_loss > dear_loss):
            break
        price = (cheap_loss - dear_loss) / (dear - cheap)
        value, numbers = least(posed, (price, 1.0))
        cost, loss = numbers.tolist()
        if not value < (dear_loss + price * dear) * (1 - 1e-13):
            break
        if cost > 1:
            dear, dear_loss = cost, loss
        else:
            cheap, cheap_loss = cost, loss
    return np.array([price])


def _best_prices(posed: Buckets, budgets: int, most: float) -> Floats:
    """Prices of several budgets at which the bound is about highest.

    Every choice that was best at some prices says that the bound at other prices is no higher than what it
    costs there; the next prices are where all of these allow most, halfway back to the best so far.
    """
    from scipy.optimize import linprog

    starts = np.eye(budgets + 1)[[budgets, *range(budgets)]]
    cuts = [least(posed, weights.tolist())[1] for weights in starts]
    best, value = np.zeros(budgets), cuts[0][-1]
    for _ in range(_CUTS):
        rows = np.array(cuts)
        # The unknowns are the prices and the bound, both over the largest loss.
        solved = linprog(
            np.append(np.zeros(budgets), -1.0),
            np.column_stack([1.0 - rows[:, :-1], np.ones(len(rows))]),
            rows[:, -1] / most,
            bounds=[*[(0.0, _DEAREST)] * budgets, (None, None)],
            method="highs-ds",
        )
        if solved.status != 0 or solved.x is None or solved.x[-1] * most <= value + 1e-6 * abs(value):
            break
        prices = (best + np.maximum(solved.x[:-1], 0.0) * most) / 2
        low, numbers = least(posed, [*prices.tolist(), 1.0])
        cuts.append(numbers)
        reached = float(low - prices.sum())
        if reached > value:
            best, value = prices, reached
        if value > most:
            break
    return best
