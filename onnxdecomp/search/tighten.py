"""A plan that is expected to lose less, from the record of a search: nothing is weighed anew."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from onnxdecomp.search.keep_layers import Key, key_of, without
from onnxdecomp.search.knapsack import Option, OutOfReach, allocate
from onnxdecomp.search.plan import Choice, Cost, Plan
from onnxdecomp.search.search_record import CandidateRecord, LayerCandidates, SearchRecord


def tighter(plan: Plan, search: SearchRecord, share: float, reason: str) -> Plan:
    """The plan of least cost whose expected loss is at most this share of the plan's.

    Only layers that the plan decomposes are: with higher ranks, or put back where that is worth more. Where
    no loss was expected at all the half that changes its weights most is put back.

    Args:
        plan: What the search found, perhaps with layers put back since.
        search: The search's record.
        share: Above 0, below 1.
        reason: Why layers are put back.
    """
    layers = {(layer.graph, layer.layer): layer for layer in search.layers}
    done = [choice for choice in plan.decomposed if key_of(choice) in layers]
    options = [_options(choice, layers[key_of(choice)]) for choice in done]
    now = [_current(choice, layers[key_of(choice)]) for choice in done]
    loss = sum(candidate.output_loss for candidate in now if candidate is not None)
    if not loss > 0 or len(done) < len(plan.decomposed) or None in now:
        return without(plan, _worst_half(plan, now), reason)
    macs = sum(choice.before.macs for choice in done if choice.before) or 1
    params = sum(choice.before.params for choice in done if choice.before) or 1
    items = []
    for choice, own in zip(done, options, strict=True):
        dense = choice.before or Cost(0, 0)
        part = layers[key_of(choice)].part
        kept = Option((0.0,), _cost(part, dense.macs / macs, dense.params / params))
        items.append(
            [kept] + [Option((c.output_loss,), _cost(c.part, c.macs / macs, c.params / params)) for c in own]
        )
    found = allocate(items, [share * loss], fixed=[0.0])
    if isinstance(found, OutOfReach):  # keeping all is always within
        return without(plan, {key_of(choice) for choice in plan.decomposed}, reason)
    picked = {
        key_of(choice): own[index - 1] if index else None
        for choice, own, index in zip(done, options, found.choice, strict=True)
    }
    back = without(plan, {key for key, candidate in picked.items() if candidate is None}, reason)
    return replace(back, choices=tuple(_with(choice, picked.get(key_of(choice))) for choice in back.choices))


def _options(choice: Choice, layer: LayerCandidates) -> list[CandidateRecord]:
    """The candidates that lose no more than the one that was chosen."""
    current = _current(choice, layer)
    most = float("inf") if current is None else current.output_loss
    return [candidate for candidate in layer.candidates if candidate.output_loss <= most]


def _current(choice: Choice, layer: LayerCandidates) -> CandidateRecord | None:
    chosen = (choice.method, choice.ranks)
    return next((c for c in layer.candidates if (c.method, c.ranks) == chosen), None)


def _cost(part: float | None, macs: float, params: float) -> float:
    """What is made small: the share of the latency where it is known, of the MACs where it is not.

    The parameters tell apart what is alike, and stand for what has no MACs.
    """
    return (macs if part is None else part) + 1e-3 * params


def _worst_half(plan: Plan, now: Collection[CandidateRecord | None]) -> set[Key]:
    """The half of the layers of which most is lost, each by itself."""
    losses = {
        key_of(choice): candidate.loss
        for choice, candidate in zip(plan.decomposed, now, strict=False)
        if candidate is not None
    }
    ordered = sorted(map(key_of, plan.decomposed), key=lambda key: -losses.get(key, 1.0))
    return set(ordered[: max(1, len(ordered) // 2)])


def _with(choice: Choice, candidate: CandidateRecord | None) -> Choice:
    """The choice with a candidate's ranks in place of its own."""
    if candidate is None or choice.method is None:
        return choice
    return replace(
        choice,
        method=candidate.method,
        options=dict(candidate.options),
        ranks=candidate.ranks,
        after=Cost(candidate.params, candidate.macs),
    )
