"""A deadline: how long a run may take, as a value that is handed on and looked at between tasks."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from onnxdecomp.errors import UsageError

SURVEY, SEARCH, APPLY = 0.35, 0.5, 0.75
"""Shares of the time by which layers are weighed, plans are tried, and the plan is carried out.

The first two are of what is left when layers have been timed (see `Deadline.shared_anew`): else timing alone
could use them up, and then nothing was weighed with half of the time to go.
"""

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|)")


@dataclass(frozen=True)
class Deadline:
    """When a run is to end.

    Attributes:
        seconds: That it may take.
        started: When it began, by `clock`.
        spent: Seconds of it that no share is taken of.
        clock: Tells the time in seconds.
    """

    seconds: float
    started: float
    spent: float = field(default=0.0, kw_only=True)
    clock: Callable[[], float] = field(default=time.monotonic, compare=False, repr=False)

    @staticmethod
    def after(seconds: float) -> Deadline:
        """The deadline of a run that begins now."""
        return Deadline(seconds, time.monotonic())

    def shared_anew(self) -> Deadline:
        """The same end, with shares of the time that is left now."""
        return replace(self, spent=min(self.seconds, max(0.0, self.clock() - self.started)))

    def left(self, share: float = 1.0) -> float:
        """Seconds until this share of the time is over; 0 where it is."""
        return max(0.0, self.started + self.spent + share * (self.seconds - self.spent) - self.clock())

    def passed(self, share: float = 1.0) -> bool:
        """Whether this share of the time is over."""
        return self.left(share) <= 0


def passed(deadline: Deadline | None, share: float) -> bool:
    """Whether this share of the time is over; never without a deadline."""
    return deadline is not None and deadline.passed(share)


def duration(said: str | float) -> float:
    """Seconds, of a number of them or a text such as "90s", "5m", "1.5h".

    Raises:
        UsageError: It is neither, or not above 0.
    """
    if isinstance(said, str):
        found = _DURATION.fullmatch(said.strip())
        seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    else:
        seconds = said
    if not 0 < seconds < math.inf:
        raise UsageError(f"--time-limit {said}: is no time; say it as 90s, 5m or 1h")
    return seconds


def spoken(seconds: float) -> str:
    """A duration for people: "90 s", "5 min", "2 h"."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
