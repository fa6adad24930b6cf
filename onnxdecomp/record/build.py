"""The JSON record of a run, as docs/record.md describes it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.read import describe
from onnxdecomp.evaluate.benchmark import speedup
from onnxdecomp.graph.load import sha256, source
from onnxdecomp.graph.output_file import size
from onnxdecomp.record.details import Details
from onnxdecomp.record.layers import SCHEMA_VERSION, LayerRecord, totals
from onnxdecomp.record.verdict import verdict_on_run
from onnxdecomp.runtime import environment, jsonio
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.search_record import SearchRecord

if TYPE_CHECKING:
    from onnxdecomp.data.read import Data
    from onnxdecomp.evaluate.benchmark import BenchResult, ModelTiming
    from onnxdecomp.evaluate.verify import Verification


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


@dataclass(frozen=True)
class Origin:
    """How a run came about: what repeats it.

    Attributes:
        started: When, in seconds since 1970.
        seconds: How long it took, without writing the record.
        seed: Of everything random.
        request: What was asked for: `target`, `rank`, `method`, `plan` and `max_error`.
        data: `calib` and `eval`, see `describe_data`.
    """

    started: float
    seconds: float
    seed: int
    request: Mapping[str, Any]
    data: Mapping[str, Any]

    def ended(self, used: Mapping[str, Any] | None = None) -> Origin:
        """The same now that all is done, with the data that were evaluated on."""
        return replace(self, seconds=time.time() - self.started, data={**self.data, "eval": used})

    def to_json(self) -> dict[str, Any]:
        """The record's `run`; the command line is put in by the command."""
        when = datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds")
        return {
            "command": None,
            "started": when,
            "seconds": self.seconds,
            "seed": self.seed,
            "request": dict(self.request),
            "data": dict(self.data),
        }


def describe_data(data: Data | None, samples: int | None = None) -> dict[str, Any] | None:
    """Where data came from, how many samples, and the hash of the file where it is one."""
    if data is None:
        return None
    source = describe(data)
    path = Path(source)
    return {
        "source": source,
        "samples": len(data) if isinstance(data, Feeds) else samples,
        "sha256": sha256(path) if isinstance(data, str | Path | Feeds) and path.is_file() else None,
    }


def run_record(
    model: Mapping[str, Any],
    *,
    plan: Plan,
    layers: Sequence[LayerRecord],
    notes: Sequence[str],
    passes: Mapping[str, Any],
    origin: Origin,
    search: SearchRecord | None = None,
    where: Mapping[str, Any] | None = None,
    output: Mapping[str, Any] | None = None,
    verified: Verification | None = None,
    timed: BenchResult | None = None,
    looks: Sequence[Mapping[str, Any]] | None = None,
    training: Mapping[str, Any] | None = None,
    details: Details | None = None,
) -> dict[str, Any]:
    """The record; every key is there in every run, None where it does not apply."""
    sums: dict[str, Any] = dict(totals(layers))
    if output is not None:
        sums["bytes"] = {"before": model["bytes"], "after": output["bytes"]}
    details = details or Details()
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": "plan" if output is None else "compress",
        "tool": environment.tool(),
        "environment": dict(where or environment.describe(None, None)),
        "run": origin.to_json(),
        "model": dict(model),
        "output": None if output is None else dict(output),
        "plan": plan.to_json(),
        "search": None if search is None else asdict(search),
        "layers": [{**jsonio.plain(layer), **details.of(layer)} for layer in layers],
        "totals": {
            **{what: {**sums[what], "ratio": ratio(**sums[what])} for what in sums},
            "layers": {
                "all": len(layers),
                "decomposed": sum(layer.method is not None for layer in layers),
            },
        },
        "training": None if training is None else dict(training),
        "verify": None if verified is None else _verify(verified, model, output),
        "latency": None if timed is None else _latency(timed),
        "looks": None if looks is None else [dict(look) for look in looks],
        "settings": None if timed is None else _settings(timed, model, output),
        "profile": details.profile(),
        "notes": list(notes),
        "passes": dict(passes),
    }
    return {**record, "verdict": verdict_on_run(record)}


def ratio(before: float | None, after: float | None) -> float | None:
    """How many times less it is after; None where there is nothing to divide by."""
    return before / after if before is not None and after else None


def _settings(
    timed: BenchResult, model: Mapping[str, Any], output: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """As `bench` has them, with the files' names: the models were timed under passing ones."""
    names = (model["path"], None if output is None else output["path"])
    settings: list[dict[str, Any]] = timed.to_json()["settings"]
    for setting in settings:
        for timing, name in zip(setting["models"], names, strict=True):
            timing["model"] = name
    return settings


def _verify(
    verified: Verification, model: Mapping[str, Any], output: Mapping[str, Any] | None
) -> dict[str, Any]:
    # The new model was verified under a passing name.
    paths = {"original": model["path"], "new": None if output is None else output["path"]}
    return {**checked(verified), **paths}


def checked(verified: Verification) -> dict[str, Any]:
    """A verification as JSON values, with the change of the accuracy."""
    found = verified.to_json()
    if verified.accuracy is not None:
        found["accuracy"]["change"] = verified.accuracy.new - verified.accuracy.original
    return found


def _latency(timed: BenchResult) -> dict[str, Any]:
    """One setting with two models: the original and the compressed one."""
    setting = timed.settings[0]
    original, compressed = setting.models
    return {
        "provider": setting.provider,
        "threads": setting.threads,
        "batch": compressed.batch,
        "shapes": jsonio.plain(compressed.shapes),
        "inputs": timed.inputs,
        "original": _timing(original),
        "compressed": _timing(compressed),
        "speedup": speedup(compressed.ratio),
    }


def _timing(timing: ModelTiming) -> dict[str, Any]:
    summary = jsonio.plain(timing.latency)
    del summary["quantiles"]  # they are in `settings`
    return {**summary, "throughput": timing.throughput, "nodes": dict(timing.nodes)}
