"""The keywords of `compress` for type checkers: the options of CompressConfig, held to them by a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from onnxdecomp.search.plan_options import Objective, Saving

if TYPE_CHECKING:
    from onnxdecomp.data.read import Data
    from onnxdecomp.evaluate.task_metrics.registry import MetricSource
    from onnxdecomp.workflow.config import PlanSource, Training


class CompressOptions(TypedDict, total=False):
    """None says nothing: the pipeline's file decides, else the default."""

    target: str | None
    objective: Objective | None
    rank: str | None
    layers: Sequence[str] | None
    method: str | None
    options: Mapping[str, Mapping[str, object]] | None
    rank_multiple: str | None
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    must_save: Saving | None
    skip_below: float | None
    freeze_initializers: bool | None
    repair: bool | None
    requantize: bool | None
    mask: str | None
    seed: int | None
    time_limit: str | float | None
    executor: str | None
    workdir: str | Path | None
    provider: str | None
    threads: int | None
    batch: int | None
    precision: Literal["fp32", "tf32", "fp16", "bf16"] | None
    profile: Literal["default", "deploy"] | None
    provider_options: Mapping[str, str] | None
    bench: bool | None
    bench_seconds: float | None
    bench_batches: Sequence[int] | None
    bench_threads: Sequence[int] | None
    max_error: float | None
    metric: MetricSource | None
    plan: PlanSource | None
    allow_slower: bool | None
    simplify: Literal["onnxsim", "onnxscript", "none"] | None
    calib: Data | None
    data: Data | None
    samples: int | None
    input_shapes: Mapping[str, Sequence[int]] | None
    quantize: Literal["int8", "int8-static", "int8-dynamic", "int8-block", "int4", "fp16", "none"] | None
    block_size: Literal[16, 32, 64, 128, 256] | None
    table_bits: Literal["auto", "4", "8"] | None
    finetune: Training | None
    refine: bool | None
    verify: bool | None
    dry_run: bool | None
    details: bool | None
    overwrite: bool | None
    fail_if_unchanged: bool | None
