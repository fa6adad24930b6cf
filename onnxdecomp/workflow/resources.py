"""Equipping stages with what they cannot have as plain options: data, a plan, a stopwatch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline.base import Planner, Quantizer, Stage
from onnxdecomp.quantization.bounds import Memory
from onnxdecomp.runtime.regular_files import require_text
from onnxdecomp.search.plan import Plan

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.data.mask import Mask

Report = Callable[[str, int, int], None]


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
class Gear:
    """What the decompose and the quantize stage may need.

    Attributes:
        path: The original.
        calib: Calibration inputs, or None.
        data: Inputs with labels, or None.
        samples: At most so many of the labelled ones are used.
        inputs: Gives what latency is measured on (see onnxdecomp.latency.meter); None where it is not to be.
        timed: Whether latency counts where no target is on it; a target of latency is always measured.
        report: Progress.
        provider, threads, seed: Where, and of what is random.
        shapes: Shapes of inputs by name, for random inputs.
        details: Whether the spectra of what is decomposed are recorded.
        mask: The inputs that say what is padding, or None.
        max_error: The error that the result may have, or None.
        memory: How much of the model survives quantization, as far as the run has found out.
    """

    path: Path
    calib: Feeds | None
    data: Feeds | None
    samples: int | None
    inputs: Callable[[], Feeds] | None
    report: Report
    provider: str
    threads: int
    seed: int
    shapes: Mapping[str, Sequence[int]] | None
    details: bool = False
    mask: Mask | None = None
    timed: bool = True
    max_error: float | None = None
    memory: Memory = field(default_factory=Memory)


def equip(stages: Sequence[Stage], gear: Gear, plan: Plan | None) -> tuple[Stage, ...]:
    """The stages with calibration inputs, the decompose stage with labels, the plan and a stopwatch too.

    Raises:
        UsageError: The data do not fit the model.
        ModelError: ONNX Runtime does not load the model, or it runs on no random input.
    """
    asked = _asked(stages, gear)
    stages = tuple(
        _calibrated(stage, gear, asked) if isinstance(stage, Quantizer) else stage for stage in stages
    )
    quantizer = next((stage for stage in stages if isinstance(stage, Quantizer)), None)
    return tuple(
        _equipped(stage, gear, plan, quantizer) if isinstance(stage, Planner) else stage for stage in stages
    )


def _calibrated(stage: Any, gear: Gear, asked: Mapping[str, float | None]) -> Stage:
    """The quantize stage with inputs: int8 finds ranges of activations on them, fp16 is only compared."""
    feeds = gear.calib
    if feeds is None and gear.data is not None and stage.precision == "fp16":
        feeds = gear.data
    return replace(  # type: ignore[no-any-return]
        stage,
        calibration=feeds,
        provider=gear.provider,
        limit=asked["error"],
        drop=asked["drop"],
        labelled=None if gear.data is None else gear.data.first(gear.samples),
        memory=gear.memory,
        shapes=gear.shapes,
        seed=gear.seed,
        padding=gear.mask,
    )


def _asked(stages: Sequence[Any], gear: Gear) -> dict[str, float | None]:
    """The error and the drop of accuracy that the result may have, by a target or `max_error`, or None."""
    from onnxdecomp.search.targets import parse_budgets

    targets = [stage.target for stage in stages if isinstance(stage, Planner) and stage.target]
    budgets = [budget for text in targets for budget in parse_budgets(text)]
    limits = {what: [b.limit for b in budgets if b.quantity == what] for what in ("error", "drop")}
    limits["error"] += [] if gear.max_error is None else [gear.max_error]
    return {what: min(found, default=None) for what, found in limits.items()}


def _equipped(stage: Any, gear: Gear, plan: Plan | None, quantizer: Any) -> Stage:
    from onnxdecomp.calibration.statistics import Calibration
    from onnxdecomp.graph.load import load, source
    from onnxdecomp.graph.output_file import size
    from onnxdecomp.search.latency_model import Stopwatch

    changes: dict[str, Any] = {"given": plan, "on_layer": gear.report, "details": gear.details}
    changes["shapes"] = gear.shapes
    if quantizer is not None:
        changes |= {"finish": quantizer.quantized, "finished": quantizer.precision}
    if gear.calib is not None:
        # The activations are looked at on the CPU: every provider computes the same.
        changes["calibration"] = Calibration(gear.calib, threads=gear.threads, seed=gear.seed, mask=gear.mask)
    made = replace(stage, **changes)
    if not made.searches:
        return made  # type: ignore[no-any-return]
    changes = {"size": size(gear.path, source(load(gear.path)))} if "size" in made.goal else {}
    if gear.data is not None and "drop" in made.goal:
        changes["labelled"] = gear.data.first(gear.samples)
    if gear.inputs is not None and (gear.timed or "latency" in made.goal):
        precision = quantizer.precision if quantizer is not None else "float"
        changes["stopwatch"] = Stopwatch(gear.path, gear.inputs()[0], gear.provider, gear.threads, precision)
    return replace(made, **changes)  # type: ignore[no-any-return]
