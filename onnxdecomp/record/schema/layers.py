"""What a record says of every layer, and of all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnxdecomp.core.json_values import Json
from onnxdecomp.core.spectrum import Spectrum
from onnxdecomp.record.schema.markers import ABSENT, LATER
from onnxdecomp.record.schema.planning import Shape


@dataclass(frozen=True)
class Change:
    """A quantity before and after; None where it is not known."""

    before: int | None
    after: int | None


@dataclass(frozen=True)
class LayerRecord:
    """What happened to one operator.

    Attributes:
        name, graph, op: The operator: its name, the subgraph or function it stands in ("" is the main graph),
            and its type.
        status: "decomposed", "cut" (smaller behind cuts of channels), "kept", or "planned" (to be
            decomposed or cut, in a dry run).
        reason: Why it was kept, or fitted to its weight alone although there was calibration.
        method, options, ranks: What replaced it.
        repaired: It was kept, with other numbers that make up for what layers before it have lost.
        rel_error: ||What - W|| / ||W||, of the weights (estimated to about 1 % for very large matrices).
        lowering: ||nodes(x) - What x|| / ||What x|| in ONNX Runtime; None where not decomposed.
        loss: E|y - What x|² / E|y|² on the calibration inputs, y centred; None where not fitted to them.
        params, macs: Cost before and after (after = before where it was kept); MACs are not known where the
            size of the activation is not.
        weight, input: Shapes of the canonical weight (see Layer) and of the activation, where known.
        group: What the layers have in common that share their first factor; not there for others.
        left: What is left of the weight's shape, or would be, behind cuts of channels; not there for others.
    """

    name: str
    graph: str
    op: str
    status: Literal["decomposed", "cut", "kept", "planned"]
    reason: str
    method: str | None
    options: Mapping[str, Json]
    ranks: tuple[int, ...]
    repaired: bool
    rel_error: float | None
    lowering: float | None
    loss: float | None
    params: Change
    macs: Change
    weight: tuple[int, ...]
    input: Shape | None
    group: str | None = field(default=None, metadata=ABSENT)
    left: tuple[int, ...] | None = field(default=None, metadata=ABSENT, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class ChannelRecord:
    """What happened to one channel: what some layers make and others read.

    Attributes:
        name: That of the first layer that makes it.
        status: "cut", "kept", or "planned" (to be cut, in a dry run).
        reason: Why it was kept, or its units were chosen by the weights although there was calibration.
        method: What cut it.
        width, kept: Its units before and after; 1 of what is no channel, for the reason that is named.
        producers, readers: The layers that make it and those that read it.
        loss: E|y - V x|² / E|y|² of what reads it on the calibration inputs, y centred, the sum over its
            readers; None where not fitted to them.
        held_out: The same on rows held out, of fits to the others.
        check: How far the outputs of the readers are, relative, from what they make of the channel before
            the cut with the units that went set to zero; None where it was not cut.
        params, macs: Of all layers that it is an axis of, with this channel alone cut.
    """

    name: str
    status: Literal["cut", "kept", "planned"]
    reason: str
    method: str | None
    width: int
    kept: int
    producers: tuple[str, ...]
    readers: tuple[str, ...]
    loss: float | None
    held_out: float | None
    check: float | None
    params: Change
    macs: Change


@dataclass(frozen=True, kw_only=True)
class KernelTimes:
    """Milliseconds of a layer's kernels in one run; None where none could be traced back to the layer."""

    before: float | None
    after: float | None


@dataclass(frozen=True)
class Node:
    """A node as a viewer shows it.

    Attributes:
        name, op: Its name and operator.
        attributes: Those that say what it does.
        weights: The shapes of its constant operands, by name.
        inputs, outputs: Names of the values that it reads, constants apart, and writes.
    """

    name: str
    op: str
    attributes: Mapping[str, Json] = field(default_factory=dict)
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """A layer's nodes before and after, what they read, and what reads them.

    Attributes:
        above: The node that computes the activation; None where it is an input of the graph.
        input, output: The names of the activation and of the layer's result.
        before: The layer's nodes as they were; only the first has its attributes and inputs.
        after: The nodes that stand there now.
        below: Nodes that read the result, the first few.
    """

    above: Node | None
    input: str
    output: str
    before: tuple[Node, ...]
    after: tuple[Node, ...]
    below: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True)
class DetailedLayer(LayerRecord):
    """What happened to one operator, and what a report shows of it where one was asked for.

    Attributes:
        latency_ms: Time of its kernels in one run.
        spectra: Per rank.
        nodes: The graph there.
    """

    latency_ms: KernelTimes | None
    spectra: tuple[Spectrum, ...]
    nodes: Surroundings | None


@dataclass(frozen=True, kw_only=True)
class Total:
    """Of the whole model.

    Attributes:
        ratio: before / after: how many times less.
    """

    before: int
    after: int
    ratio: float | None


@dataclass(frozen=True, kw_only=True)
class LayerCount:
    """How many layers there are, and how many were decomposed or are smaller behind cuts, or would be."""

    all: int
    decomposed: int
    cut: int = field(default=0, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class ChannelCount:
    """How many channels were looked at, and how many were cut, or would be."""

    all: int
    cut: int


@dataclass(frozen=True, kw_only=True)
class Totals:
    """All layers whose cost is known together, and the files.

    Attributes:
        params, macs: Of the layers, less what was saved by merging factors of two of them (see passes).
        bytes: Of the files; not there in a dry run.
        layers: Their number.
        channels: The number of channels; not there where none was looked at.
    """

    params: Total
    macs: Total
    bytes: Total | None = field(default=None, metadata=ABSENT)
    layers: LayerCount
    channels: ChannelCount | None = field(default=None, metadata=ABSENT)
