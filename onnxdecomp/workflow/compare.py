"""Models against the first of them: timed, verified, judged by a gate, and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxdecomp.data.read import Data, repeatable
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.evaluate import verify as verification
from onnxdecomp.evaluate.benchmark import BenchResult, bench
from onnxdecomp.evaluate.gate import Gate, parse_gate
from onnxdecomp.evaluate.verify import Verification
from onnxdecomp.graph.load import load, sha256, source
from onnxdecomp.graph.output_file import size
from onnxdecomp.graph.traversal import places
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.record.build import Origin, checked, describe_data, ratio
from onnxdecomp.record.layers import SCHEMA_VERSION
from onnxdecomp.record.verdict import judged, speedups
from onnxdecomp.runtime import environment
from onnxdecomp.search.candidates import dense_cost

VERIFIED = frozenset(("rel_l2", "drop", "agreement"))
"""Names of gates for which the outputs have to be compared."""


def compare(
    models: Sequence[str | Path],
    *,
    gate: str | None = None,
    verify: bool | None = None,
    providers: Sequence[str] = ("cpu",),
    data: Data | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    memory: bool = True,
    mask: str = "",
    advance: Callable[[], object] = lambda: None,
    **timing: Any,
) -> tuple[BenchResult, dict[str, Any]]:
    """Time models and compare the others with the first.

    Args:
        models: Files; the first is the original.
        gate: A condition that every other model has to keep in every setting (see onnxdecomp.evaluate.gate).
        verify: Compare outputs too, on `data` or random inputs; None: where the gate needs it.
        mask: Which positions of `data` no error counts, see onnxdecomp.evaluate.verify.verify.
        providers, data, shapes, seed, memory, advance, timing: See onnxdecomp.evaluate.benchmark.bench.

    Returns:
        The timings, and the record of the run. That a gate failed is in its `gate`.

    Raises:
        UsageError: The gate is no condition, or asks for what is not measured.
        ModelError, ProviderError: See onnxdecomp.evaluate.benchmark.bench.
    """
    started = time.time()
    wanted = None if gate is None else parse_gate(gate)
    if wanted is not None:
        _check(wanted, models, data, memory)
    if verify is None:
        verify = wanted is not None and bool(VERIFIED & wanted.names)
    if data is not None and verify:
        data = repeatable(data, 1 << 30)
    options: dict[str, Any] = {"data": data, "shapes": shapes, "seed": seed}
    timed = bench(models, providers=providers, memory=memory, advance=advance, **options, **timing)
    verified = [
        verification.verify(models[0], model, provider=providers[0], max_error=None, mask=mask, **options)
        for model in (models[1:] if verify else ())
    ]
    described = [_describe(Path(model)) for model in models]
    origin = Origin(
        started,
        time.time() - started,
        seed,
        {"gate": gate},
        {"data": describe_data(data, verified[0].samples if verified else None)},
    )
    settings = timed.to_json()["settings"]
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": "bench",
        "tool": environment.tool(),
        "environment": environment.describe(providers[0], None, ran=True),
        "run": origin.to_json(),
        "models": [entry | _against(entry, described[0]) for entry in described],
        "inputs": timed.inputs,
        "settings": settings,
        "verify": [checked(one) for one in verified],
    }
    record["verdicts"] = [_verdict(record, index) for index in range(1, len(models))]
    record["gate"] = None if wanted is None else _judge(wanted, record, verified)
    return timed, record


def gate_failure(record: Mapping[str, Any]) -> str | None:
    """Why the gate of a record did not pass, in a line; None where it did, or where there was none."""
    gate = record["gate"]
    if gate is None or gate["passed"]:
        return None
    first, *others = gate["failures"]
    more = f" (and {len(others)} more)" if others else ""
    where = f"{first['provider']}, batch {first['batch']}, threads {first['threads']}"
    return f"the gate failed: {first['model']} on {where}: {first['reason']}{more}"


def _check(gate: Gate, models: Sequence[object], data: Data | None, memory: bool) -> None:
    if len(models) < 2:
        raise UsageError("--gate compares models with the first: name at least two")
    if "memory" in gate.names and not memory:
        raise UsageError("--gate speaks of memory: leave --no-memory out")
    if "drop" in gate.names and data is None:
        raise UsageError("--gate speaks of drop: give samples with labels by --data")


def _describe(path: Path) -> dict[str, Any]:
    """File and contents of a model; what only ONNX Runtime reads (such as .ort) has no more than a file."""
    found: dict[str, Any] = {"path": str(path), "sha256": sha256(path), "bytes": path.stat().st_size}
    unknown = dict.fromkeys(("opset", "ir_version", "params", "macs"))
    try:
        model = load(path)
    except ModelError:
        return found | unknown
    infer_shapes(model)
    sites = find(model)[0]
    packed = {site.root: site.packed for site in sites}
    stored = [v for place in places(model) for v in place.graph.initializers.values()]
    return found | {
        "bytes": size(path, source(model)),
        "opset": int(model.opset_imports.get("", 1)),
        "ir_version": int(model.ir_version),
        "params": sum(
            int(v.const_value.size) * packed.get(v, 1) for v in stored if v.const_value is not None
        ),
        "macs": sum(dense_cost(site.layer).macs for site in sites),
    }


def _against(entry: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """How many times less of everything a model has than the first."""
    return {"ratio": {what: ratio(first[what], entry[what]) for what in ("bytes", "params", "macs")}}


def _verdict(record: Mapping[str, Any], index: int) -> dict[str, Any]:
    found = record["verify"][index - 1] if record["verify"] else {}
    ratios = record["models"][index]["ratio"]
    accuracy = found.get("accuracy")
    everywhere = speedups(record["settings"], index)
    numbers = {
        "speedup": next(iter(everywhere), None),
        "smaller": ratios["bytes"],
        "fewer_params": ratios["params"],
        "fewer_macs": ratios["macs"],
        "accuracy": None if accuracy is None else accuracy["change"],
        "error": found.get("rel_l2"),
    }
    return {"model": record["models"][index]["path"], **judged(numbers, everywhere)}


def _judge(gate: Gate, record: Mapping[str, Any], verified: Sequence[Verification]) -> dict[str, Any]:
    """The gate on every other model, in every setting."""
    failures = []
    for setting in record["settings"]:
        for index, timing in enumerate(setting["models"][1:], 1):
            found = verified[index - 1] if verified else None
            if found is not None and not found.passed and VERIFIED & gate.names:
                reason: str | None = f"its outputs cannot be compared with the original's: {found.reason}"
            else:
                reason = gate.failure(_values(record, setting, index, found))
            if reason is not None:
                where = {
                    "provider": setting["provider"],
                    "batch": timing["batch"],
                    "threads": setting["threads"],
                }
                failures.append({"model": timing["model"], **where, "reason": reason})
    return {"expression": gate.text, "passed": not failures, "failures": failures}


def _values(
    record: Mapping[str, Any], setting: Mapping[str, Any], index: int, verified: Verification | None
) -> dict[str, float | None]:
    """What a gate can speak of."""
    base, timing = setting["models"][0], setting["models"][index]
    of_first, entry = record["models"][0], record["models"][index]
    same = [
        out.agreement if out.top1_agreement is None else out.top1_agreement
        for out in (verified.outputs if verified else ())
    ]
    agreements = [share for share in same if share is not None]
    accuracy = verified.accuracy if verified else None
    return {
        "latency": timing["ratio"]["high"],
        "latency_median": timing["ratio"]["value"],
        "latency_low": timing["ratio"]["low"],
        "latency_ms": timing["latency"]["p50"],
        "p99_ms": timing["latency"]["p99"],
        "memory": ratio(timing["peak_rss"], base["peak_rss"]),
        **{
            name: ratio(entry[what], of_first[what])
            for name, what in (("size", "bytes"), ("params", "params"), ("macs", "macs"))
        },
        "rel_l2": verified.worst if verified else None,
        "drop": None if accuracy is None else accuracy.original - accuracy.new,
        "agreement": min(agreements, default=None),
    }
