"""Losses as targets: the error of the outputs, what a metric of the task loses, classes that change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.statistics import Calibration, parted
from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.measure import Task
from onnxdecomp.runtime.metrics import score_rows
from onnxdecomp.search.metrics.base import FRACTIONS, Amount, LossMetric, Outcome, Reference
from onnxdecomp.search.sensitivity import output_errors


@dataclass(frozen=True)
class Error(LossMetric):
    """The relative L2 error of the worst output: a state that is fed back is an output, too."""

    name: ClassVar[str] = "error"
    units: ClassVar[Mapping[str, float]] = FRACTIONS
    examples: ClassVar[str] = '"error=0.05" or "error=5%"'
    margin: ClassVar[float] = 0.95
    power: ClassVar[float] = 2.0
    of_outputs: ClassVar[bool] = True

    def reached(self, outcome: Outcome, *, percent: bool = False) -> Amount:
        return Amount(outcome.error)

    def expected(self, limit: float) -> float:
        # What layers lose adds up to more than the network does once they are fitted to each other.
        return limit**2 * 1.5

    def measure(self, reference: Reference) -> Callable[[ir.Model], float]:
        outputs, calibration = reference.outputs, reference.calibration
        return lambda made: max(output_errors(made, outputs, calibration), default=0.0) ** 0.5


_BOLD = 0.03
"""The loss of the first plan that is tried for a drop of a metric, at most."""


@dataclass(frozen=True)
class Drop(LossMetric):
    """What the metric of the task loses: 0.01 of an accuracy is one percentage point.

    In percent it is a share of the original's value, but of a share of samples, such as accuracy, in points.
    """

    name: ClassVar[str] = "drop"
    units: ClassVar[Mapping[str, float]] = {**FRACTIONS, "pp": 0.01}
    examples: ClassVar[str] = '"drop=0.01", "drop=1pp" or "drop=1%"'
    in_percent: ClassVar[bool] = True

    def check(self, limit: float, *, relative: bool) -> str | None:
        if relative:
            return f"has no factor, give {self.examples}"
        return None if limit >= 0 else f"give a number of 0 or more, {self.examples}"

    def allowed(self, limit: float, sign: str, percent: bool, task: Task | None) -> float:
        if task is None:
            raise UsageError("--target drop=… needs labels: give samples with labels by --eval")
        if (task.metric.points or percent) and limit >= 1:
            given = f"{100 * limit:g}%" if percent else f"{limit:g}"
            raise UsageError(
                f"--target drop={given}: give less than all of {task.metric.name}, {self.examples}"
            )
        if not percent or task.metric.points:
            return limit
        before = abs(task.original.value)
        if not before:
            raise UsageError(
                f"--target drop={100 * limit:g}%: {task.metric.name} of the original is 0, which has no "
                "percents; give a number"
            )
        return limit * before

    def reached(self, outcome: Outcome, *, percent: bool = False) -> Amount:
        found = outcome.metric
        if found is None:
            return Amount(None if outcome.accuracy is None else -outcome.accuracy)
        if percent and not found.points:
            return Amount(found.loss / abs(found.original) if found.original else None)
        return Amount(found.loss)

    def expected(self, limit: float) -> float:
        return min(2.0 * limit, _BOLD)

    def measure(self, reference: Reference) -> Callable[[ir.Model], float]:
        assert reference.task is not None
        return reference.task.loss


@dataclass(frozen=True)
class TaskValue(Drop):
    """The value itself of the metric of the task: at least, or of a rate of errors or a distance at most."""

    name: ClassVar[str] = "metric"
    units: ClassVar[Mapping[str, float]] = FRACTIONS
    examples: ClassVar[str] = '"metric>=0.8" or "metric<=0.3"'
    signs: ClassVar[tuple[str, ...]] = (">=", "<=")
    in_percent: ClassVar[bool] = False

    def check(self, limit: float, *, relative: bool) -> str | None:
        return f"has no factor, give {self.examples}" if relative else None

    def allowed(self, limit: float, sign: str, percent: bool, task: Task | None) -> float:
        if task is None:
            raise UsageError(f"--target metric{sign}{limit:g} needs a metric: name it with --metric")
        name, better = task.metric.name, "<=" if task.metric.lower_is_better else ">="
        if sign != better:
            what = "lower" if task.metric.lower_is_better else "higher"
            raise UsageError(
                f"--target metric{sign}{limit:g}: of {name} {what} is better, give metric{better}…"
            )
        before = task.original.value
        left = task.metric.loss(before, limit)
        if left < 0:
            raise UsageError(
                f"--target metric{sign}{limit:g} is out of reach: {name} of the original is {before:.6g} on "
                "the samples that the search is judged by"
            )
        return left

    def reached(self, outcome: Outcome, *, percent: bool = False) -> Amount:
        return Amount(None if outcome.metric is None else outcome.metric.new)


@dataclass(frozen=True)
class Disagreement(LossMetric):
    """The share of calibration inputs, out of those that trials are not fitted to, whose class changes.

    It needs no labels. Of n inputs it tells multiples of 1/n only.
    """

    name: ClassVar[str] = "disagreement"
    units: ClassVar[Mapping[str, float]] = FRACTIONS
    examples: ClassVar[str] = '"disagreement=0.02" or "disagreement=2%"'

    def reached(self, outcome: Outcome, *, percent: bool = False) -> Amount:
        return Amount(None if outcome.agreement is None else 1 - outcome.agreement)

    def expected(self, limit: float) -> float:
        return min(2.0 * limit, _BOLD)

    def measure(self, reference: Reference) -> Callable[[ir.Model], float]:
        unseen = parted(reference.calibration)[1]
        before = predictions(reference.model, unseen.feeds, unseen, "whether two models agree")
        return lambda made: float(
            np.mean(predictions(made, unseen.feeds, unseen, "whether two models agree") != before)
        )


def predictions(model: ir.Model, feeds: Feeds, run: Calibration, what: str) -> Array:
    """The class of the largest score in every row of the first output, in the order of the samples.

    Args:
        model: The model.
        feeds: The samples.
        run: Where the model is run, and in which batches.
        what: What is unknown where there are no scores, for the message.

    Raises:
        UsageError: The model's first output is no table of scores.
    """
    name = str(model.graph.outputs[0].name)
    observer = open_observer(model, [name], provider=run.provider, threads=run.threads)
    rows = []
    for feed in feeds.batches(run.batch):
        scores = score_rows(observer.run(feed)[0])
        if scores is None:
            raise UsageError(f"the output {name!r} holds no scores of classes: {what} is unknown")
        rows.append(scores.argmax(1))
    return np.concatenate(rows)
