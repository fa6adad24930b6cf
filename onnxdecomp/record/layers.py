"""What happened to every layer, from the plan and what was made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from onnxdecomp.layers.lowering_check import LoweringCheck
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.record.schema.layers import Change, LayerCount, LayerRecord, Total, Totals
from onnxdecomp.search.plan import Choice, Cost, Plan


def layer_records(
    plan: Plan,
    rewritten: Sequence[Rewritten] = (),
    checks: Sequence[LoweringCheck] = (),
    *,
    carried_out: bool = True,
) -> tuple[LayerRecord, ...]:
    """One record per choice of the plan, in its order; `carried_out` is False in a dry run."""
    done = {(r.match.layer.graph, r.match.layer.name): r for r in rewritten}
    checked = {(c.graph, c.layer): c for c in checks}
    records = []
    for choice in plan.choices:
        key = (choice.graph, choice.layer)
        result = done.get(key)
        check = checked.get(key)
        planned = choice.method is not None and not carried_out
        decomposed = result is not None and choice.method is not None
        after = choice.after if decomposed or planned else choice.before
        if result is not None and after is not None:
            after = replace(after, params=after.params + _new_bias(result))
        records.append(
            LayerRecord(
                name=choice.layer,
                graph=choice.graph,
                op=choice.op_type,
                status="decomposed" if decomposed else "planned" if planned else "kept",
                reason=_reason(choice, result),
                method=choice.method,
                options=choice.options,
                ranks=choice.ranks,
                repaired=result is not None and not decomposed,
                rel_error=result.rel_error if result else None,
                lowering=check.rel_error if check else None,
                loss=result.loss if result else None,
                params=_uncopied(_change(choice.before, after, "params"), choice.copied),
                macs=_change(choice.before, after, "macs") if choice.sized else Change(None, None),
                weight=choice.weight,
                input=choice.input,
                group=choice.group or None,
            )
        )
    return tuple(records)


def _uncopied(params: Change, copied: int) -> Change:
    """Without what the original stores with another layer."""
    return params if params.before is None else replace(params, before=params.before - copied)


def _new_bias(result: Rewritten) -> int:
    """The numbers of a bias that the layer had not: it makes up for the mean of what its chain leaves out."""
    bias = result.chain.bias
    return 0 if bias is None or result.match.layer.bias is not None else int(bias.size)


def _reason(choice: Choice, result: Rewritten | None) -> str:
    if choice.method is None or result is None or not result.unfitted:
        return choice.reason
    return f"fitted to its weight alone: {result.unfitted}"


def totals(layers: Sequence[LayerRecord], files: tuple[int, int] | None = None) -> Totals:
    """All layers whose cost is known together, and the bytes of the files, before and after."""
    return Totals(
        params=_sum(layer.params for layer in layers),
        macs=_sum(layer.macs for layer in layers),
        bytes=None if files is None else _total(*files),
        layers=LayerCount(all=len(layers), decomposed=sum(layer.method is not None for layer in layers)),
    )


def _sum(changes: Iterable[Change]) -> Total:
    known = [(change.before or 0, change.after or 0) for change in changes]
    return _total(sum(before for before, _ in known), sum(after for _, after in known))


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
