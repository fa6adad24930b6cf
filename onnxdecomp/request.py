"""What a caller of `compress` asked for, as the pipeline's stages and values that check themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from onnxdecomp import pipeline
from onnxdecomp.equip import read_plan
from onnxdecomp.errors import UsageError
from onnxdecomp.plan.budget import parse_budgets
from onnxdecomp.plan.plan import Plan
from onnxdecomp.training.settings import Settings, parse_settings

if TYPE_CHECKING:
    from onnxdecomp.data.read import Data
    from onnxdecomp.stage import Stage

Config: TypeAlias = Mapping[str, Any] | str | Path | None


def stages_of(
    config: Config,
    seed: int | None,
    provider: str,
    simplify: str | None,
    decompose: Mapping[str, Any],
    quantize: str | None = None,
) -> tuple[Stage, ...]:
    """The pipeline's stages; what the caller left open stays as the configuration has it.

    A quantize stage that is to do nothing is left out.
    """
    options = dict(decompose)
    if seed is not None:
        options["seed"] = seed
    if provider != "cpu":
        options["provider"] = provider
    overrides: dict[str, dict[str, Any]] = {"decompose": options}
    if "freeze_initializers" in decompose:
        overrides["normalise"] = {"freeze_initializers": decompose["freeze_initializers"]}
    if simplify is not None:
        overrides["simplify"] = {"tool": simplify}
    if quantize is not None:
        overrides["quantize"] = {"kind": quantize}
    stages = pipeline.build(config, overrides)
    if quantize not in (None, "none") and not any(hasattr(stage, "precision") for stage in stages):
        raise UsageError("the pipeline has no quantize pass: name it in 'pipeline', after decompose")
    return tuple(stage for stage in stages if getattr(stage, "precision", "") != "none")


def with_target(
    config: Config, decompose: Mapping[str, Any], target: str | None, max_error: float | None
) -> dict[str, Any]:
    """The decompose stage's options with the target; where nothing says how far to go, the largest error."""
    if target is not None:  # it wins over a rank of the configuration
        return {"rank": "", "layers": (), **decompose, "target": target}
    if max_error is None or any(decompose.get(name) for name in ("rank", "layers")):
        return dict(decompose)
    stages = [stage for stage in pipeline.build(config, {}) if stage.name == "decompose"]
    said = any(getattr(stage, name, "") for stage in stages for name in ("rank", "layers", "target"))
    return dict(decompose) if said else {**decompose, "target": f"error={max_error}"}


def given_plan(plan: Plan | Mapping[str, Any] | str | Path | None, wanted: Mapping[str, Any]) -> Plan | None:
    """The plan to carry out, which excludes every other request."""
    if plan is None:
        return None
    if any(wanted.get(name) for name in ("rank", "layers", "target")):
        raise UsageError("a plan says it all: give no rank, layer rule or target with it")
    return read_plan(plan)


def about_size(plan: Plan | None, stages: Sequence[Any]) -> bool:
    """Whether ranks, a plan, or a target of MACs, parameters or bytes were asked for: not, then, speed."""
    stage = next((stage for stage in stages if hasattr(stage, "searches")), None)
    if plan is not None or stage is None or not stage.searches:
        return True
    return {budget.quantity for budget in parse_budgets(stage.goal)} <= {"macs", "params", "size"}


def described(stages: Sequence[Any], *, planned: bool, max_error: float | None) -> dict[str, Any]:
    """What was asked for, as far as it says how far to go."""
    stage = next((stage for stage in stages if hasattr(stage, "searches")), None)
    searches = stage is not None and stage.searches and not planned
    return {
        "target": stage.goal if stage is not None and searches else None,
        "rank": None if stage is None or searches or planned else stage.rank or None,
        "rules": [] if stage is None else list(stage.layers),
        "method": None if stage is None else stage.method,
        "plan": planned,
        "max_error": max_error,
    }


def training_settings(
    finetune: Settings | Mapping[str, Any] | str | None, calib: Data | None, stages: Sequence[Stage]
) -> Settings | None:
    """How to train afterwards, once it is clear that it can be done."""
    if finetune is None:
        return None
    from onnxdecomp.training.run import require_torch

    wanted = parse_settings(finetune)
    if calib is None:
        raise UsageError("finetune trains on the calibration inputs: give them with --calib")
    if any(hasattr(stage, "precision") for stage in stages):
        raise UsageError(
            "finetune comes before quantization: write the fine-tuned model first, then compress that with "
            "--quantize, --rank 1.0 and --exclude '*'"
        )
    require_torch()
    return wanted
