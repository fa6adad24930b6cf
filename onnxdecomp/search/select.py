"""The search: the plan that loses least within budgets, or costs least within a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnxdecomp.layers.adapter import Skip
from onnxdecomp.search.candidates import Candidate
from onnxdecomp.search.fixed_ranks import method_options
from onnxdecomp.search.keep_layers import BETTER_KEPT
from onnxdecomp.search.knapsack import Allocation, Option, OutOfReach
from onnxdecomp.search.layer_profiles import LayerProfile, LayerProfiles
from onnxdecomp.search.metrics.base import CostMetric, Sizes
from onnxdecomp.search.metrics.costs import Latency, Macs
from onnxdecomp.search.plan import Choice, Plan, kept
from onnxdecomp.search.sibling_choice import agreed, allocate_agreeing
from onnxdecomp.search.targets import Budget
from onnxdecomp.search.tied_layers import Pick, ways


@dataclass(frozen=True, eq=False)
class Chosen:
    """A plan and how it came about.

    Attributes:
        plan: The decision for every layer.
        loss: The squared relative error of the output that is expected of it, layers added up.
        bound: No plan of these candidates within the budgets loses less (or, where the loss is the budget,
            costs less).
        gap: How far above the bound this one is.
        latency: Expected latency over the original's; None where nothing was timed.
        measured: The same measured, with factors of noise in the whole model; None where not done.
        size: Expected bytes of the file; None where they are no budget.
    """

    plan: Plan
    loss: float
    bound: float
    gap: float
    latency: float | None
    measured: float | None = None
    size: float | None = None


def choose(
    profiles: LayerProfiles,
    skips: Sequence[Skip],
    budgets: Sequence[Budget],
    *,
    sizes: Sizes | None = None,
    max_loss: float | None = None,
    correction: float = 1.0,
) -> Chosen | OutOfReach:
    """One candidate, or none, for every layer.

    Args:
        profiles: The layers, weighed.
        skips: Operators that could not be read; the plan names them.
        budgets: On MACs, parameters, bytes or latency.
        sizes: Of files, where they are a budget.
        max_loss: With it the loss is limited too, and what is least is the latency where that was
            measured, else the MACs.
        correction: Measured latency over expected latency, of a plan like the one that is looked for.
    """
    entries = profiles.layers
    sizes = sizes or Sizes(0, 0)
    metrics = [budget.cost for budget in budgets]
    limits = [
        metric.adjusted(
            budget.allowed(metric.of_original(profiles, sizes)), correction=correction, sizes=sizes
        )
        for budget, metric in zip(budgets, metrics, strict=True)
    ]
    objective = Latency() if any(entry.part for entry in entries) else Macs()
    decisions = ways(profiles)
    losses = [entry.losses() for entry in entries]

    def cost(way: Sequence[Pick], metric: CostMetric) -> float:
        return sum(metric.of_layer(entries[pick.place], pick, profiles, sizes) for pick in way)

    def option(way: Sequence[Pick]) -> Option:
        loss = sum(0.0 if p.candidate is None else losses[p.place][p.candidate] for p in way)
        costs = tuple(cost(way, metric) for metric in metrics)
        if max_loss is None:
            return Option(costs, loss)
        return Option((loss, *costs), cost(way, objective))

    # What no layer has: of the file beside the weights, of the latency beside the layers.
    fixed = [
        metric.of_simplified(profiles, sizes) - sum(cost(own[0], metric) for own in decisions)
        for metric in metrics
    ]
    items = [[option(way) for way in own] for own in decisions]
    agreements = agreed(profiles, decisions)
    if max_loss is not None:
        lossy = [0.0, *(max(0.0, f) for f in fixed)]
        found = allocate_agreeing(items, agreements, [max_loss, *limits], fixed=lossy)
    else:
        found = allocate_agreeing(items, agreements, limits, fixed=[max(0.0, f) for f in fixed])
    if isinstance(found, OutOfReach):
        return found
    picked = [way for own, index in zip(decisions, found.choice, strict=True) for way in own[index]]
    chosen = _chosen(profiles, skips, found, {pick.place: pick.candidate for pick in picked}, max_loss)
    taken = found.costs[-len(metrics) :] if metrics else ()
    sizes_taken = (cost for cost, metric in zip(taken, metrics, strict=True) if metric.filed)
    return replace(chosen, size=next(sizes_taken, None))


def with_reason(chosen: Chosen, profiles: LayerProfiles, reason: str) -> Chosen:
    """The same where the layers that could have been decomposed and were not are kept for this reason."""
    could = {
        (entry.match.layer.graph, entry.match.layer.name) for entry in profiles.layers if entry.candidates
    }

    def told(choice: Choice) -> Choice:
        stays = choice.method is None and (choice.graph, choice.layer) in could
        return replace(choice, reason=reason) if stays else choice

    plan = replace(chosen.plan, choices=tuple(told(choice) for choice in chosen.plan.choices))
    return replace(chosen, plan=plan)


def _why_kept(entry: LayerProfile, max_loss: float | None, *, alone: bool) -> str:
    """Why a layer stays that could have been decomposed.

    Args:
        entry: The layer.
        max_loss: What all layers together may lose, or None where budgets on costs decide.
        alone: Whether other layers stay as well.
    """
    if entry.reason:
        return entry.reason
    if not entry.candidates:
        return "no candidate saves enough to be weighed"
    if max_loss is None:
        if alone:
            return "the target is met with every layer as it is"
        return f"{BETTER_KEPT}other layers save as much at less loss"
    if min(entry.losses()) > max_loss:
        return "every candidate is expected to lose more than may be lost"
    if alone:
        return "no candidate gains anything within what may be lost"
    return f"{BETTER_KEPT}other layers gain more for the same loss"


def _chosen(
    profiles: LayerProfiles,
    skips: Sequence[Skip],
    found: Allocation,
    candidates: Mapping[int, int | None],
    max_loss: float | None,
) -> Chosen:
    entries = profiles.layers
    nothing = not any(found.choice)
    choices, loss, latency = [], 0.0, 1.0
    for place, entry in enumerate(entries):
        picked = candidates[place]
        reason = _why_kept(entry, max_loss, alone=nothing) if picked is None else ""
        candidate = None if picked is None else entry.candidates[picked]
        first = entries[candidate.group[0]].match.layer.name if candidate and candidate.group else ""
        choices.append(replace(_choice(entry, candidate, reason), group=first))
        if picked is not None:
            loss += entry.losses()[picked]
            latency += (entry.parts[picked] if entry.parts else entry.part) - entry.part
    skipped = [Choice(skip.name, skip.graph, skip.op_type, reason=skip.reason) for skip in skips]
    timed = any(entry.part for entry in entries)
    whole = profiles.whole_ms / profiles.original_ms if profiles.original_ms else 1.0
    return Chosen(
        Plan((*choices, *skipped)), loss, found.bound, found.gap, latency * whole if timed else None
    )


def _choice(entry: LayerProfile, candidate: Candidate | None, reason: str) -> Choice:
    layer = entry.match.layer
    if candidate is None:
        return replace(kept(layer, entry.dense, reason), fixed=entry.fixed)
    outline = candidate.outline
    return replace(
        kept(layer, entry.dense),
        method=outline.method.name,
        options=method_options(outline.method),
        ranks=outline.ranks,
        after=outline.cost,
    )
