"""What a record says of repeated layers together, where there are many."""

from __future__ import annotations

from dataclasses import dataclass

from onnxdecomp.record.schema.layers import Change
from onnxdecomp.record.schema.planning import Shape


@dataclass(frozen=True)
class Range:
    """The least and the greatest."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class FamilyResult:
    """What happened to some members of a family.

    Attributes:
        members: How many.
        method: What replaced or cut them; null of those that were kept.
        ranks: Of each rank of the method.
        left: Of each size of what is left behind cuts of channels; null where nothing was cut.
        repaired: They were kept, with other numbers that make up for what layers before them have lost.
        reasons: Why, those that differ in numbers alone as one.
    """

    members: int
    method: str | None
    ranks: tuple[Range, ...]
    left: tuple[Range, ...] | None
    repaired: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LayerFamily:
    """Layers of one operator and shape whose names differ in numbers alone.

    Attributes:
        name: What their names have in common, with a * for numbers that differ.
        op: Their operator.
        layers: How many.
        weight, input: Shapes of the canonical weight and of the activation; null where that differs.
        results: What happened to them.
        rel_error: See LayerRecord; null where none was decomposed.
        params, macs: The sum over them; null where one of them is not known.
    """

    name: str
    op: str
    layers: int
    weight: tuple[int, ...]
    input: Shape | None
    results: tuple[FamilyResult, ...]
    rel_error: Range | None
    params: Change
    macs: Change


@dataclass(frozen=True, kw_only=True)
class ChannelFamily:
    """Channels of one width whose names differ in numbers alone.

    Attributes:
        name: As of LayerFamily.
        channels: How many.
        width: The units of each.
        producers, readers: Names of the layers that make them and of those that read them.
        results: What happened to them; `left` has the units that stay.
        loss: See ChannelRecord; null where none was fitted.
        macs: The sum over them of all layers that one is an axis of, with it alone cut.
    """

    name: str
    channels: int
    width: int
    producers: str
    readers: str
    results: tuple[FamilyResult, ...]
    loss: Range | None
    macs: Change
