"""Which samples judge a search by a metric, and which are reported: others, where there are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.measure import MetricChange, Task
from onnxdecomp.search.metrics.base import Change, Outcome
from onnxdecomp.search.targets import parse_budgets
from onnxdecomp.workflow.context import set_apart
from onnxdecomp.workflow.request import judges, metric_of

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.data.mask import Mask
    from onnxdecomp.evaluate.task_metrics.base import TaskMetric
    from onnxdecomp.workflow.config import CompressConfig

_FEWEST = 8
"""Samples from which on a set is divided."""


@dataclass(frozen=True, eq=False)
class Judging:
    """The metric of the task on the samples of a run.

    Attributes:
        data: Inputs to verify with: those that were given, or what of them did not judge the search.
        search: The metric on samples that choices are judged by, or None where none is.
        report: The metric on `data`, or None.
        notes: What a user should know.
    """

    data: Feeds | None
    search: Task | None = None
    report: Task | None = None
    notes: tuple[str, ...] = ()


def judging(
    config: CompressConfig,
    model: Path,
    calib: Feeds | None,
    given: Feeds | None,
    mask: Mask | None,
    threads: int,
) -> Judging:
    """Divide the samples: choices are made on some, and what comes of them is reported on others.

    A search is judged by calibration inputs that its trials are not fitted to, a quarter, if the metric needs
    no labels or they have some; else by half of the samples with labels, and the other half is verified with.

    Args:
        config: What is asked for.
        model: The file that came in.
        calib: Inputs to fit to, or None.
        given: Inputs to verify with, where others are given, or None.
        mask: Which positions are real.
        threads: Within an operator.

    Raises:
        UsageError: There is no such metric, or nothing with the labels that it needs.
    """
    data, metric = given or calib, metric_of(config)
    if metric is None or data is None:
        return Judging(data)
    if config.metric is None and all(each is None or each.labels is None for each in (calib, data)):
        where = f"needs labels (there are none in {data.source})"
        raise UsageError(f"--target drop=… {where}: give samples with labels by --eval")
    on = partial(Task, metric, model, mask=mask, provider=config.provider, threads=threads)
    if not judges(config):
        return Judging(data, report=on(data))
    if calib is not None and _will_do(metric, calib, given):
        chosen = _held_out(config, calib)
        seen = "" if given is not None else ", which are among those that it is reported on"
        note = f"the search is judged by {metric.name} on {len(chosen)} of the calibration inputs{seen}"
        return Judging(data, on(chosen), _reported(on, data), (note,))
    search, rest = data.halves() if len(data) >= _FEWEST else (data, data)
    share = f"{len(search)} of the {len(data)} samples"
    note = f"the search is judged by {metric.name} on {share} of {data.source}, and verified on the others"
    if rest is data:
        note = (
            f"the search is judged by {metric.name} on the same {len(data)} samples that it is reported on: "
            f"give {_FEWEST} or more, or calibration inputs with labels"
        )
    return Judging(rest, on(search), on(rest), (note,))


def said_of_goal(config: CompressConfig, found: MetricChange | None) -> tuple[str, ...]:
    """That a goal which held where the search was judged is not kept where it is reported; told, and no more.

    Args:
        config: What is asked for.
        found: What the metric says of the result on the samples that are reported, or None.
    """
    if found is None or not judges(config):
        return ()
    outcome = Outcome(metric=Change(found.original, found.new, found.loss, found.points))
    said = []
    for budget in parse_budgets(config.sought or ""):
        if budget.quantity not in ("drop", "metric"):
            continue
        reached = budget.metric.reached(outcome, percent=budget.percent).own
        kept = reached is None or (
            reached >= budget.limit if budget.sign == ">=" else reached <= budget.limit
        )
        if not kept and reached is not None:
            shown = f"{100 * reached:.3g}%" if budget.percent else f"{reached:.4g}"
            said.append(f"{budget} held where the search was judged; on what is reported it is {shown}")
    return tuple(said)


def _will_do(metric: TaskMetric, calib: Feeds, given: Feeds | None) -> bool:
    """Whether calibration inputs can judge a search."""
    if calib.labels is not None or metric.labels == "unused":
        return True
    return metric.labels == "welcome" and (given is None or given.labels is None)


def _held_out(config: CompressConfig, calib: Feeds) -> Feeds:
    """Those that trials are not fitted to."""
    from onnxdecomp.calibration.statistics import Calibration, parted

    return parted(Calibration(set_apart(config.passes, calib)[0]))[1].feeds


def _reported(on: Callable[[Feeds], Task], data: Feeds) -> Task | None:
    """The metric on what is verified with; None where that lacks labels that the calibration inputs have."""
    try:
        return on(data)
    except UsageError:
        return None
