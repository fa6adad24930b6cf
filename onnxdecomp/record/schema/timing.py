"""What a record says of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from onnxdecomp.record.schema.markers import ABSENT, Length

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Of inputs, by name."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A ratio with its confidence interval."""

    value: float
    low: float | None
    high: float | None
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Speedup(Interval):
    """A speedup, and the setting that it was measured in."""

    provider: str
    batch: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class DecidingTiming:
    """A timing that decided whether something pays.

    Attributes:
        what: What was to pay.
        decomposed: How many layers were, and channels cut.
        outcome: "faster": the interval is below 1; "no faster": a gain of 1 % or more is ruled out.
        pays: Whether it was kept.
        against: What its time was compared with.
        ratio: Its time over the other's.
        limit_s: Seconds within which it was to be decided.
    """

    what: Literal["layers", "quantization"]
    decomposed: int
    outcome: Literal["faster", "no faster", "undecided"]
    pays: bool
    against: str
    ratio: Interval | None
    limit_s: float


@dataclass(frozen=True, kw_only=True)
class LatencySummary:
    """Order statistics of the latencies of single runs.

    Attributes:
        count: Of runs.
    """

    unit: Literal["ms"]
    count: int
    min: float
    mean: float
    stdev: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class LatencyDistribution(LatencySummary):
    """The same with the distribution.

    Attributes:
        quantiles: Of 0, 1, … 100 %.
    """

    quantiles: Annotated[tuple[float, ...], Length(101, 101)]


@dataclass(frozen=True, kw_only=True)
class TimedModel:
    """One model under one setting.

    Attributes:
        model: The file.
        batch: Rows on the first axis of its first input.
        shapes: What was fed.
        throughput: Rows a second.
        ratio: Latency over the first model's, ratio of the medians.
        nodes: How many each provider ran.
        peak_rss: Bytes of memory; null where not measured.
        device_bytes: By which the memory in use on the card grew when it was loaded and run, likewise.
        speedup: One over ratio.
    """

    model: str | None
    batch: int
    shapes: Shapes
    latency: LatencyDistribution
    throughput: float
    ratio: Interval | None
    nodes: Mapping[str, int]
    peak_rss: int | None
    speedup: Interval | None
    device_bytes: int | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, kw_only=True)
class TimedSetting:
    """All models under one setting.

    Attributes:
        provider, threads, device: Where they ran.
        batch: The batch size asked for.
        io_binding: Whether inputs and outputs stayed on the device.
        spinning: Whether idle threads waited busily.
        rounds: Runs of each model.
        models: In the order given.
        precision: What floating point was asked to be computed in; "" where nothing was.
        profile, options: Of the provider, by ONNX Runtime's names.
        graph: Whether every run was replayed from a recorded graph (CUDA graphs).
    """

    provider: str
    threads: int
    batch: int
    io_binding: bool
    spinning: bool
    rounds: int
    models: tuple[TimedModel, ...]
    device: str
    precision: str = ""
    profile: str = "default"
    options: Mapping[str, str] = field(default_factory=dict)
    graph: bool = False


@dataclass(frozen=True, kw_only=True)
class TimedFile(LatencySummary):
    """The original, or the result.

    Attributes:
        throughput: Rows a second.
        nodes: How many each provider ran.
    """

    throughput: float
    nodes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The timing against the original that decided.

    Attributes:
        provider, threads, batch, shapes, inputs: On what both were timed, their runs interleaved.
        speedup: Ratio of the medians, original to compressed.
    """

    provider: str
    threads: int
    batch: int
    shapes: Shapes
    inputs: str
    original: TimedFile
    compressed: TimedFile
    speedup: Interval | None


@dataclass(frozen=True, kw_only=True)
class TimeSpent:
    """Where the time of one run goes: in all kernels, in those of layers, in the others."""

    total: float
    layers: float
    other: float


@dataclass(frozen=True, kw_only=True)
class KernelProfile:
    """The same of the original and of the result."""

    unit: Literal["ms"] = "ms"
    before: TimeSpent
    after: TimeSpent


@dataclass(frozen=True, kw_only=True)
class AskedOfHardware:
    """What one run asks of the hardware, counted from the operators as if nothing stayed in a cache.

    Attributes:
        launches: Kernels, with what ONNX Runtime fuses counted as one.
        bytes: Read and written.
        flops: Two for each multiplication and addition.
        intensity: Operations for each byte: where it is low, memory is what takes time.
    """

    launches: int
    bytes: float
    flops: float
    intensity: float


@dataclass(frozen=True, kw_only=True)
class HardwareDemand:
    """The same of the original and of the result, at the sizes that were timed."""

    before: AskedOfHardware
    after: AskedOfHardware
