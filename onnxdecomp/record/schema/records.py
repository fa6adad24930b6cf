"""The records, whole: a run of compress, and those of bench and finetune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self, TypeAlias

from onnxdecomp.core.json_values import Json
from onnxdecomp.record.schema.checks import ModelVerdict, RecordedVerification, TargetResult, Verdict
from onnxdecomp.record.schema.comparison import ComparedModel, GateResult
from onnxdecomp.record.schema.families import ChannelFamily, LayerFamily
from onnxdecomp.record.schema.layers import ChannelRecord, DetailedLayer, Totals
from onnxdecomp.record.schema.markers import ABSENT, LATER, Known, Length
from onnxdecomp.record.schema.origin import Environment, File, ModelFile, Run, Tool
from onnxdecomp.record.schema.planning import RecordedPlan, RecordedSearch
from onnxdecomp.record.schema.quantizing import Quantization
from onnxdecomp.record.schema.reading import read
from onnxdecomp.record.schema.timing import (
    DecidingTiming,
    HardwareDemand,
    KernelProfile,
    Latency,
    TimedSetting,
)
from onnxdecomp.record.schema.training import RefinementRecord, Training, TrainingVerdict
from onnxdecomp.runtime import jsonio

Version: TypeAlias = Literal[1]


class Record:
    """What all records can do: become JSON, and be read from it."""

    def to_json(self) -> dict[str, Json]:
        """As JSON values; numbers that are not finite are None."""
        found: dict[str, Json] = jsonio.plain(self)
        return found

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """The record that `to_json` wrote, of this release or of an earlier one; unknown keys are left out.

        Raises:
            MalformedError: It is none; the line names the first place where it is not.
        """
        return read(cls, value)


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """What compress and inspect write.

    Attributes:
        kind: "plan" of a dry run.
        model: What came in.
        output: What came of it; null in a dry run.
        plan: After the layers that did not pay were put back.
        search: Null where ranks or a plan were given.
        layers: What happened to each, in the graph's order.
        channels: What happened to each, in the graph's order; not there where none was looked at.
        layer_families, channel_families: Those of repeated blocks together; not there where there are few.
        targets: What came of each; not there where none was asked for.
        training: With --finetune.
        refinement: With --refine; not there where nothing was refined.
        verify: The comparison with the original; null with --no-verify.
        latency: Null with --no-bench and where nothing was decomposed.
        looks: What was timed for "never slower"; null where that was not asked for.
        settings: The timing that decided, and those at further batch sizes and numbers of threads.
        profile: Null elsewhere than on the CPU, and where it was not asked for.
        demand: What both ask of the hardware; not there where it was not asked for.
        notes: Sentences that the run printed.
        passes: Facts from the passes, by name.
    """

    schema_version: Version = 1
    kind: Literal["compress", "plan"]
    tool: Tool
    environment: Environment
    run: Run
    model: ModelFile
    output: File | None
    plan: RecordedPlan
    search: RecordedSearch | None
    layers: tuple[DetailedLayer, ...]
    channels: tuple[ChannelRecord, ...] | None = field(default=None, metadata=ABSENT)
    layer_families: tuple[LayerFamily, ...] | None = field(default=None, metadata=ABSENT)
    channel_families: tuple[ChannelFamily, ...] | None = field(default=None, metadata=ABSENT)
    totals: Totals
    targets: tuple[TargetResult, ...] | None = field(default=None, metadata=ABSENT)
    training: Training | None = field(default=None, metadata=LATER)
    refinement: RefinementRecord | None = field(default=None, metadata=ABSENT)
    verify: RecordedVerification | None
    latency: Latency | None
    looks: tuple[DecidingTiming, ...] | None = field(default=None, metadata=LATER)
    settings: tuple[TimedSetting, ...] | None
    profile: KernelProfile | None
    demand: HardwareDemand | None = field(default=None, metadata=ABSENT)
    notes: tuple[str, ...]
    passes: Annotated[Mapping[str, Json], Known({"quantize": Quantization})]
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class BenchRecord(Record):
    """What bench writes.

    Attributes:
        models: The first is what the others are compared with.
        inputs: What they were timed on.
        settings: Per provider, number of threads and batch size.
        verify: Per further model; empty where nobody asked for it.
        verdicts: Per further model.
        gate: Null without --gate.
    """

    schema_version: Version = 1
    kind: Literal["bench"] = "bench"
    tool: Tool
    environment: Environment
    run: Run
    models: Annotated[tuple[ComparedModel, ...], Length(1)]
    inputs: str
    settings: Annotated[tuple[TimedSetting, ...], Length(1)]
    verify: tuple[RecordedVerification, ...]
    verdicts: tuple[ModelVerdict, ...]
    gate: GateResult | None


@dataclass(frozen=True, kw_only=True)
class FinetuneRecord(Record):
    """What finetune writes.

    Attributes:
        model: What came in.
        teacher: The original; null without one.
        verify: The result against the teacher.
    """

    schema_version: Version = 1
    kind: Literal["finetune"] = "finetune"
    tool: Tool
    environment: Environment
    run: Run
    model: ModelFile
    teacher: ModelFile | None
    output: File
    training: Training
    verdict: TrainingVerdict
    verify: RecordedVerification | None


@dataclass(frozen=True, kw_only=True)
class TrainingsRecord(Record):
    """Several trainings on one page; only the report makes and reads it."""

    schema_version: Version = 1
    kind: Literal["trainings"] = "trainings"
    tool: Tool
    trainings: Annotated[tuple[FinetuneRecord, ...], Length(2)]


RECORDS: Mapping[str, type[Record]] = {
    "compress": RunRecord,
    "plan": RunRecord,
    "bench": BenchRecord,
    "finetune": FinetuneRecord,
    "trainings": TrainingsRecord,
}
"""By `kind`."""
