"""Layers and channels of repeated blocks together: what a reader of 300 of them looks at first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from onnxdecomp.core.names import alike, braced, in_common, told_together
from onnxdecomp.record.schema.families import ChannelFamily, FamilyResult, LayerFamily, Range
from onnxdecomp.record.schema.layers import Change, ChannelRecord, LayerRecord

SEVERAL = 24
"""Layers up to which every one has a row of its own; there are fewer channels than layers."""

T = TypeVar("T", LayerRecord, ChannelRecord)


def layer_families(layers: Sequence[LayerRecord]) -> tuple[LayerFamily, ...] | None:
    """Layers of one kind together: their names differ in numbers alone, their operators and weights do not.

    Returns:
        In the order of the first ones; None where there are few layers, or hardly any is repeated.
    """
    names = [f"{layer.graph}/{layer.name}" if layer.graph else layer.name for layer in layers]
    groups = alike(names, [(layer.op, layer.weight) for layer in layers])
    if not _worth_it(groups, layers):
        return None
    return tuple(
        _layers([layers[at] for at in places], in_common(names[at] for at in places)) for places in groups
    )


def channel_families(channels: Sequence[ChannelRecord]) -> tuple[ChannelFamily, ...] | None:
    """The same of channels of one width; what something breaks is none of them."""
    shown = [channel for channel in channels if channel.width > 1]
    roles = [(one.width, len(one.producers), len(one.readers)) for one in shown]
    groups = alike([channel.name for channel in shown], roles)
    if not _worth_it(groups, shown, SEVERAL // 3):
        return None
    return tuple(_channels([shown[at] for at in places]) for places in groups)


def _worth_it(groups: Sequence[object], members: Sequence[object], several: int = SEVERAL) -> bool:
    return len(members) > several and 2 * len(groups) <= len(members)


def _layers(members: Sequence[LayerRecord], name: str) -> LayerFamily:
    first = members[0]
    return LayerFamily(
        name=name,
        op=first.op,
        layers=len(members),
        weight=first.weight,
        input=first.input if all(member.input == first.input for member in members) else None,
        results=_results(
            members, lambda layer: (layer.method, len(layer.ranks), _rank(layer.left), layer.repaired)
        ),
        rel_error=_range(layer.rel_error for layer in members),
        params=_sum([layer.params for layer in members]),
        macs=_sum([layer.macs for layer in members]),
    )


def _channels(members: Sequence[ChannelRecord]) -> ChannelFamily:
    return ChannelFamily(
        name=in_common(channel.name for channel in members),
        channels=len(members),
        producers=_names(channel.producers for channel in members),
        readers=_names(channel.readers for channel in members),
        results=_results(members, lambda channel: channel.method),
        width=members[0].width,
        loss=_range(channel.loss for channel in members),
        macs=_sum([channel.macs for channel in members]),
    )


def _results(members: Sequence[T], kind: Callable[[T], object]) -> tuple[FamilyResult, ...]:
    """What happened to them, in kinds, those with a method first."""
    kinds: dict[object, list[T]] = {}
    for member in members:
        kinds.setdefault(kind(member), []).append(member)
    found = [_result(several) for several in kinds.values()]
    return tuple(sorted(found, key=lambda one: one.method is None and one.left is None))


def _result(members: Sequence[LayerRecord] | Sequence[ChannelRecord]) -> FamilyResult:
    first = members[0]
    ranks, left, repaired = [], [], False
    for member in members:
        if isinstance(member, LayerRecord):
            ranks.append(member.ranks)
            left.append(member.left or ())
            repaired = member.repaired
        elif member.method:
            left.append((member.kept,))
    return FamilyResult(
        members=len(members),
        method=first.method,
        ranks=_each(ranks),
        left=_each(left) or None,
        repaired=repaired,
        reasons=tuple(told_together([member.reason for member in members if member.reason])),
    )


def _names(names: Iterable[Sequence[str]]) -> str:
    """What stands in the same place for every member, as one name for each place."""
    places = list(zip(*names, strict=True))
    told = [in_common(several) if len(alike(several)) == 1 else several[0] for several in places]
    return braced(list(dict.fromkeys(told)))


def _rank(shape: Sequence[int] | None) -> int | None:
    return None if shape is None else len(shape)


def _each(values: Sequence[Sequence[int]]) -> tuple[Range, ...]:
    """The least and the greatest of every place."""
    return tuple(Range(min(several), max(several)) for several in zip(*values, strict=True))


def _range(values: Iterable[float | None]) -> Range | None:
    known = [value for value in values if value is not None]
    return Range(min(known), max(known)) if known else None


def _sum(changes: Sequence[Change]) -> Change:
    """None where one of them is not known: less than all of them would mislead."""
    before = [change.before for change in changes if change.before is not None]
    after = [change.after for change in changes if change.after is not None]
    return Change(
        sum(before) if len(before) == len(changes) else None,
        sum(after) if len(after) == len(changes) else None,
    )
