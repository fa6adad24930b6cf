"""The JSON record of a run, as docs/record.md describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxdecomp import environment, jsonio
from onnxdecomp.graph.load import sha256, source
from onnxdecomp.plan.plan import Plan
from onnxdecomp.record import SCHEMA_VERSION, LayerRecord, totals
from onnxdecomp.staging import size

if TYPE_CHECKING:
    from onnxdecomp.benchmark import BenchResult, ModelTiming
    from onnxdecomp.verification import Verification


def describe_model(model: ir.Model, path: Path, *, named: bool) -> dict[str, Any]:
    """The record's `model`.

    Args:
        model: As it was loaded.
        path: Its file.
        named: Whether the caller gave that file; the path of a temporary one says nothing.
    """
    return {
        "path": str(path) if named else None,
        "sha256": sha256(path),
        "bytes": size(path, source(model)),
        "opset": int(model.opset_imports.get("", 1)),
        "ir_version": int(model.ir_version),
    }


def describe_output(written: Path, target: Path | None) -> dict[str, Any]:
    """The record's `output`: of the file `written`, which will be at `target`."""
    return {
        "path": None if target is None else str(target),
        "sha256": sha256(written),
        "bytes": size(written),
    }


def run_record(
    model: Mapping[str, Any],
    *,
    plan: Plan,
    layers: Sequence[LayerRecord],
    notes: Sequence[str],
    passes: Mapping[str, Any],
    where: Mapping[str, Any] | None = None,
    output: Mapping[str, Any] | None = None,
    verified: Verification | None = None,
    timed: BenchResult | None = None,
) -> dict[str, Any]:
    """The record; every key is there in every run, None where it does not apply."""
    sums: dict[str, Any] = totals(layers)
    if output is not None:
        sums["bytes"] = {"before": model["bytes"], "after": output["bytes"]}
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": environment.tool(),
        "environment": dict(where or environment.describe(None, None)),
        "model": dict(model),
        "output": None if output is None else dict(output),
        "plan": plan.to_json(),
        "search": passes.get("decompose", {}).get("search"),
        "layers": jsonio.plain(layers),
        "totals": sums,
        "verify": None if verified is None else _verify(verified, model, output),
        "latency": None if timed is None else _latency(timed),
        "notes": list(notes),
        "passes": {name: facts for name, facts in passes.items() if name != "decompose"},
    }


def _verify(
    verified: Verification, model: Mapping[str, Any], output: Mapping[str, Any] | None
) -> dict[str, Any]:
    # The new model was verified under a passing name.
    paths = {"original": model["path"], "new": None if output is None else output["path"]}
    return {**verified.to_json(), **paths}


def _latency(timed: BenchResult) -> dict[str, Any]:
    """One setting with two models: the original and the compressed one."""
    setting = timed.settings[0]
    original, compressed = setting.models
    ratio = compressed.ratio
    return {
        "provider": setting.provider,
        "threads": setting.threads,
        "batch": compressed.batch,
        "shapes": jsonio.plain(compressed.shapes),
        "inputs": timed.inputs,
        "original": _timing(original),
        "compressed": _timing(compressed),
        "speedup": None
        if ratio is None
        else {
            "value": 1 / ratio.value,
            "low": 1 / ratio.high,
            "high": 1 / ratio.low,
            "confidence": ratio.confidence,
        },
    }


def _timing(timing: ModelTiming) -> dict[str, Any]:
    return {**jsonio.plain(timing.latency), "throughput": timing.throughput, "nodes": dict(timing.nodes)}
