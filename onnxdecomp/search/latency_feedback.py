"""What is expected of a plan's latency is corrected by what is measured of it, a few times over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.select import Chosen

ROUNDS = 4
"""Times that a plan's latency is measured and the next one chosen accordingly."""

_CLOSE = 1.03
"""A plan that is faster than wanted by at most this factor is not improved on."""

_ASIDE = 1.01
"""Aimed a little below what is wanted: what is measured again at the end differs by as much."""


def refine_by_latency(
    choose: Callable[[float], Chosen | OutOfReach],
    measure: Callable[[Plan], float],
    wanted: float | None,
    *,
    quantized: bool = False,
    start: float = 1.0,
) -> Chosen | OutOfReach:
    """The plan of least loss among those that were measured to be as fast as wanted; else the fastest.

    Args:
        choose: The best plan where plans take so many times what is expected of them.
        measure: The latency of a plan over the original's.
        wanted: The most that it may be; None takes the first plan, measured.
        quantized: Whether the model is quantized afterwards, and so another one even with every layer kept.
        start: What the first plan is chosen by, from a measurement of another one like it.
    """
    seen: list[Chosen] = []
    correction = start
    for _ in range(ROUNDS):
        found = choose(correction)
        if not seen and correction != 1.0 and not _changes(found):
            # The other plan was a bad guess: this is what was asked for.
            found = choose(1.0)
        if not (seen or quantized or wanted is None):
            found = _something(choose, found, wanted)
        if isinstance(found, OutOfReach) or not found.plan.changes or found.latency is None:
            # Only the first is what was asked for: the others hang on the measurement before them.
            if not seen:
                return found
            break
        measured = measure(found.plan)
        seen.append(replace(found, measured=measured))
        if wanted is None or measured <= wanted <= _CLOSE * measured:
            break
        correction = corrected(seen[-1]) or 1.0

    def rank(chosen: Chosen) -> tuple[bool, float]:
        assert chosen.measured is not None
        missed = wanted is not None and chosen.measured > wanted
        return missed, chosen.measured if missed else chosen.loss

    return min(seen, key=rank)


def corrected(chosen: Chosen | OutOfReach) -> float | None:
    """What a plan was measured to take over what was expected of it, aimed a little lower; None: unknown."""
    if isinstance(chosen, OutOfReach) or not chosen.latency or chosen.measured is None:
        return None
    return _ASIDE * chosen.measured / chosen.latency


def _changes(found: Chosen | OutOfReach) -> bool:
    return not isinstance(found, OutOfReach) and bool(found.plan.changes)


def _something(
    choose: Callable[[float], Chosen | OutOfReach], found: Chosen | OutOfReach, wanted: float
) -> Chosen | OutOfReach:
    """A plan with a layer decomposed, where simplification alone is as fast as wanted.

    A file in which nothing is decomposed is the original, which nobody has simplified.
    """
    if isinstance(found, OutOfReach) or found.plan.changes or not found.latency or wanted >= 1:
        return found
    least = choose(_ASIDE * wanted / found.latency)
    return found if isinstance(least, OutOfReach) else least
