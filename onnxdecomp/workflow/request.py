"""What a configuration asks for, read: the plan, the training, what a record says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.regular_files import require_text
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.targets import parse_budgets
from onnxdecomp.training.settings import Settings, parse_settings, require_torch

if TYPE_CHECKING:
    from onnxdecomp.core.json_values import Json
    from onnxdecomp.evaluate.task_metrics.base import TaskMetric
    from onnxdecomp.workflow.config import CompressConfig, PlanSource


def read_plan(plan: PlanSource) -> Plan:
    """A plan, as it is, as `Plan.to_json` wrote it, or in a file; the record of a run holds one too.

    Raises:
        UsageError: The file cannot be read, or holds no plan.
    """
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, Mapping):
        held = plan.get("plan", plan)
        return Plan.from_json(held if isinstance(held, Mapping) else {})
    try:
        require_text(Path(plan), "a plan")
        value = json.loads(Path(plan).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan {plan}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{plan} is no JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise UsageError(f"{plan} holds no plan")
    return read_plan(value)


def plan_of(config: CompressConfig) -> Plan | None:
    """The plan to carry out; whether kept layers are repaired the caller may say anew.

    Raises:
        UsageError: As `read_plan`.
    """
    if config.plan is None:
        return None
    plan = read_plan(config.plan)
    return replace(plan, repair=config.repair) if config.origins.get("repair") == "caller" else plan


def training_of(config: CompressConfig) -> Settings | None:
    """How to train the result, with the run's seed where the settings name none; None where it is not.

    Raises:
        UsageError: The settings are not valid, or torch, which a refinement needs too, is not installed.
    """
    if config.refine:
        require_torch()
    if config.finetune is None:
        return None
    wanted = parse_settings(config.finetune, seed=config.seed)
    require_torch()
    return wanted


def metric_of(config: CompressConfig) -> TaskMetric | None:
    """The metric of the task: the one that is named, accuracy where a target is a drop, or None.

    Raises:
        UsageError: There is no such metric, or its module cannot be imported.
    """
    from onnxdecomp.evaluate.task_metrics.registry import task_metric

    if config.metric is not None:
        return task_metric(config.metric)
    return task_metric("top1") if "drop" in _quantities(config) else None


def _named(config: CompressConfig) -> str | None:
    """The metric's name; what is a name already is not imported for that."""
    if isinstance(config.metric, str):
        return config.metric
    return None if (metric := metric_of(config)) is None else metric.name


def judges(config: CompressConfig) -> bool:
    """Whether the search is judged by the metric."""
    return bool(_quantities(config) & {"drop", "metric"})


def _quantities(config: CompressConfig) -> set[str]:
    return set() if config.sought is None else {each.quantity for each in parse_budgets(config.sought)}


def request_of(config: CompressConfig) -> dict[str, Json]:
    """What was asked for, as far as it says how far to go: the record's `request`."""
    planned = config.plan is not None
    ranks = config.plans and config.sought is None and not planned
    return {
        "target": config.sought,
        "metric": _named(config),
        "rank": config.rank or None if ranks else None,
        "rules": list(config.layers) if config.plans else [],
        "method": config.method if config.plans else None,
        "mask": config.mask or None,
        "plan": planned,
        "max_error": config.max_error,
    }


@contextmanager
def quoting(config: CompressConfig) -> Iterator[None]:
    """Let what is said of the target quote what the user wrote.

    Raises:
        UsageError: As the block does, of --max-error in place of a target that was made of it.
    """
    try:
        yield
    except UsageError as error:
        if config.derived_target and config.max_error is not None:
            (made,) = parse_budgets(config.derived_target)
            quoted = str(error).replace(f"--target {made}", f"--max-error {made.limit:g}")
            error.args = (quoted,)  # of whatever class it is
        raise
