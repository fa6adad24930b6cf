"""How long a run will go on: by what typical runs spend on each of their parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

PARTS: tuple[tuple[str, float], ...] = (
    ("load", 0.0),
    ("time layers", 0.1),
    ("weigh", 0.2),
    ("try", 0.4),
    ("decompose ", 0.3),
    ("check", 0.02),
    ("verify", 0.03),
    ("time", 0.05),
)
"""The parts of a run in their order, with the share of the time that each takes where all are there."""

_SOONEST = 0.05
"""The share of the work that must be done before anything is said."""

_LAST = 10.0
"""Seconds that are left at least where the time limit is over: the result is still verified."""


@dataclass(eq=False)
class Estimate:
    """The time that is left, learnt as the work goes on.

    A part that is over counts with the time that it took; those ahead of it, of which nothing is known, with
    their usual share beside those that were there. A part that a run goes back to counts no second time.
    Loading says nothing of the rest.

    Attributes:
        clock: Tells the time in seconds.
        most: Seconds after which a time limit ends the run, about; None where there is none.
    """

    clock: Callable[[], float] = time.monotonic
    most: float | None = None
    _began: float = field(init=False)
    _place: int = -1
    _seen: float = 0.0
    _part: float = 0.0
    _loaded: float = 0.0

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self._began

    def left(self, what: str, done: float = 0, total: float = 0) -> float | None:
        """Seconds until the end; None where nothing can be said yet.

        Args:
            what: What is being done, as progress says it.
            done, total: Steps of that; 0 in all where it has none.
        """
        place = next((i for i, (name, _) in enumerate(PARTS) if what.startswith(name)), self._place)
        if place > self._place:
            if self._place <= 0:
                self._loaded = self.elapsed
            if self._place >= 0:
                self._seen += PARTS[self._place][1]
            self._place, self._part = place, 0.0
        if self._place < 0:
            return None
        share = PARTS[self._place][1]
        if total and place == self._place:
            self._part = min(1.0, max(self._part, done / total))
        seen = self._seen + share * self._part
        ahead = share * (1 - self._part) + sum(own for _, own in PARTS[self._place + 1 :])
        if seen < _SOONEST:
            return None
        left = (self.elapsed - self._loaded) * ahead / seen
        return left if self.most is None else min(left, max(_LAST, self.most - self.elapsed))
