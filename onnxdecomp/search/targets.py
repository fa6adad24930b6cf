"""Budget: what `--target` says, and the absolute limit that it sets for a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from onnxdecomp.errors import UsageError

Quantity = Literal["macs", "params", "size", "latency", "error", "drop"]

FORMS = (
    '"macs=2x", "params=4x", "size=3x" or "latency=1.5x" (original over result), "macs=20M", "params=1M", '
    '"size=1.5MB", "latency=3.2ms", "error=0.05" or "error=5%", "drop=0.01" or "drop=1pp"; several with '
    "commas between"
)
"""The forms of `--target`, for messages and help."""

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BYTES = {
    **{"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    **{"kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},
}
_SHARES = {"": 1.0, "%": 0.01}

_UNITS: Mapping[Quantity, Mapping[str, float]] = {
    "macs": _COUNTS,
    "params": _COUNTS,
    "size": _BYTES,
    # No bare number: seconds and milliseconds are both plausible.
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "error": _SHARES,
    "drop": {**_SHARES, "pp": 0.01},
}

_VALUE = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?) *(?P<unit>[a-z%]*)")


@dataclass(frozen=True)
class Budget:
    """A limit on one quantity; `str` gives the text back that `parse_budget` reads.

    Attributes:
        quantity: "macs", "params" (numbers stored), "size" (bytes of the file), "latency", "error"
            (relative L2 distance of the outputs) or "drop" (loss of accuracy).
        limit: With `relative` the factor of original over result. Otherwise the most that is allowed: a
            count, bytes, milliseconds, or a fraction (drop 0.01 is one percentage point).
        relative: Whether the limit follows from what the original has; never for "error" and "drop".

    Raises:
        UsageError: The limit is out of its range.
    """

    quantity: Quantity
    limit: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            raise UsageError(f"--target {self.quantity}: {self.limit} is no limit")
        if self.relative:
            if self.on_loss:
                raise UsageError(f"--target {self}: has no factor, give {_example(self.quantity)}")
            if self.limit < 1:
                raise UsageError(f"--target {self}: give a factor of 1 or more (2x: half of the original)")
        elif self.on_loss:
            if not 0 <= self.limit < 1:
                raise UsageError(
                    f"--target {self}: give a fraction from 0 to below 1, {_example(self.quantity)}"
                )
        elif self.limit <= 0:
            raise UsageError(f"--target {self}: give a number above 0")

    @property
    def on_loss(self) -> bool:
        """Whether it limits what the result may lose, not what it may cost."""
        return self.quantity in ("error", "drop")

    def allowed(self, original: float) -> float:
        """The most that the result may have of the quantity, in its unit, if the original has `original`."""
        return original / self.limit if self.relative else self.limit

    def __str__(self) -> str:
        number = repr(self.limit).removesuffix(".0")
        return f"{self.quantity}={number}{'x' if self.relative else 'ms' * (self.quantity == 'latency')}"


def parse_budget(text: str) -> Budget:
    """Read one budget; the forms are in FORMS. Units and suffixes in either case; K is 1000, KiB is 1024.

    Raises:
        UsageError: It is none of these, or a number is out of its range.
    """
    name, _, value = text.strip().partition("=")
    name, value = name.strip().lower(), value.strip().lower()
    if name not in get_args(Quantity):
        raise UsageError(f"--target {text.strip()!r} is no budget: give {FORMS}")
    quantity = cast(Quantity, name)
    found = _VALUE.fullmatch(value)
    unit = found["unit"] if found else ""
    if not found or (unit != "x" and unit not in _UNITS[quantity]):
        raise UsageError(
            f"--target {text.strip()!r} is no limit on {quantity}: give {_example(quantity)}, "
            f"the units are {', '.join(_units(quantity))}"
        )
    if unit == "x":
        return Budget(quantity, float(found["number"]), relative=True)
    return Budget(quantity, float(found["number"]) * _UNITS[quantity][unit])


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Read budgets with commas between, in the order given; all must be kept at once.

    Raises:
        UsageError: None is given, a quantity is limited twice, or as `parse_budget`.
    """
    budgets = tuple(parse_budget(part) for part in text.split(","))
    quantities = [budget.quantity for budget in budgets]
    for quantity in quantities:
        if quantities.count(quantity) > 1:
            raise UsageError(f"--target {text!r} limits {quantity} twice: give one of them")
    return budgets


def _example(quantity: Quantity) -> str:
    return {
        "macs": '"macs=2x" or "macs=20M"',
        "params": '"params=4x" or "params=1M"',
        "size": '"size=3x" or "size=1.5MB"',
        "latency": '"latency=1.5x" or "latency=3.2ms"',
        "error": '"error=0.05" or "error=5%"',
        "drop": '"drop=0.01", "drop=1pp" or "drop=1%"',
    }[quantity]


def _units(quantity: Quantity) -> list[str]:
    shown = {"kib": "KiB", "mib": "MiB", "gib": "GiB"}
    upper = quantity in ("macs", "params", "size")
    named = [shown.get(unit, unit.upper() if upper else unit) for unit in _UNITS[quantity] if unit]
    return named if quantity in ("error", "drop") else ["x", *named]
