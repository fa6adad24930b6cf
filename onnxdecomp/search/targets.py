"""Budget: what `--target` says, and the absolute limit that it sets for a model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypeAlias

from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.measure import Task
from onnxdecomp.search.metrics.base import CostMetric, LossMetric, Metric
from onnxdecomp.search.metrics.registry import METRICS
from onnxdecomp.search.plan_options import Objective

Sign: TypeAlias = Literal["=", ">=", "<="]

_TARGET = re.compile(r"(?P<name>[^<>=]*)(?P<sign>[<>]?=)(?P<value>.*)", re.DOTALL)
_VALUE = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?) *(?P<unit>[a-z%]*)")

_A_FACTOR = 50.0
"""No model costs less than so many, whatever is counted: such a number was meant as a factor."""


@dataclass(frozen=True)
class Budget:
    """A limit on one quantity; `str` gives the text back that `parse_budget` reads.

    Attributes:
        quantity: The name of its metric: "macs", "params" (numbers stored), "size" (bytes of the file),
            "latency", "error" (relative L2 distance of the outputs), "drop" (what a metric loses), …
        limit: With `relative` the factor of original over result. Otherwise the most that is allowed: a
            count, bytes, milliseconds, or a fraction (drop 0.01 is one percentage point); of "metric" what
            it must at least, or at most, be.
        relative: Whether the limit follows from what the original has; never for losses.
        percent: Of "drop", whether it was given in percent: of the original's value, or in points.
        sign: What stands between the two; ">=" and "<=" are for "metric".

    Raises:
        UsageError: The limit is out of its range.
    """

    quantity: str
    limit: float
    relative: bool = False
    percent: bool = False
    sign: Sign = "="

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            raise UsageError(f"--target {self.quantity}: {self.limit} is no limit")
        problem = self.metric.check(self.limit, relative=self.relative)
        if problem is not None:
            raise UsageError(f"--target {self}: {problem}")

    @property
    def metric(self) -> Metric:
        """What it limits."""
        return METRICS[self.quantity]

    @property
    def loss(self) -> LossMetric | None:
        """Its metric if it limits what the result may lose, not what it may cost."""
        return self.metric if isinstance(self.metric, LossMetric) else None

    @property
    def on_loss(self) -> bool:
        """Whether it limits what the result may lose, not what it may cost."""
        return self.loss is not None

    @property
    def cost(self) -> CostMetric:
        """Its metric, which is one of cost."""
        assert isinstance(self.metric, CostMetric)
        return self.metric

    def allowed(self, original: float) -> float:
        """The most that the result may have of the quantity, in its unit, if the original has `original`."""
        return original / self.limit if self.relative else self.limit

    def __str__(self) -> str:
        if self.percent:
            return f"{self.quantity}={100 * self.limit:.15g}%"
        return self.metric.text(self.limit, relative=self.relative).replace("=", self.sign, 1)


def allowance(budget: Budget, task: Task | None) -> float:
    """The most that a budget on a loss allows to be lost, in the unit in which its metric measures.

    Raises:
        UsageError: It cannot be measured, or the original itself does not keep it.
    """
    assert budget.loss is not None
    return budget.loss.allowed(budget.limit, budget.sign, budget.percent, task)


def forms() -> str:
    """The forms of `--target`, for messages."""
    shown = ", ".join(metric.examples for metric in METRICS.values())
    return f"{shown} (with x: original over result); several with commas between"


def parse_budget(text: str) -> Budget:
    """Read one budget. Units and suffixes in either case; K is 1000, KiB is 1024.

    Raises:
        UsageError: It has none of the forms of the metrics, or a number is out of its range.
    """
    parts = _TARGET.fullmatch(text.strip())
    name, sign, value = (parts["name"], parts["sign"], parts["value"]) if parts else (text, "=", "")
    name, value = name.strip().lower(), value.strip().lower()
    metric = METRICS.get(name)
    if metric is None:
        close = get_close_matches(name, METRICS, n=1) if parts else []
        hint = f"; did you mean {close[0] + text.strip()[len(name) :]!r}?" if close else f": give {forms()}"
        raise UsageError(f"--target {text.strip()!r} is no budget{hint}")
    found = _VALUE.fullmatch(value) if sign in metric.signs else None
    unit = found["unit"] if found else ""
    if not found or (unit != "x" and unit not in metric.units):
        raise UsageError(
            f"--target {text.strip()!r} is no limit on {name}: give {metric.examples}, "
            f"the units are {', '.join(metric.suffixes())}"
        )
    if unit == "x":
        return Budget(name, float(found["number"]), relative=True)
    if not unit and isinstance(metric, CostMetric) and 1 <= float(found["number"]) < _A_FACTOR:
        raise UsageError(
            f"--target {text.strip()!r} is no limit on {name}, but for all of a model: "
            f"did you mean '{name}={value}x'?"
        )
    limit, percent = float(found["number"]) * metric.units[unit], unit == "%" and metric.in_percent
    return Budget(name, limit, percent=percent, sign=_sign(sign))


def _sign(text: str) -> Sign:
    return "=" if text == "=" else ">=" if text == ">=" else "<="


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


def timed(text: str) -> bool:
    """Whether one of the budgets is on what timing tells."""
    return any(isinstance(b.metric, CostMetric) and b.metric.timed for b in parse_budgets(text))


def about_speed(text: str, objective: Objective) -> bool:
    """Whether budgets are on latency, or on a loss that buys some: not on how large the model is alone."""
    return timed(text) or (objective == "latency" and any(b.on_loss for b in parse_budgets(text)))
