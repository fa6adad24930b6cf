"""What a record says of how the plan came about, and the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from onnxdecomp.core.json_values import Json
from onnxdecomp.record.schema.markers import ABSENT, LATER, Known

Shape: TypeAlias = tuple[int | str | None, ...]
"""Free dimensions by name, or None."""


@dataclass(frozen=True, kw_only=True)
class PlannedCost:
    """Numbers stored, and multiply-accumulates for one input."""

    params: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """The decision for one operator.

    Attributes:
        layer, graph, op_type: The operator.
        method: What it is replaced by; null where it stays.
        options, ranks: Of the method.
        reason: Why it stays.
        before, after: Cost of the operator, and of its chain.
        weight, input: Shapes of the weight, and of the activation where it is known.
        fixed: It was asked to stay.
        copied: Numbers of its bias that the original stores with another layer, whose bias it reads as well.
        sized: The size of the activation is known; else the MACs are those of one row.
        group: What layers have in common that share their first factor; not there for others.
        left: What is left of the weight's shape behind cuts of channels, whose cost `after` is then; not
            there for others.
    """

    layer: str
    graph: str
    op_type: str
    method: str | None
    options: Mapping[str, Json]
    ranks: tuple[int, ...]
    reason: str
    before: PlannedCost | None
    after: PlannedCost | None
    weight: tuple[int, ...]
    input: Shape | None
    fixed: bool = field(default=False, metadata=LATER)
    copied: int = field(default=0, metadata=LATER)
    sized: bool = field(default=True, metadata=LATER)
    group: str | None = field(default=None, metadata=ABSENT)
    left: tuple[int, ...] | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, kw_only=True)
class PlannedChannel:
    """The decision for one channel: what some layers make and others read.

    Attributes:
        channel: Its name, that of the first layer that makes it.
        method: What cuts it; null where it stays.
        width, kept: Its units, and those that are left.
        producers, readers: The layers that make it and those that read it.
        reason: Why it stays.
        before, after: Cost of all its layers, and with this channel alone cut.
    """

    channel: str
    method: str | None
    width: int
    kept: int
    producers: tuple[str, ...]
    readers: tuple[str, ...]
    reason: str
    before: PlannedCost | None
    after: PlannedCost | None


@dataclass(frozen=True, kw_only=True)
class RecordedPlan:
    """The decision for every layer, which `--plan` reads.

    Attributes:
        version: 2 where channels are in it.
        repair: Whether kept layers are fitted anew.
        channels: The decision for every channel; not there where none was looked at.
    """

    version: Literal[1, 2] = 1
    repair: bool = field(default=False, metadata=LATER)
    choices: tuple[PlannedLayer, ...]
    channels: tuple[PlannedChannel, ...] | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, kw_only=True)
class RecordedCandidate:
    """A method with its ranks for one layer.

    Attributes:
        options: Of the method.
        loss: Of the layer.
        output_loss: Squared relative error that it makes in the output.
        part: Share of the original's latency that it would take.
        group: The layers that it is done to together, of which the first bears the cost of what they have in
            common; not there for one layer alone.
    """

    method: str
    options: Mapping[str, Json] = field(default_factory=dict, metadata=LATER)
    ranks: tuple[int, ...]
    params: int
    macs: int
    loss: float
    output_loss: float
    part: float | None
    group: tuple[str, ...] | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Of the plan chosen.

    Attributes:
        loss: The squared relative error of the output with the layers' errors added up.
        bound: What no plan of these candidates goes below.
        gap: How far above it this plan is.
        latency: Over the original's; null where nothing was timed.
    """

    loss: float | None
    bound: float | None
    gap: float | None
    latency: float | None


@dataclass(frozen=True, kw_only=True)
class MeasuredPlan:
    """Of the plan chosen.

    Attributes:
        latency: Over the original's, of its chains in the whole model; null where not timed.
    """

    latency: float | None


TriedPlan: TypeAlias = Annotated[
    Mapping[str, float | None],
    Known(
        {"expected": float | None, "latency": float | None, "macs": float}, ("expected", "latency", "macs")
    ),
]
"""A plan that was carried out on the way: what was expected, and what was measured, by the target's name."""


@dataclass(frozen=True, kw_only=True)
class FrontierPlan:
    """One of the best whole plans.

    Attributes:
        loss: Expected.
        latency, macs: Expected, over the original's.
        layers: How many are decomposed.
    """

    loss: float
    latency: float | None
    macs: float
    layers: int


@dataclass(frozen=True, kw_only=True)
class WeighedLayer:
    """What was weighed for one layer.

    Attributes:
        part: Its share of the latency.
        effect: Pairs of the layer's loss and the output's, measured.
    """

    layer: str
    graph: str
    macs: int
    part: float | None
    effect: tuple[tuple[float, ...], ...]
    candidates: tuple[RecordedCandidate, ...]


@dataclass(frozen=True, kw_only=True)
class RecordedLevel:
    """A width of a channel.

    Attributes:
        kept: The units that stay.
        params, macs: Of the layers around it, nothing else done to them.
        loss: Squared relative errors of what reads it, added up.
        output_loss: Squared relative error that it makes in the output.
        part: The share of the original's latency that these layers would take.
    """

    kept: int
    params: int
    macs: int
    loss: float
    output_loss: float
    part: float | None


@dataclass(frozen=True, kw_only=True)
class WeighedChannel:
    """What was weighed for one channel.

    Attributes:
        width: Its units.
        effect: Pairs of the channel's loss and the output's, measured.
        levels: Its widths, first the one that it has.
    """

    channel: str
    width: int
    effect: tuple[tuple[float, ...], ...]
    levels: tuple[RecordedLevel, ...]


@dataclass(frozen=True, kw_only=True)
class RecordedSearch:
    """What was weighed for a target.

    Attributes:
        original_ms: The original's latency; null where not timed.
        weighed: Candidates in all.
        tries: Every plan carried out on the way, where the goal is a loss, or else with cuts, fewer
            and none: its expected loss, its expected latency and its macs over the original's, and what was
            measured, by the target's name.
        frontier: The best whole plans, from the original on.
        channels: Those that can be cut; not there where none was looked at.
        limited: The time limit ended it; not there where none did.
    """

    expected: Expected
    measured: MeasuredPlan
    original_ms: float | None
    weighed: int
    tries: tuple[TriedPlan, ...]
    frontier: tuple[FrontierPlan, ...]
    layers: tuple[WeighedLayer, ...]
    channels: tuple[WeighedChannel, ...] | None = field(default=None, metadata=ABSENT)
    limited: bool | None = field(default=None, metadata=ABSENT)
