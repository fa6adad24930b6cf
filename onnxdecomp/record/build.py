"""The record of a run, from the values that the run has made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxdecomp.core.json_values import Json
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.read import describe
from onnxdecomp.evaluate.benchmark import speedup
from onnxdecomp.graph.load import sha256, source
from onnxdecomp.graph.output_file import size
from onnxdecomp.record.details import Details
from onnxdecomp.record.families import channel_families, layer_families
from onnxdecomp.record.layers import totals
from onnxdecomp.record.schema.checks import RecordedVerification
from onnxdecomp.record.schema.origin import Environment, File, Inputs, ModelFile, Run, Tool
from onnxdecomp.record.schema.planning import RecordedPlan, RecordedSearch
from onnxdecomp.record.schema.reading import recorded
from onnxdecomp.record.schema.records import RunRecord
from onnxdecomp.record.schema.timing import DecidingTiming, Interval, Latency, TimedFile, TimedSetting
from onnxdecomp.record.schema.training import RefinementRecord, Training
from onnxdecomp.record.targets import target_results
from onnxdecomp.record.verdict import verdict_on_run
from onnxdecomp.runtime import environment, jsonio
from onnxdecomp.search.plan import Cost, Plan
from onnxdecomp.search.search_record import SearchRecord

if TYPE_CHECKING:
    from onnxdecomp.core.refinement import Refinement
    from onnxdecomp.data.read import Data
    from onnxdecomp.evaluate.benchmark import BenchResult, ModelTiming
    from onnxdecomp.evaluate.verify import Verification
    from onnxdecomp.record.schema.layers import ChannelRecord, LayerRecord


def describe_model(model: ir.Model, path: Path, *, named: bool) -> ModelFile:
    """The record's `model`.

    Args:
        model: As it was loaded.
        path: Its file.
        named: Whether the caller gave that file; the path of a temporary one says nothing.
    """
    return ModelFile(
        path=str(path) if named else None,
        sha256=sha256(path),
        bytes=size(path, source(model)),
        opset=int(model.opset_imports.get("", 1)),
        ir_version=int(model.ir_version),
    )


def describe_output(written: Path, target: Path | None) -> File:
    """The record's `output`: of the file `written`, which will be at `target`."""
    path = None if target is None else str(target)
    return File(path=path, sha256=sha256(written), bytes=size(written))


def describe_data(data: Data | None, samples: int | None = None) -> Inputs | None:
    """Where data came from, how many samples, and the hash of the file where it is one."""
    if data is None:
        return None
    source = describe(data)
    path = Path(source)
    return Inputs(
        source=source,
        samples=len(data) if isinstance(data, Feeds) else samples,
        sha256=sha256(path) if isinstance(data, str | Path | Feeds) and path.is_file() else None,
    )


def describe_tool() -> Tool:
    """The record's `tool`."""
    return recorded(Tool, environment.tool())


def describe_environment(provider: str | None, threads: int | None, *, ran: bool = False) -> Environment:
    """The record's `environment`, see onnxdecomp.runtime.environment.describe."""
    return recorded(Environment, environment.describe(provider, threads, ran=ran))


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
    request: Mapping[str, Json]
    data: Mapping[str, Inputs | None]

    def ended(self, used: Inputs | None = None) -> Origin:
        """The same now that all is done, with the data that were evaluated on."""
        return replace(self, seconds=time.time() - self.started, data={**self.data, "eval": used})

    def run(self) -> Run:
        """The record's `run`; the command line is put in by the command."""
        return Run(
            command=None,
            started=datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            seconds=self.seconds,
            seed=self.seed,
            request=self.request,
            data=self.data,
        )


def run_record(
    model: ModelFile,
    *,
    plan: Plan,
    layers: Sequence[LayerRecord],
    channels: tuple[ChannelRecord, ...] | None = None,
    notes: Sequence[str],
    passes: Mapping[str, Mapping[str, object]],
    saved: Cost,
    origin: Origin,
    search: SearchRecord | None = None,
    where: Environment | None = None,
    output: File | None = None,
    verified: Verification | None = None,
    timed: BenchResult | None = None,
    looks: Sequence[DecidingTiming] | None = None,
    training: Training | None = None,
    refinement: Refinement | None = None,
    details: Details | None = None,
) -> RunRecord:
    """The record; what does not apply to a run is None."""
    details = details or Details()
    sums = totals(layers, None if output is None else (model.bytes, output.bytes), channels, saved)
    files = (model.path, None if output is None else output.path)
    checked = None if verified is None else verification(verified, *files)
    settings = None if timed is None else timings(timed, files)
    latency, target = None if timed is None else _latency(timed), origin.request.get("target")
    return RunRecord(
        kind="plan" if output is None else "compress",
        tool=describe_tool(),
        environment=where or describe_environment(None, None),
        run=origin.run(),
        model=model,
        output=output,
        plan=recorded(RecordedPlan, plan.to_json()),
        search=None if search is None else recorded(RecordedSearch, search),
        layers=tuple(details.of(layer) for layer in layers),
        channels=channels,
        layer_families=layer_families(layers),
        channel_families=channel_families(channels or ()),
        totals=sums,
        targets=target_results(target, sums, checked, latency) if isinstance(target, str) else None,
        training=training,
        refinement=None if refinement is None else recorded(RefinementRecord, refinement),
        verify=checked,
        latency=latency,
        looks=None if looks is None else tuple(looks),
        settings=settings,
        profile=details.profile(),
        demand=details.asked(),
        notes=tuple(notes),
        passes=jsonio.plain(passes),
        verdict=verdict_on_run(
            (*layers, *(channels or ())),
            sums,
            checked,
            settings,
            quantized="quantize" in passes,
            carried_out=output is not None,
        ),
    )


def verification(verified: Verification, original: str | None, new: str | None) -> RecordedVerification:
    """A comparison with the change of the accuracy; the files may have been compared under passing names."""
    found = {**jsonio.plain(verified, finite=False), "original": original, "new": new}
    if (accuracy := verified.accuracy) is not None:
        found["accuracy"] = {**found["accuracy"], "change": accuracy.new - accuracy.original}
    if (metric := verified.metric) is not None:
        found["metric"] = {**found["metric"], "change": metric.new - metric.original}
    return recorded(RecordedVerification, found)


def timings(timed: BenchResult, names: Sequence[str | None] | None = None) -> tuple[TimedSetting, ...]:
    """As `bench` has them; with the files' names where the models were timed under passing ones."""
    found = tuple(recorded(TimedSetting, setting) for setting in timed.to_json()["settings"])
    if names is None:
        return found
    return tuple(
        replace(
            setting,
            models=tuple(replace(one, model=name) for one, name in zip(setting.models, names, strict=True)),
        )
        for setting in found
    )


def _latency(timed: BenchResult) -> Latency:
    """One setting with two models: the original and the compressed one."""
    setting = timed.settings[0]
    original, compressed = setting.models
    gain = speedup(compressed.ratio)
    return Latency(
        provider=setting.provider,
        threads=setting.threads,
        batch=compressed.batch,
        shapes=compressed.shapes,
        inputs=timed.inputs,
        original=_timed(original),
        compressed=_timed(compressed),
        speedup=None if gain is None else recorded(Interval, gain),
    )


def _timed(timing: ModelTiming) -> TimedFile:
    """Without the distribution, which is in `settings`."""
    numbers = jsonio.plain(timing.latency, finite=False)
    return recorded(TimedFile, {**numbers, "throughput": timing.throughput, "nodes": timing.nodes})
