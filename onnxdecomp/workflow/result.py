"""What `compress` gives back, and what it is refused for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxdecomp.errors import GateError, ModelError, UnchangedError
from onnxdecomp.layers.lowering_check import LoweringCheck
from onnxdecomp.layers.registry import adapters
from onnxdecomp.record.schema.layers import ChannelRecord, LayerRecord
from onnxdecomp.runtime.jsonio import Document
from onnxdecomp.search.plan import Plan

if TYPE_CHECKING:
    from onnxdecomp.evaluate.benchmark import BenchResult
    from onnxdecomp.evaluate.verify import Verification


@dataclass(frozen=True, eq=False)
class Result:
    """What `compress` did.

    Attributes:
        model: The compressed model; the original's content where nothing was decomposed.
        plan: The decision for every layer.
        layers: What happened to every layer, in the plan's order.
        channels: What happened to every channel between layers; empty where none was looked at.
        lowering: The lowering check of every rewritten layer.
        notes: What a user should know, a sentence each.
        changed: Whether any layer was decomposed or channel cut, or the model quantized.
        path: The file written, or None.
        verification: The comparison with the original, or None where not asked for.
        latency: The interleaved timing against the original, or None where not asked for.
        record: The JSON record of the run.
    """

    model: ir.Model
    plan: Plan
    layers: tuple[LayerRecord, ...]
    channels: tuple[ChannelRecord, ...]
    lowering: tuple[LoweringCheck, ...]
    notes: tuple[str, ...]
    changed: bool
    path: Path | None
    verification: Verification | None
    latency: BenchResult | None
    record: Document


def require_changed(plan: Plan, changed: bool) -> None:
    """Refuse a result in which nothing was decomposed.

    Raises:
        UnchangedError: Always, unless it is `changed`.
    """
    if not changed:
        raise UnchangedError(
            f"nothing was decomposed: {_why_nothing(plan)}; 'onnxdecomp inspect' shows every layer"
        )


def _why_nothing(plan: Plan) -> str:
    # What could have been cut was asked for; that something breaks the others is of no interest then.
    reasons = sorted({cut.reason for cut in plan.channels if cut.reason and cut.width > 1})
    reasons += sorted({choice.reason for choice in plan.choices if choice.reason})
    reasons = reasons or sorted({cut.reason for cut in plan.channels if cut.reason})
    operators = ", ".join(op_type for _, op_type in adapters().by_operator)
    return "; ".join(reasons[:3]) or f"the model has none of these with a constant weight: {operators}"


def require_verified(checked: Verification) -> None:
    """Refuse a result that is not what the original is, or not near enough.

    Raises:
        ModelError: Its interface is another.
        GateError: Its outputs are too far off.
    """
    if checked.interface:
        raise ModelError(
            f"the interface changed ({checked.interface[0]}), nothing was written: this is a bug in "
            "onnxdecomp, please report it"
        )
    if checked.status == "failed":
        raise GateError(
            f"verification failed, nothing was written: {checked.reason}; take a higher rank, or leave the "
            "worst layers out with --exclude"
        )
