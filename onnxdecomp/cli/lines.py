"""Progress where nobody looks at a terminal: a line now and then, for logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxdecomp.runtime.deadline import spoken
from onnxdecomp.runtime.estimate import Estimate

EVERY = 30.0
"""Seconds between two lines; a run that is over sooner has none."""

_STEPS = ((20, 1), (110, 5), (7200, 60))
"""Below so many seconds a duration is told in steps of as many."""


@dataclass(eq=False)
class Lines:
    """Says what is being done, how far that is, and how long the rest may take.

    Attributes:
        say: Writes a line.
        estimate: Of the time.
    """

    say: Callable[[str], object]
    estimate: Estimate
    _last: float = 0.0

    def __call__(self, what: str = "", done: float | None = None, total: float | None = None) -> None:
        left = self.estimate.left(what, done or 0, total or 0)
        elapsed = self.estimate.elapsed
        if not what or elapsed - self._last < EVERY:
            return
        self._last = elapsed
        steps = f" ({done or 0:.0f} of {total:.0f})" if total else ""
        more = f", {said}" if (said := said_of(left)) else ""
        self.say(f"{what}{steps}: {_rounded(elapsed)} so far{more}")


def said_of(left: float | None) -> str:
    """The time that is left, for people; "" where nothing is known of it."""
    return "" if left is None else f"about {_rounded(left)} left"


def _rounded(seconds: float) -> str:
    """In steps of seconds, 5 s, minutes, or tenths of an hour: more digits would promise too much."""
    step = next((step for limit, step in _STEPS if seconds < limit), 360)
    return spoken(float(max(1, round(seconds / step) * step)))
