"""What happened to every layer, from the plan and what was made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from onnxdecomp.channels.channel_cut import ChannelCut
from onnxdecomp.layers.lowering_check import LoweringCheck
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.record.schema.layers import (
    Change,
    ChannelCount,
    ChannelRecord,
    LayerCount,
    LayerRecord,
    Total,
    Totals,
)
from onnxdecomp.search.plan import Choice, Cost, Cut, Plan

NOTHING = Cost(0, 0)


def layer_records(
    plan: Plan,
    rewritten: Sequence[Rewritten] = (),
    checks: Sequence[LoweringCheck] = (),
    cuts: Sequence[ChannelCut] = (),
    *,
    carried_out: bool = True,
) -> tuple[LayerRecord, ...]:
    """One record per choice of the plan, in its order; `carried_out` is False in a dry run."""
    biased = {name: size for cut in cuts for name, size in cut.biased.items()}
    done = {(r.match.layer.graph, r.match.layer.name): r for r in rewritten}
    checked = {(c.graph, c.layer): c for c in checks}
    records = []
    for choice in plan.choices:
        key = (choice.graph, choice.layer)
        result = done.get(key)
        check = checked.get(key)
        planned = (choice.method is not None or choice.narrowed) and not carried_out
        decomposed = result is not None and choice.method is not None
        cut = choice.method is None and choice.narrowed
        after = choice.after if decomposed or planned or cut else choice.before
        if after is not None:
            brought = 0 if result is None or cut else _new_bias(result)
            if choice.layer in biased and not choice.graph:
                brought += _left_of(biased[choice.layer], choice)
            after = replace(after, params=after.params + brought)
        records.append(
            LayerRecord(
                name=choice.layer,
                graph=choice.graph,
                op=choice.op_type,
                status=_status(decomposed=decomposed, planned=planned, cut=cut),
                reason="" if cut else _reason(choice, result),
                method=choice.method,
                options=choice.options,
                ranks=choice.ranks,
                repaired=result is not None and not decomposed and not cut,
                rel_error=result.rel_error if result and not cut else None,
                lowering=check.rel_error if check else None,
                loss=result.loss if result else None,
                params=_uncopied(_change(choice.before, after, "params"), choice.copied),
                macs=_change(choice.before, after, "macs") if choice.sized else Change(None, None),
                weight=choice.weight,
                input=choice.input,
                group=choice.group or None,
                left=choice.left or None,
            )
        )
    return tuple(records)


def channel_records(
    plan: Plan, cuts: Sequence[ChannelCut] = (), *, carried_out: bool = True
) -> tuple[ChannelRecord, ...] | None:
    """One record per channel of the plan, in its order; None where the plan says nothing of channels."""
    done = {cut.channel: cut for cut in cuts}
    return tuple(_channel(cut, done.get(cut.channel), carried_out) for cut in plan.channels) or None


def _channel(cut: Cut, done: ChannelCut | None, carried_out: bool) -> ChannelRecord:
    planned = cut.method is not None and not carried_out
    after = cut.after if cut.method is not None else cut.before
    reason = cut.reason
    if done is not None and done.unfitted:
        reason = f"its units were chosen by the weights alone: {done.unfitted}"
    return ChannelRecord(
        name=cut.channel,
        status="planned" if planned else "kept" if done is None else "cut",
        reason=reason,
        method=cut.method,
        width=cut.width,
        kept=cut.kept,
        producers=cut.producers,
        readers=cut.readers,
        loss=None if done is None else done.loss,
        held_out=None if done is None else done.held_out,
        check=None if done is None else done.check,
        params=_change(cut.before, after, "params"),
        macs=_change(cut.before, after, "macs"),
    )


def _status(*, decomposed: bool, planned: bool, cut: bool) -> Literal["decomposed", "cut", "kept", "planned"]:
    if decomposed:
        return "decomposed"
    return "planned" if planned else "cut" if cut else "kept"


def _uncopied(params: Change, copied: int) -> Change:
    """Without what the original stores with another layer."""
    return params if params.before is None else replace(params, before=params.before - copied)


def _new_bias(result: Rewritten) -> int:
    """The numbers of a bias that the layer had not: it makes up for the mean of what its chain leaves out."""
    bias = result.chain.bias
    return 0 if bias is None or result.match.layer.bias is not None else int(bias.size)


def _left_of(bias: int, choice: Choice) -> int:
    """The numbers of a bias that are left when a layer's outputs are cut after it got it."""
    for axis in (0, -2):
        if choice.left and bias in (choice.weight[axis], choice.left[axis]):
            return choice.left[axis]
    return bias


def _reason(choice: Choice, result: Rewritten | None) -> str:
    if choice.method is None or result is None or not result.unfitted:
        return choice.reason
    return f"fitted to its weight alone: {result.unfitted}"


def totals(
    layers: Sequence[LayerRecord],
    files: tuple[int, int] | None = None,
    channels: Sequence[ChannelRecord] | None = None,
    merged: Cost = NOTHING,
) -> Totals:
    """All layers whose cost is known together, and the bytes of the files, before and after.

    What is merged between layers is no layer's own, and taken from what all have together.
    """
    return Totals(
        params=_sum((layer.params for layer in layers), merged.params),
        macs=_sum((layer.macs for layer in layers), merged.macs),
        bytes=None if files is None else _total(*files),
        layers=LayerCount(
            all=len(layers),
            decomposed=sum(layer.method is not None for layer in layers),
            cut=sum(layer.left is not None for layer in layers),
        ),
        channels=None if channels is None else _counted(channels),
    )


def _counted(channels: Sequence[ChannelRecord]) -> ChannelCount:
    """What something breaks has one unit, and is no channel."""
    return ChannelCount(
        all=sum(channel.width > 1 for channel in channels),
        cut=sum(channel.method is not None for channel in channels),
    )


def _sum(changes: Iterable[Change], merged: int) -> Total:
    known = [(change.before or 0, change.after or 0) for change in changes]
    return _total(sum(before for before, _ in known), sum(after for _, after in known) - merged)


def _total(before: int, after: int) -> Total:
    return Total(before=before, after=after, ratio=ratio(before, after))


def _change(before: Cost | None, after: Cost | None, what: Literal["params", "macs"]) -> Change:
    return Change(
        None if before is None else getattr(before, what),
        None if after is None else getattr(after, what),
    )


def ratio(before: float | None, after: float | None) -> float | None:
    """How many times less it is after; None where there is nothing to divide by."""
    return before / after if before is not None and after else None
