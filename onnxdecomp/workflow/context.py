"""What a run has for its passes: a plan, data, a latency meter, made for those that ask for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdecomp.errors import UsageError
from onnxdecomp.graph.load import load, source
from onnxdecomp.graph.output_file import size
from onnxdecomp.pipeline.base import Pass, PassContext, Planner, Progress, Quantization, Quantizer
from onnxdecomp.quantization.bounds import Memory
from onnxdecomp.runtime.regular_files import require_text
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.targets import parse_budgets

if TYPE_CHECKING:
    from onnxdecomp.calibration.statistics import Calibration
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.data.mask import Mask
    from onnxdecomp.search.latency_model import Stopwatch


def read_plan(plan: Plan | Mapping[str, Any] | str | Path) -> Plan:
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


@dataclass(frozen=True, eq=False)
class RunContext:
    """What a run has: where it is measured, on what, and what it may lose.

    Attributes:
        original: The file that came in.
        calib: Calibration inputs, or None.
        data: Inputs with labels, or None.
        samples: At most so many of the labelled ones are used.
        inputs: Gives what latency is measured on (see onnxdecomp.latency.meter); None where it is not to be.
        progress: Called as the work goes on.
        provider, threads, seed: Where, and of what is random.
        shapes: Shapes of inputs by name, for random inputs.
        details: Whether the spectra of what is decomposed are recorded.
        mask: The inputs that say what is padding, or None.
        timed: Whether latency counts where no target is on it; a target of latency is always measured.
        max_error: The error that the result may have, or None.
        memory: How much of the model survives quantization, as far as the run has found out.
    """

    original: Path
    calib: Feeds | None
    data: Feeds | None
    samples: int | None
    inputs: Callable[[], Feeds] | None
    progress: Progress
    provider: str
    threads: int
    seed: int
    shapes: Mapping[str, Sequence[int]] | None
    details: bool = False
    mask: Mask | None = None
    timed: bool = True
    max_error: float | None = None
    memory: Memory = field(default_factory=Memory)


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
    context = PassContext(
        plan=plan,
        calibration=_calibration(run),
        evaluation=None if run.data is None else run.data.first(run.samples),
        memory=run.memory,
        max_error=error,
        max_drop=drop,
        mask=run.mask,
        shapes=run.shapes,
        provider=run.provider,
        seed=run.seed,
        spectra=run.details,
        progress=run.progress,
    )
    if quantizer is not None:
        context = replace(context, quantization=_ahead(quantizer, context))
    if plan is not None:
        return context
    if "original_bytes" in needed:
        context = replace(context, original_bytes=size(run.original, source(load(run.original))))
    if "latency" in needed or ("latency" in used and run.timed):
        context = replace(context, latency=_latency(run, context.quantization))
    return context


def _calibration(run: RunContext) -> Calibration | None:
    """The activations are looked at on the CPU: every provider computes the same."""
    from onnxdecomp.calibration.statistics import Calibration

    if run.calib is None:
        return None
    return Calibration(run.calib, threads=run.threads, seed=run.seed, mask=run.mask)


def _ahead(quantizer: Quantizer, context: PassContext) -> Quantization:
    """What the quantizer will do later, for trials now."""
    own = context.only(quantizer.needs | quantizer.uses)
    return Quantization(quantizer.precision, lambda model: quantizer.quantized(model, own))


def _latency(run: RunContext, quantization: Quantization | None) -> Stopwatch | None:
    from onnxdecomp.search.latency_model import Stopwatch

    if run.inputs is None:
        return None
    precision = "float" if quantization is None else quantization.precision
    return Stopwatch(run.original, run.inputs()[0], run.provider, run.threads, precision)


def _allowed(passes: Sequence[Pass], run: RunContext) -> tuple[float | None, float | None]:
    """The error and the drop of accuracy that the result may have, by a target or `max_error`, or None."""
    targets = [each.target for each in passes if isinstance(each, Planner) and each.target]
    budgets = [budget for text in targets for budget in parse_budgets(text)]
    errors = [budget.limit for budget in budgets if budget.quantity == "error"]
    drops = [budget.limit for budget in budgets if budget.quantity == "drop"]
    errors += [] if run.max_error is None else [run.max_error]
    return min(errors, default=None), min(drops, default=None)
