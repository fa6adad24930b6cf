"""What a record says of numbers: the comparison with the original, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from onnxdecomp.record.schema.markers import ABSENT, Between
from onnxdecomp.record.schema.timing import Shapes, Speedup

Share: TypeAlias = Annotated[float, Between(0, 1)]


@dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """The difference of one output, see `verify` in docs/reference/record.md."""

    name: str
    dtype: str
    values: int
    max_abs: float | None
    p99_abs: float | None
    rel_l2: float | None
    cosine: float | None
    sqnr_db: float | None
    agreement: float | None
    top1_agreement: float | None
    nonfinite: int
    nonfinite_original: int


@dataclass(frozen=True, kw_only=True)
class AccuracyChange:
    """Top-1 accuracy on the labels of the data, as fractions."""

    output: str
    samples: int
    original: Share
    new: Share
    change: float


@dataclass(frozen=True, kw_only=True)
class RecordedMetric:
    """What a metric of the task says of both models on equal samples: `verify` in docs/reference/record.md.

    Attributes:
        name: A built-in metric, or the user's function.
        labels: Whether labels took part.
        original, new, change: Its values, and the second less the first; null where one is not finite.
        low, high: The 95 % interval of `change`; null where nothing tells it.
        loss: By how much it got worse.
        lower_is_better: Of rates of errors and distances.
        points: Whether it is a share of samples, whose changes are told in points.
    """

    name: str
    samples: int
    labels: bool
    original: float
    new: float | None
    change: float | None
    low: float | None
    high: float | None
    loss: float | None
    lower_is_better: bool
    points: bool


@dataclass(frozen=True, kw_only=True)
class RecordedVerification:
    """The comparison of a model with the original.

    Attributes:
        reason: Why it is not "passed".
        original, new: The files.
        data, samples, shapes: On what.
        max_error: The largest `rel_l2` of an output that passes.
        interface: Differences of inputs and outputs.
        rel_l2: Relative L2 error over all floating-point outputs.
        worst, worst_output: The largest of a single output.
        accuracy: Where the data have labels.
        metric: Where a metric of the task was asked for; not there elsewhere.
    """

    status: Literal["passed", "failed", "skipped"]
    reason: str | None
    original: str | None
    new: str | None
    provider: str
    data: str
    samples: int
    shapes: tuple[Shapes, ...]
    max_error: float | None
    interface: tuple[str, ...]
    notes: tuple[str, ...]
    outputs: tuple[OutputDifference, ...]
    rel_l2: float | None
    worst: float | None
    worst_output: str | None
    accuracy: AccuracyChange | None
    metric: RecordedMetric | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """What came of a target.

    Attributes:
        target: As it was asked for.
        quantity: What it limits: "macs", "params", "size", "latency", "error", "drop", "metric",
            "disagreement".
        asked: The limit: with `relative` the least factor of original over result; of "metric" its least
            value (or its largest, where lower is better); else the most that is allowed, in numbers, bytes,
            milliseconds or as a fraction.
        reached: The same of the result; of losses on what it was verified with. Null where not measured.
        kept: Whether that keeps the limit.
    """

    target: str
    quantity: str
    asked: float
    relative: bool
    reached: float | None
    kept: bool | None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether something is worth it.

    Attributes:
        worth: Null where it is open: a dry run, a noisy machine.
        text: As a sentence.
        because: Why it is not worth it, or what else to know.
    """

    worth: bool | None
    text: str
    because: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What a verdict is made of; null where it is not known.

    Attributes:
        speedup: Of the setting that decided.
        smaller, fewer_params, fewer_macs: Factors.
        accuracy: Its change, as a fraction.
        metric: What the metric of the task says; not there where none was asked for.
        error: Relative L2, of all outputs.
    """

    speedup: Speedup | None
    smaller: float | None
    fewer_params: float | None
    fewer_macs: float | None
    accuracy: float | None
    metric: RecordedMetric | None = field(default=None, metadata=ABSENT)
    error: float | None


@dataclass(frozen=True, kw_only=True)
class Verdict(Numbers, Judgement):
    """What a result bought and cost, and whether that is worth it."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is judged.

    Attributes:
        model: The file of one of several models.
    """

    model: str


@dataclass(frozen=True, kw_only=True)
class ModelVerdict(Verdict, Subject):
    """What one of several models bought and cost against the first."""
