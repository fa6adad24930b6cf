"""What a timing says: faster, no faster, or undecided, in words that are true of its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from onnxdecomp.runtime.timing import NEGLIGIBLE, Ratio

Outcome: TypeAlias = Literal["faster", "no faster", "undecided"]

WORTH = 0.98
"""A ratio at most so high is a gain to keep where the interval leaves open whether it is one."""

_NOISY = 1.1
"""An interval whose ends are further apart than by this factor comes from a noisy machine."""


@dataclass(frozen=True)
class Finding:
    """Whether a model is faster than another.

    Attributes:
        ratio: Its time over the other's.
        against: What the other's time is called: "the original's time".
        limit: Seconds within which it was to be decided.
    """

    ratio: Ratio | None
    against: str
    limit: float

    @property
    def outcome(self) -> Outcome:
        if self.ratio is None:
            return "no faster"
        if self.ratio.high < 1:
            return "faster"
        return "no faster" if self.ratio.decided else "undecided"

    @property
    def pays(self) -> bool:
        """Whether to keep it: it is faster, or undecided and the middle of the interval is a gain."""
        if self.outcome == "undecided":
            return self.ratio is not None and self.ratio.value <= WORTH
        return self.outcome == "faster"

    @property
    def took(self) -> str:
        """Its time: "1.20x the original's time"."""
        return (
            f"no less than {self.against}"
            if self.ratio is None
            else f"{self.ratio.value:.2f}x {self.against}"
        )

    @property
    def why(self) -> str:
        """Why it is not known to be faster: "undecided within 30 s: …" or what it took."""
        if self.ratio is None:
            return f"takes {self.took}"
        low, high = self.ratio.low, self.ratio.high
        if self.outcome == "undecided":
            cause = "the difference is too small" if high <= _NOISY * low else "the machine is too noisy"
            interval = f"{low:.2f} to {high:.2f} times {self.against}"
            return f"undecided within {self.limit:.3g} s: {cause} ({interval})"
        if self.ratio.value < 1:
            return f"gains less than {NEGLIGIBLE:.0%} ({low:.3f} to {high:.3f} times {self.against})"
        return f"takes {self.took}"
