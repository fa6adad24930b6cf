"""What a caller of `compress` asked for, as the pipeline's stages and values that check themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline import pipeline
from onnxdecomp.pipeline.base import Pass, Planner, Quantizer
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.targets import parse_budgets
from onnxdecomp.training.settings import Settings, parse_settings
from onnxdecomp.workflow.context import read_plan
from onnxdecomp.workflow.option_checks import IN_A_PLAN, Asked, check, overruled

Config: TypeAlias = Mapping[str, Any] | str | Path | None


@dataclass(frozen=True)
class Requested:
    """What is to be done.

    Attributes:
        stages: The pipeline.
        plan: The plan to carry out, or None where one is made.
        seed: Of everything random.
        training: How to train afterwards, or None.
        notes: What a user should know of it.
        derived: The target that stands for the largest error, which nobody wrote; "" where there is none.
    """

    stages: tuple[Pass, ...]
    plan: Plan | None
    seed: int
    training: Settings | None
    notes: tuple[str, ...]
    derived: str = ""

    @contextmanager
    def quoting(self) -> Iterator[None]:
        """Let what is said of the target quote what the user wrote.

        Raises:
            UsageError: As the block does, of --max-error in place of a target that was made of it.
        """
        try:
            yield
        except UsageError as error:
            if self.derived:
                (made,) = parse_budgets(self.derived)
                quoted = str(error).replace(f"--target {made}", f"--max-error {made.limit:g}")
                error.args = (quoted,)  # of whatever class it is
            raise


def requested(
    asked: Asked,
    config: Config,
    decompose: Mapping[str, Any],
    target: str | None,
    plan: Plan | Mapping[str, Any] | str | Path | None,
    finetune: Settings | Mapping[str, Any] | str | None,
    seed: int | None,
    provider: str,
    simplify: str | None,
    quantize: str | None,
) -> Requested:
    """What the arguments of `compress` ask for, once it is clear that they agree with each other.

    Raises:
        UsageError: They do not, or one of them is not valid.
    """
    wanted = with_target(config, decompose, target, asked.max_error, planned=asked.plan)
    # What a plan has answered is refused below by its name, not by what else may be wrong with it.
    heeded = {name: v for name, v in wanted.items() if not (asked.plan and name in IN_A_PLAN)}
    stages = stages_of(config, seed, provider, simplify, heeded, quantize)
    check(asked, wanted, stages)
    seed = seed_of(stages, seed)
    return Requested(
        stages,
        given_plan(plan, wanted),
        seed,
        training_settings(finetune, seed),
        overruled(stages, wanted, plan=asked.plan),
        "" if target is not None else wanted.get("target", ""),
    )


def stages_of(
    config: Config,
    seed: int | None,
    provider: str,
    simplify: str | None,
    decompose: Mapping[str, Any],
    quantize: str | None = None,
) -> tuple[Pass, ...]:
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
    if quantize not in (None, "none") and not any(isinstance(stage, Quantizer) for stage in stages):
        raise UsageError("the pipeline has no quantize pass: name it in 'pipeline', after decompose")
    idle = [stage for stage in stages if isinstance(stage, Quantizer) and stage.precision == "none"]
    return tuple(stage for stage in stages if stage not in idle)


def mask_of(stages: Sequence[Pass]) -> str:
    """Which inputs are masks, as the decompose stage was told; "" for those with the usual names."""
    return next((str(stage.mask) for stage in stages if isinstance(stage, Planner)), "")


def with_target(
    config: Config,
    decompose: Mapping[str, Any],
    target: str | None,
    max_error: float | None,
    *,
    planned: bool = False,
) -> dict[str, Any]:
    """The decompose stage's options with the target; where nothing says how far to go, the largest error."""
    if target is not None:  # it wins over ranks of the configuration, and what goes with them
        return {"rank": "", "layers": (), "must_save": "macs", **decompose, "target": target}
    if max_error is None or planned or any(decompose.get(name) for name in ("rank", "layers")):
        return dict(decompose)
    planners = [stage for stage in pipeline.build(config, {}) if isinstance(stage, Planner)]
    said = any(stage.rank or stage.layers or stage.target for stage in planners)
    if said:
        return dict(decompose)
    if not 0 <= max_error < 1:
        raise UsageError(
            f"--max-error {max_error:g}: the search may use up a fraction from 0 to below 1 of the outputs; "
            "give a target, or ranks"
        )
    return {**decompose, "target": f"error={max_error}"}


def given_plan(plan: Plan | Mapping[str, Any] | str | Path | None, wanted: Mapping[str, Any]) -> Plan | None:
    """The plan to carry out; whether kept layers are repaired may be said anew."""
    if plan is None:
        return None
    found, repair = read_plan(plan), wanted.get("repair")
    return found if repair is None else replace(found, repair=bool(repair))


def seed_of(stages: Sequence[Pass], seed: int | None) -> int:
    """The one seed of a run: the caller's, else that of the configured decompose stage."""
    if seed is not None:
        return seed
    return next((int(stage.seed) for stage in stages if isinstance(stage, Planner)), 0)


def about_size(plan: Plan | None, stages: Sequence[Pass]) -> bool:
    """Whether ranks, a plan, or a target of MACs, parameters or bytes were asked for: not, then, speed."""
    stage = next((stage for stage in stages if isinstance(stage, Planner)), None)
    if plan is not None or stage is None or not stage.searches:
        return True
    return {budget.quantity for budget in parse_budgets(stage.goal)} <= {"macs", "params", "size"}


def described(stages: Sequence[Pass], *, planned: bool, max_error: float | None) -> dict[str, Any]:
    """What was asked for, as far as it says how far to go."""
    stage = next((stage for stage in stages if isinstance(stage, Planner)), None)
    searches = stage is not None and stage.searches and not planned
    return {
        "target": stage.goal if stage is not None and searches else None,
        "rank": None if stage is None or searches or planned else stage.rank or None,
        "rules": [] if stage is None else list(stage.layers),
        "method": None if stage is None else stage.method,
        "mask": mask_of(stages) or None,
        "plan": planned,
        "max_error": max_error,
    }


def training_settings(finetune: Settings | Mapping[str, Any] | str | None, seed: int) -> Settings | None:
    """How to train afterwards, with the run's seed where that names none."""
    if finetune is None:
        return None
    from onnxdecomp.training.settings import require_torch

    wanted = parse_settings(finetune, seed=seed)
    require_torch()
    return wanted
