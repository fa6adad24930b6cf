"""The record of a run: what happened to every layer, as values that become the JSON record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from onnxdecomp.core.layer import Dim
from onnxdecomp.layers.lowering_check import LoweringCheck
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.search.plan import Choice, Cost, Plan

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Change:
    """A quantity before and after; None where it is not known."""

    before: int | None
    after: int | None


@dataclass(frozen=True)
class LayerRecord:
    """What happened to one operator.

    Attributes:
        name, graph, op: The operator.
        status: "decomposed", "kept", or "planned" (to be decomposed, in a dry run).
        reason: Why it was kept, or fitted to its weight alone although there was calibration.
        method, options, ranks: What replaced it.
        repaired: It was kept, with other numbers that make up for what layers before it have lost.
        rel_error: ||What - W|| / ||W||, of the weights (estimated to about 1 % for very large matrices).
        lowering: ||nodes(x) - What x|| / ||What x|| in ONNX Runtime; None where not decomposed.
        loss: E|y - What x|² / E|y|² on the calibration inputs, y centred; None where not fitted to them.
        params, macs: Cost before and after (after = before where it was kept); MACs are not known where the
            size of the activation is not.
        weight, input: Shapes of the canonical weight (see Layer) and of the activation, where known.
    """

    name: str
    graph: str
    op: str
    status: Literal["decomposed", "kept", "planned"]
    reason: str
    method: str | None
    options: Mapping[str, Any]
    ranks: tuple[int, ...]
    repaired: bool
    rel_error: float | None
    lowering: float | None
    loss: float | None
    params: Change
    macs: Change
    weight: tuple[int, ...]
    input: tuple[Dim, ...] | None


def layer_records(
    plan: Plan,
    rewritten: Sequence[Rewritten] = (),
    checks: Sequence[LoweringCheck] = (),
    *,
    carried_out: bool = True,
) -> tuple[LayerRecord, ...]:
    """One record per choice of the plan, in its order; `carried_out` is False in a dry run."""
    done = {(r.site.layer.graph, r.site.layer.name): r for r in rewritten}
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
                params=_change(choice.before, after, "params"),
                macs=_change(choice.before, after, "macs") if choice.sized else Change(None, None),
                weight=choice.weight,
                input=choice.input,
            )
        )
    return tuple(records)


def _new_bias(result: Rewritten) -> int:
    """The numbers of a bias that the layer had not: it makes up for the mean of what its chain leaves out."""
    bias = result.chain.bias
    return 0 if bias is None or result.site.layer.bias is not None else int(bias.size)


def _reason(choice: Choice, result: Rewritten | None) -> str:
    if choice.method is None or result is None or not result.unfitted:
        return choice.reason
    return f"fitted to its weight alone: {result.unfitted}"


def totals(layers: Sequence[LayerRecord]) -> dict[str, dict[str, int]]:
    """Parameters and MACs of all layers whose cost is known, before and after."""
    return {
        what: {
            when: sum(getattr(getattr(layer, what), when) or 0 for layer in layers)
            for when in ("before", "after")
        }
        for what in ("params", "macs")
    }


def _change(before: Cost | None, after: Cost | None, what: str) -> Change:
    return Change(
        None if before is None else getattr(before, what),
        None if after is None else getattr(after, what),
    )
