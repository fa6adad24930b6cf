"""Models against the first of them: timed, verified, judged by a gate, and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onnxdecomp.data.read import Data, repeatable
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.evaluate.benchmark import BenchResult, bench
from onnxdecomp.evaluate.gate import Gate, parse_gate
from onnxdecomp.evaluate.task_metrics.registry import MetricSource, task_metric
from onnxdecomp.evaluate.verify import Verification
from onnxdecomp.evaluate.verify import verify as verify_outputs
from onnxdecomp.graph.load import load, sha256, source
from onnxdecomp.graph.output_file import size
from onnxdecomp.graph.traversal import places
from onnxdecomp.latency.as_run import as_run
from onnxdecomp.layers.find import find
from onnxdecomp.layers.recurrence import with_recurrences
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.record.build import (
    Origin,
    describe_data,
    describe_environment,
    describe_tool,
    timings,
    verification,
)
from onnxdecomp.record.layers import ratio
from onnxdecomp.record.schema.checks import ModelVerdict, RecordedVerification
from onnxdecomp.record.schema.comparison import ComparedModel, GateFailure, GateResult, SizeRatios
from onnxdecomp.record.schema.records import BenchRecord
from onnxdecomp.record.schema.timing import Speedup, TimedModel, TimedSetting
from onnxdecomp.record.verdict import judged, numbers_of, speedups
from onnxdecomp.runtime.jsonio import Document
from onnxdecomp.search.candidates import dense_cost

METRIC = frozenset(("metric", "metric_low", "metric_high"))
"""Names of gates that are about the metric of the task."""

VERIFIED = frozenset(("rel_l2", "drop", "agreement")) | METRIC
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
    metric: MetricSource | None = None,
    advance: Callable[[], object] = lambda: None,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    duration: float = 2.0,
    iterations: int | None = None,
    warmup: int = 3,
    precision: str = "",
    profile: str = "default",
    options: Mapping[str, str] | None = None,
) -> tuple[BenchResult, Document]:
    """Time models and compare the others with the first.

    Args:
        models: Files; the first is the original.
        gate: A condition that every other model has to keep in every setting (see onnxdecomp.evaluate.gate).
        verify: Compare outputs too, on `data` or random inputs; None: where the gate needs it.
        mask: Which positions of `data` no error counts, see onnxdecomp.evaluate.verify.verify.
        metric: A metric of the task to measure on `data`, see onnxdecomp.evaluate.verify.verify.
        providers, data, shapes, seed, memory, advance: See onnxdecomp.evaluate.benchmark.bench.
        batch_sizes, threads, duration, iterations, warmup, precision, profile, options: Likewise.

    Returns:
        The timings, and the record of the run. That a gate failed is in its `gate`.

    Raises:
        UsageError: The gate is no condition, or asks for what is not measured.
        ModelError, ProviderError: See onnxdecomp.evaluate.benchmark.bench.
    """
    started = time.time()
    metric = None if metric is None else task_metric(metric)
    wanted = None if gate is None else parse_gate(gate)
    if wanted is not None:
        _check(wanted, models, data, memory, metric)
    if metric is not None and data is None:
        raise UsageError("--metric needs inputs to measure it on: give them with --data")
    if verify is None:
        verify = metric is not None or (wanted is not None and bool(VERIFIED & wanted.names))
    if data is not None and verify:
        data = repeatable(data, 1 << 30)
    timed = bench(
        models,
        providers=providers,
        batch_sizes=batch_sizes,
        threads=threads,
        duration=duration,
        iterations=iterations,
        warmup=warmup,
        data=data,
        shapes=shapes,
        seed=seed,
        memory=memory,
        precision=precision,
        profile=profile,
        options=options,
        convert=as_run,
        advance=advance,
    )
    verified = [
        verify_outputs(
            *(models[0], model),
            data=data,
            shapes=shapes,
            seed=seed,
            provider=providers[0],
            max_error=None,
            mask=mask,
            metric=metric,
        )
        for model in (models[1:] if verify else ())
    ]
    described = _against_first([_describe(Path(model)) for model in models])
    origin = Origin(
        started,
        time.time() - started,
        seed,
        {"gate": gate, "metric": None if metric is None else metric.name},
        {"data": describe_data(data, verified[0].samples if verified else None)},
    )
    settings = timings(timed)
    compared = tuple(verification(one, one.original, one.new) for one in verified)
    record = BenchRecord(
        tool=describe_tool(),
        environment=describe_environment(providers[0], None, ran=True),
        run=origin.run(),
        models=described,
        inputs=timed.inputs,
        settings=settings,
        verify=compared,
        verdicts=tuple(
            _verdict(model, speedups(settings, index), compared[index - 1] if compared else None)
            for index, model in enumerate(described[1:], 1)
        ),
        gate=None if wanted is None else _judge(wanted, described, settings, verified),
    )
    return timed, record.to_json()


def gate_failure(record: Document) -> str | None:
    """Why the gate of a record did not pass, in a line; None where it did, or where there was none."""
    gate = record["gate"]
    if gate is None or gate["passed"]:
        return None
    first, *others = gate["failures"]
    more = f" (and {len(others)} more)" if others else ""
    where = f"{first['provider']}, batch {first['batch']}, threads {first['threads']}"
    return f"the gate failed: {first['model']} on {where}: {first['reason']}{more}"


def _check(
    gate: Gate, models: Sequence[object], data: Data | None, memory: bool, metric: MetricSource | None
) -> None:
    if len(models) < 2:
        raise UsageError("--gate compares models with the first: name at least two")
    if "memory" in gate.names and not memory:
        raise UsageError("--gate speaks of memory: leave --no-memory out")
    if METRIC & gate.names and metric is None:
        raise UsageError("--gate speaks of a metric: name it by --metric")
    if "drop" in gate.names and data is None:
        raise UsageError("--gate speaks of drop: give samples with labels by --data")


def _describe(path: Path) -> ComparedModel:
    """File and contents of a model; what only ONNX Runtime reads (such as .ort) has no more than a file."""
    same = SizeRatios(bytes=None, params=None, macs=None)
    file = ComparedModel(
        path=str(path),
        sha256=sha256(path),
        bytes=path.stat().st_size,
        opset=None,
        ir_version=None,
        params=None,
        macs=None,
        ratio=same,
    )
    try:
        model = load(path)
    except ModelError:
        return file
    infer_shapes(model)
    matched = with_recurrences(find(model)[0])
    packed = {match.root: match.packed for match in matched}
    stored = [v for place in places(model) for v in place.graph.initializers.values()]
    return replace(
        file,
        bytes=size(path, source(model)),
        opset=int(model.opset_imports.get("", 1)),
        ir_version=int(model.ir_version),
        params=sum(int(v.const_value.size) * packed.get(v, 1) for v in stored if v.const_value is not None),
        macs=sum(dense_cost(match.layer).macs for match in matched),
    )


def _against_first(models: Sequence[ComparedModel]) -> tuple[ComparedModel, ...]:
    """How many times less of everything each has than the first."""
    first = models[0]
    return tuple(
        replace(
            model,
            ratio=SizeRatios(
                bytes=ratio(first.bytes, model.bytes),
                params=ratio(first.params, model.params),
                macs=ratio(first.macs, model.macs),
            ),
        )
        for model in models
    )


def _verdict(
    model: ComparedModel, everywhere: Sequence[Speedup], checked: RecordedVerification | None
) -> ModelVerdict:
    less = model.ratio
    numbers = numbers_of(
        checked, everywhere, smaller=less.bytes, fewer_params=less.params, fewer_macs=less.macs
    )
    return ModelVerdict(model=model.path, **vars(judged(numbers, everywhere)))


def _judge(
    gate: Gate,
    models: Sequence[ComparedModel],
    settings: Sequence[TimedSetting],
    verified: Sequence[Verification],
) -> GateResult:
    """The gate on every other model, in every setting."""
    failures = []
    for setting in settings:
        base = setting.models[0]
        for index, timing in enumerate(setting.models[1:], 1):
            found = verified[index - 1] if verified else None
            if found is not None and not found.passed and VERIFIED & gate.names:
                reason: str | None = f"its outputs cannot be compared with the original's: {found.reason}"
            else:
                reason = gate.failure(_values(models[index], models[0], timing, base, found))
            if reason is not None:
                failures.append(
                    GateFailure(
                        model=timing.model or "",
                        provider=setting.provider,
                        batch=timing.batch,
                        threads=setting.threads,
                        reason=reason,
                    )
                )
    return GateResult(expression=gate.text, passed=not failures, failures=tuple(failures))


def _values(
    model: ComparedModel,
    first: ComparedModel,
    timing: TimedModel,
    base: TimedModel,
    verified: Verification | None,
) -> dict[str, float | None]:
    """What a gate can speak of: of a model and of the first, each as it is and as it was timed."""
    same = [
        out.agreement if out.top1_agreement is None else out.top1_agreement
        for out in (verified.outputs if verified else ())
    ]
    agreements = [share for share in same if share is not None]
    accuracy, latency = verified.accuracy if verified else None, timing.ratio
    metric = verified.metric if verified else None
    lost = None if accuracy is None else accuracy.original - accuracy.new
    return {
        "latency": latency.high if latency else None,
        "latency_median": latency.value if latency else None,
        "latency_low": latency.low if latency else None,
        "latency_ms": timing.latency.p50,
        "p99_ms": timing.latency.p99,
        "memory": ratio(timing.peak_rss, base.peak_rss),
        "size": ratio(model.bytes, first.bytes),
        "params": ratio(model.params, first.params),
        "macs": ratio(model.macs, first.macs),
        "rel_l2": verified.worst if verified else None,
        "drop": lost if metric is None else metric.loss,
        "metric": metric.new if metric else None,
        "metric_low": metric.low if metric else None,
        "metric_high": metric.high if metric else None,
        "agreement": min(agreements, default=None),
    }
