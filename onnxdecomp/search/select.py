"""The search: the plan that loses least within budgets, or costs least within a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxdecomp.layers.adapter import Skip
from onnxdecomp.search.candidates import Candidate, dense_cost
from onnxdecomp.search.channel_costs import behind_cuts, narrowed_layers
from onnxdecomp.search.channel_profiles import ChannelProfile
from onnxdecomp.search.fixed_ranks import method_options
from onnxdecomp.search.joint_choice import Table, allocate_jointly
from onnxdecomp.search.joint_options import JointOptions, Measure, joint_options
from onnxdecomp.search.keep_layers import BETTER_KEPT, key_of
from onnxdecomp.search.knapsack import SLACK, Allocation, Option, OutOfReach
from onnxdecomp.search.layer_profiles import LayerProfile, LayerProfiles
from onnxdecomp.search.metrics.base import Sizes
from onnxdecomp.search.metrics.costs import Latency, Macs, Smallest
from onnxdecomp.search.plan import Choice, Cost, Cut, Plan, choice_of, kept
from onnxdecomp.search.plan_options import Objective
from onnxdecomp.search.sibling_choice import agreed, agreement_tables, allocate_agreeing
from onnxdecomp.search.targets import Budget

_TRIES = 4
"""Times that a choice is made anew that costs more than was expected of it."""


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
        stored: Expected bytes of the layers over the original's; None where they are not what is least.
    """

    plan: Plan
    loss: float
    bound: float
    gap: float
    latency: float | None
    measured: float | None = None
    size: float | None = None
    stored: float | None = None


def choose(
    profiles: LayerProfiles,
    skips: Sequence[Skip],
    budgets: Sequence[Budget],
    *,
    sizes: Sizes | None = None,
    max_loss: float | None = None,
    correction: float = 1.0,
    options: JointOptions | None = None,
    objective: Objective = "latency",
) -> Chosen | OutOfReach:
    """One candidate, or none, for every layer, and a width for every channel.

    Args:
        profiles: The layers, weighed.
        skips: Operators that could not be read; the plan names them.
        budgets: On MACs, parameters, bytes or latency.
        sizes: Of files, where they are a budget.
        max_loss: With it the loss is limited too, and the objective is least.
        correction: Measured latency over expected latency, of a plan like the one that is looked for.
        options: Those of these profiles, where they are known already.
        objective: Latency where it was measured, else MACs; or the bytes of the layers.
    """
    sizes = sizes or Sizes(0, 0)
    metrics = [budget.cost for budget in budgets]
    limits = [
        metric.adjusted(
            budget.allowed(metric.of_original(profiles, sizes)), correction=correction, sizes=sizes
        )
        for budget, metric in zip(budgets, metrics, strict=True)
    ]
    light = objective == "size"
    timed = objective == "latency" and any(entry.part for entry in profiles.layers)
    least = Smallest() if light else Latency() if timed else Macs()
    measures: list[Measure] = [
        partial(metric.of_layer, profiles=profiles, sizes=sizes) for metric in (*metrics, least)
    ]
    options = options or joint_options(profiles)
    # What no layer has: of the file beside the weights, of the latency beside the layers.
    fixed = [
        max(0.0, metric.of_simplified(profiles, sizes) - options.as_it_is(measure))
        for metric, measure in zip(metrics, measures, strict=False)
    ]
    if max_loss is None:
        tables, before = options.tables(measures[:-1]), []
    else:
        tables, before = [_turned(table) for table in options.tables(measures)], [max_loss]
    found = _within(options, tables, before, limits, fixed, measures[:-1])
    if isinstance(found, OutOfReach):
        return found
    chosen = _chosen(options, skips, found, max_loss)
    taken = found.costs[-len(metrics) :] if metrics else ()
    sizes_taken = (cost for cost, metric in zip(taken, metrics, strict=True) if metric.filed)
    stored = None
    if light and max_loss is not None:
        (left,) = _counted(options, found, measures[-1:], [0.0])
        stored = left / max(1.0, options.as_it_is(measures[-1]))
    return replace(chosen, size=next(sizes_taken, None), stored=stored)


def _within(
    options: JointOptions,
    tables: Sequence[Table],
    before: Sequence[float],
    limits: Sequence[float],
    fixed: Sequence[float],
    measures: Sequence[Measure],
) -> Allocation | OutOfReach:
    """The choice whose costs, counted, are within the limits; `before` are limits that come before these."""
    wanted, rest = limits, [*(0.0 for _ in before), *fixed]
    found = _allocated(options, tables, [*before, *wanted], rest)
    for _ in range(_TRIES):
        if isinstance(found, OutOfReach) or not options.channels:
            break
        counted = _counted(options, found, measures, fixed)
        over = [max(0.0, cost - limit * (1 + SLACK)) for cost, limit in zip(counted, limits, strict=True)]
        if not any(over):
            break
        # Between some widths the cost of chains is interpolated.
        wanted = [limit - 1.01 * excess for limit, excess in zip(wanted, over, strict=True)]
        found = _allocated(options, tables, [*before, *wanted], rest)
    return found


def _counted(
    options: JointOptions, found: Allocation, measures: Sequence[Measure], fixed: Sequence[float]
) -> list[float]:
    """What a choice costs in each budget."""
    picks, levels = options.picked(found.choice)
    held = [options.exactly(pick, levels) for pick in picks]
    return [
        rest + sum(float(measure(one)) for one in held) for rest, measure in zip(fixed, measures, strict=True)
    ]


def _turned(table: Table) -> Table:
    """The table with its loss as the first cost, and its last cost as what is least."""
    together = np.isfinite(table.loss)
    loss = np.where(together, table.loss, 0.0)
    cost = np.concatenate([loss[..., None], table.cost[..., :-1]], axis=-1)
    return Table(table.variables, cost, np.where(together, table.cost[..., -1], np.inf))


def _allocated(
    options: JointOptions, tables: Sequence[Table], limits: Sequence[float], fixed: Sequence[float]
) -> Allocation | OutOfReach:
    agreements = agreed(options.profiles, options.decisions)
    if not options.channels:
        items = [
            [Option(tuple(cost), loss) for cost, loss in zip(t.cost.tolist(), t.loss.tolist(), strict=True)]
            for t in tables
        ]
        return allocate_agreeing(items, agreements, limits, fixed=fixed)
    states = [*options.states, *(agreement.count for agreement in agreements)]
    groups = agreement_tables(agreements, len(options.states), len(limits))
    return allocate_jointly(states, [*tables, *groups], limits, fixed=fixed, rounds=options.rounds)


def with_reason(chosen: Chosen, profiles: LayerProfiles, reason: str) -> Chosen:
    """The same where the layers that could have been decomposed and were not are kept for this reason."""
    could = {
        (entry.match.layer.graph, entry.match.layer.name) for entry in profiles.layers if entry.candidates
    }
    narrower = {entry.channel.name for entry in profiles.channels if not entry.reason}

    def told(choice: Choice) -> Choice:
        stays = choice.method is None and (choice.graph, choice.layer) in could
        return replace(choice, reason=reason) if stays else choice

    def whole(cut: Cut) -> Cut:
        return replace(cut, reason=reason) if cut.method is None and cut.channel in narrower else cut

    plan = chosen.plan
    choices, channels = tuple(map(told, plan.choices)), tuple(map(whole, plan.channels))
    return replace(chosen, plan=replace(plan, choices=choices, channels=channels))


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
    return _why_better_kept(entry.losses(), max_loss, alone=alone)


def _why_better_kept(losses: Sequence[float], max_loss: float | None, *, alone: bool) -> str:
    if max_loss is None:
        if alone:
            return "the target is met with every layer as it is"
        return f"{BETTER_KEPT}other layers save as much at less loss"
    if min(losses) > max_loss:
        return "every candidate is expected to lose more than may be lost"
    if alone:
        return "no candidate gains anything within what may be lost"
    return f"{BETTER_KEPT}other layers gain more for the same loss"


def _chosen(
    options: JointOptions, skips: Sequence[Skip], found: Allocation, max_loss: float | None
) -> Chosen:
    profiles = options.profiles
    picks, levels = options.picked(found.choice)
    by_place = {pick.place: pick for pick in picks}
    nothing = not any(found.choice)
    smaller = narrowed_layers(
        [entry.match for entry in profiles.layers],
        [entry.channel for entry in options.channels],
        {entry.channel.name: entry.levels[level].kept for entry, level in levels.items()},
    )
    choices, loss, latency = [], 0.0, 1.0
    for place, entry in enumerate(profiles.layers):
        picked = by_place[place].candidate
        reason = _why_kept(entry, max_loss, alone=nothing) if picked is None else ""
        candidate = None if picked is None else entry.candidates[picked]
        group = candidate.group if candidate else ()
        first = profiles.layers[group[0]].match.layer.name if group else ""
        choice = replace(_choice(entry, candidate, reason), group=first)
        choices.append(behind_cuts(choice, smaller.get(key_of(choice))))
        now = options.exactly(by_place[place], levels)
        if picked is not None:
            loss += entry.losses()[picked]
        latency += float(now.part) - entry.part
    for channel, level in levels.items():
        loss += channel.losses()[level]
    cuts = tuple(
        _cut(options, entry, levels.get(entry, 0), max_loss, alone=nothing) for entry in profiles.channels
    )
    skipped = [choice_of(skip) for skip in skips]
    timed = any(entry.part for entry in profiles.layers)
    whole = profiles.whole_ms / profiles.original_ms if profiles.original_ms else 1.0
    plan = Plan((*choices, *skipped), channels=cuts)
    return Chosen(plan, loss, found.bound, found.gap, latency * whole if timed else None)


def _cut(
    options: JointOptions, entry: ChannelProfile, level: int, max_loss: float | None, *, alone: bool
) -> Cut:
    channel = entry.channel
    made, read = (
        tuple(end.match.layer.name for end in ends) for ends in (channel.producers, channel.readers)
    )
    narrow = [options.narrowed(place) for place in entry.extents]
    before, after = (
        [dense_cost(layer.layer([at if own is entry else 0 for own in layer.channels])) for layer in narrow]
        for at in (0, level)
    )
    whole = Cut(channel.name, None, channel.width, channel.width, made, read, before=_sum(before))
    if not level:
        return replace(whole, reason=_why_whole(entry, max_loss, alone=alone))
    return replace(whole, method=entry.method, kept=entry.levels[level].kept, after=_sum(after))


def _why_whole(entry: ChannelProfile, max_loss: float | None, *, alone: bool) -> str:
    """Why a channel stays as it is; see `_why_kept`."""
    if entry.reason:
        return entry.reason
    return _why_better_kept(entry.losses()[1:], max_loss, alone=alone)


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(cost.params for cost in costs), sum(cost.macs for cost in costs))


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
