"""What a run has for its passes: a plan, data, a latency meter, made for those that ask for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.graph.load import load, source
from onnxdecomp.graph.output_file import size
from onnxdecomp.pipeline.base import Pass, PassContext, Planner, Progress, Quantization, Quantizer
from onnxdecomp.quantization.bounds import Memory
from onnxdecomp.runtime.providers import provider_of
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.targets import allowance, parse_budgets

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from onnxdecomp.calibration.statistics import Calibration
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.data.mask import Mask
    from onnxdecomp.evaluate.task_metrics.measure import Task
    from onnxdecomp.runtime.deadline import Deadline
    from onnxdecomp.search.latency_model import Stopwatch
    from onnxdecomp.tasks.course import Course
    from onnxdecomp.workflow.config import CompressConfig


_APART = 10
"""Of so many calibration inputs one is set apart, where a pass asks for inputs that nothing is fitted to."""


_CHAINS = 0.15
"""Of the time that is left, what timing chains may take."""


@dataclass(frozen=True, eq=False)
class RunContext:
    """What a run has: what it is asked for, and on which inputs and machine it works.

    Attributes:
        config: What is asked for.
        original: The file that came in.
        inputs: Gives what latency is measured on, see onnxdecomp.latency.meter.
        threads: Within an operator.
        progress: Called as the work goes on.
        plan: The plan to carry out, or None.
        calib: Calibration inputs, or None.
        data: Inputs to verify with, and labels where they have some, or None.
        mask: The inputs that say what is padding, or None.
        assumed: Whether the target follows from what the outputs seem to be.
        task: The metric of the task on samples that choices are judged by, or None.
        report_task: The same on `data`, or None.
        timed: The original as it is timed under the setting, where it is converted for it.
        memory: How much of the model survives quantization, as far as the run has found out.
        deadline: When the run is to end, or None.
        course: What is kept of it in its work folder, or None.
        pool: Computes tasks beside this process, or None.
    """

    config: CompressConfig
    original: Path
    inputs: Callable[[], Feeds]
    threads: int
    progress: Progress
    plan: Plan | None = None
    calib: Feeds | None = None
    data: Feeds | None = None
    mask: Mask | None = None
    assumed: bool = False
    task: Task | None = None
    report_task: Task | None = None
    timed: Path | None = None
    memory: Memory = field(default_factory=Memory)
    deadline: Deadline | None = None
    course: Course | None = None
    pool: Executor | None = None

    def report(self, what: str) -> None:
        """Say what is being done now."""
        self.progress(what, 0, 0)


def pass_context(passes: Sequence[Pass], run: RunContext, plan: Plan | None) -> PassContext:
    """What these passes ask for, of what the run has; what takes time is made only for who asks for it.

    Args:
        passes: The pipeline.
        run: What there is.
        plan: To be carried out, with which nothing is searched for.

    Raises:
        UsageError: The data do not fit the model.
        ModelError: ONNX Runtime does not load the model, or it runs on no random input.
    """
    needed = frozenset(need for each in passes for need in each.needs)
    used = frozenset(need for each in passes for need in each.uses)
    quantizer = next((each for each in passes if isinstance(each, Quantizer)), None)
    error, drop = _allowed(passes, run)
    fitted, held_out = (None, None) if run.calib is None else set_apart(passes, run.calib)
    context = PassContext(
        plan=plan,
        calibration=_calibration(run, fitted),
        held_out=held_out,
        evaluation=_judging(run),
        task=run.task,
        memory=run.memory,
        max_error=error,
        max_drop=drop,
        mask=run.mask,
        shapes=run.config.input_shapes,
        provider=run.config.provider,
        seed=run.config.seed,
        spectra=run.config.details,
        progress=run.progress,
        deadline=run.deadline,
        course=run.course,
        pool=run.pool,
    )
    if "latency" in needed or ("latency" in used and run.config.bench):
        context = replace(context, latency=_latency(run, quantizer))
    if "kernels" in used and run.config.bench and not provider_of(run.config.provider).synchronous:
        context = replace(context, kernels=lambda: _latency(run, quantizer).quanta())
    if quantizer is not None:
        context = replace(context, quantization=_ahead(quantizer, context))
    if plan is None and "original_bytes" in needed:
        context = replace(context, original_bytes=size(run.original, source(load(run.original))))
    return context


def set_apart(passes: Sequence[Pass], calib: Feeds) -> tuple[Feeds, Feeds | None]:
    """The inputs that these passes fit to, and those that nothing is fitted to where one asks for them."""
    asked = any("held_out" in each.needs | each.uses for each in passes)
    return calib.apart(_APART) if asked and len(calib) >= _APART else (calib, None)


def _judging(run: RunContext) -> Feeds | None:
    """Inputs that results are judged by on the way: where there are enough, none that are reported on."""
    if run.task is not None:
        return run.task.feeds
    return None if run.data is None else run.data.first(run.config.samples)


def _calibration(run: RunContext, feeds: Feeds | None) -> Calibration | None:
    """The activations are looked at on CUDA where models run there, or on TensorRT; else on the CPU."""
    from onnxdecomp.calibration.statistics import Calibration

    if feeds is None:
        return None
    where = provider_of(run.config.provider).tensors_on
    return Calibration(feeds, provider=where, threads=run.threads, seed=run.config.seed, mask=run.mask)


def _ahead(quantizer: Quantizer, context: PassContext) -> Quantization:
    """What the quantizer will do later, for trials now."""
    own = context.only(quantizer.needs | quantizer.uses)
    return Quantization(quantizer.kernels, lambda model: quantizer.quantized(model, own))


def _latency(run: RunContext, quantizer: Quantizer | None) -> Stopwatch:
    from onnxdecomp.search.latency_model import Stopwatch

    setting = run.config.setting
    kernels = (setting.converted or "float") if quantizer is None else quantizer.kernels
    watch = Stopwatch(run.timed or run.original, run.inputs()[0], setting, kernels)
    if run.course is not None:
        watch = replace(watch, course=run.course.under("latency", repr(setting)))
    if run.deadline is None:
        return watch
    return replace(watch, seconds=min(watch.seconds, _CHAINS * run.deadline.left()))


def _allowed(passes: Sequence[Pass], run: RunContext) -> tuple[float | None, float | None]:
    """The error and the loss of the metric that the result may have, by a target or `max_error`, or None.

    Raises:
        UsageError: A target on the metric cannot be measured, or the original does not keep it.
    """
    targets = [each.target for each in passes if isinstance(each, Planner) and each.target]
    budgets = [budget for text in targets for budget in parse_budgets(text)]
    errors = [budget.limit for budget in budgets if budget.quantity == "error"]
    drops = [allowance(budget, run.task) for budget in budgets if budget.quantity in ("drop", "metric")]
    errors += [] if run.config.max_error is None else [run.config.max_error]
    return min(errors, default=None), min(drops, default=None)
