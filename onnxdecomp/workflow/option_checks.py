"""Options that exclude each other, or that nothing would heed: found before the work, named both.

Every way to ask (Python, the command line, a configuration) comes through here. What stands in a
configuration gives way to what a caller says; what a caller says is never dropped without a word.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline.base import Planner, Quantizer
from onnxdecomp.runtime.environment import check_threads

IN_A_PLAN = (
    *("rank", "layers", "target", "method", "options", "include", "exclude"),
    *("rank_multiple", "must_save", "skip_below"),
)
"""Options of the decompose stage that a plan has already answered."""


@dataclass(frozen=True)
class Asked:
    """What a caller of `compress` said, apart from the decompose stage's options.

    Attributes:
        plan: Whether a plan is given.
        calib: Whether calibration inputs are.
        finetune: Whether the result is to be trained.
        max_error, verify, bench, allow_slower, samples, threads, bench_seconds: As `compress` has them.
        batches, bench_threads: Of further timings.
    """

    plan: bool
    calib: bool
    finetune: bool
    max_error: float | None
    verify: bool
    bench: bool
    allow_slower: bool | None
    samples: int | None
    threads: int | None
    bench_seconds: float
    batches: Sequence[int]
    bench_threads: Sequence[int]


def check(asked: Asked, decompose: Mapping[str, Any], stages: Sequence[Any]) -> None:
    """Check that all that was asked for can be heeded.

    Args:
        asked: What the caller said.
        decompose: The caller's options of the decompose stage.
        stages: The pipeline, these options among its own.

    Raises:
        UsageError: Two options contradict each other, or a number is out of its range.
    """
    check_threads(asked.threads, *asked.bench_threads)
    for wrong, problem in (*_ranges(asked, stages), *_contradictions(asked, decompose, stages)):
        if wrong:
            raise UsageError(problem)


def spoken(options: Mapping[str, Any], stage: Any) -> list[str]:
    """The options among these that differ from the stage's defaults: one that does not says nothing."""
    defaults = {option.name: option for option in dataclasses.fields(stage)}
    return [
        name for name, value in options.items() if name in defaults and not _is_default(defaults[name], value)
    ]


def overruled(stages: Sequence[Any], decompose: Mapping[str, Any], *, plan: bool) -> tuple[str, ...]:
    """A note where the plan that is carried out leaves options of the configuration without effect."""
    stage = _decompose(stages)
    if stage is None or not plan:
        return ()
    configured = [name for name in (*IN_A_PLAN, "repair") if name not in decompose]
    unused = spoken({name: getattr(stage, name) for name in configured}, type(stage))
    if not unused:
        return ()
    return (f"the plan decides: of the configuration {', '.join(unused)} counts for nothing",)


def _contradictions(
    asked: Asked, decompose: Mapping[str, Any], stages: Sequence[Any]
) -> tuple[tuple[bool, str], ...]:
    stage = _decompose(stages)
    precision = next((stage.precision for stage in stages if isinstance(stage, Quantizer)), "none")
    given = {name: decompose[name] for name in IN_A_PLAN if name in decompose}
    said = [] if stage is None else spoken(given, type(stage))
    return (
        (
            asked.plan and bool(said),
            f"--plan and {_option(said)} exclude each other: a plan says what every layer gets",
        ),
        (
            asked.max_error is not None and not asked.verify,
            "--max-error and --no-verify exclude each other: the verification measures the error",
        ),
        (
            asked.allow_slower is False and not asked.bench,
            "--never-slower and --no-bench exclude each other: only timing shows what is slower",
        ),
        (
            bool([batch for batch in asked.batches if batch != 1]) and not asked.bench,
            "--bench-batch and --no-bench exclude each other",
        ),
        (bool(asked.bench_threads) and not asked.bench, "--bench-threads and --no-bench exclude each other"),
        (
            stage is not None and stage.searches and not asked.plan and bool(_must_save(stage)),
            "--must-save goes with ranks (--rank, --layer): a target itself says what must be saved",
        ),
        (
            precision == "int8" and not asked.calib,
            "--quantize int8 needs inputs to find the ranges of activations on: give --calib",
        ),
        (
            asked.finetune and not asked.calib,
            "finetune trains on the calibration inputs: give them with --calib",
        ),
        (
            asked.finetune and precision != "none",
            "finetune comes before quantization: write the fine-tuned model first, then compress that with "
            "--quantize, --rank 1.0 and --exclude '*'",
        ),
    )


def _ranges(asked: Asked, stages: Sequence[Any]) -> tuple[tuple[bool, str], ...]:
    limit, seconds, stage = asked.max_error, asked.bench_seconds, _decompose(stages)
    counts = [*asked.batches, *asked.bench_threads]
    skip_below, seed = getattr(stage, "skip_below", 0.0), getattr(stage, "seed", 0)
    return (
        (limit is not None and not limit >= 0, f"--max-error must be 0 or more, not {limit}"),
        (
            asked.samples is not None and asked.samples < 1,
            f"--samples must be 1 or more, not {asked.samples}",
        ),
        (
            asked.threads is not None and asked.threads < 1,
            f"--threads must be 1 or more, not {asked.threads}",
        ),
        (
            not (seconds > 0 and math.isfinite(seconds)),
            f"bench_seconds must be a number above 0, not {seconds}",
        ),
        (any(count < 1 for count in counts), "--bench-batch and --bench-threads must be 1 or more"),
        (not skip_below >= 0, f"--skip-below must be 0 or more, not {skip_below}"),
        (seed < 0, f"--seed must be 0 or more, not {seed}"),
    )


def _decompose(stages: Sequence[Any]) -> Any:
    return next((stage for stage in stages if isinstance(stage, Planner)), None)


def _must_save(stage: Any) -> list[str]:
    return spoken({"must_save": stage.must_save}, type(stage))


def _is_default(option: dataclasses.Field[Any], value: object) -> bool:
    from onnxdecomp.core.options import default_of

    default = default_of(option)
    return value is None or value == default or (not value and not default and value is not False)


def _option(names: Sequence[str]) -> str:
    shown = {"layers": "layer", "options": "a method's options"}
    spelled = [shown.get(name, name).replace("_", "-") for name in names]
    return " and ".join(name if " " in name else f"--{name}" for name in spelled)
