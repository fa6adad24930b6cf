"""A plan that is expected to lose less, from the record of a search: nothing is weighed anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxdecomp.search.keep_layers import Key, changes_of, key_of, without
from onnxdecomp.search.knapsack import Option, OutOfReach, allocate
from onnxdecomp.search.plan import Choice, Cost, Cut, Plan
from onnxdecomp.search.search_record import (
    CandidateRecord,
    ChannelLevels,
    LayerCandidates,
    LevelRecord,
    SearchRecord,
    chosen_candidate,
    level_of,
)


def tighter(plan: Plan, search: SearchRecord, share: float, reason: str) -> Plan:
    """The plan of least cost whose expected loss is at most this share of the plan's.

    Only layers that the plan decomposes are: with higher ranks, or put back where that is worth more, and
    channels that it cuts keep more units, or all. Where no loss was expected at all the half that changes its
    weights most is put back.

    Args:
        plan: What the search found, perhaps with layers put back since.
        search: The search's record.
        share: Above 0, below 1.
        reason: Why layers and channels are put back.
    """
    layers = {(layer.graph, layer.layer): layer for layer in search.layers}
    channels = {channel.channel: channel for channel in search.channels or ()}
    done = [choice for choice in plan.decomposed if key_of(choice) in layers]
    cuts = [cut for cut in plan.cuts if level_of(cut, channels.values()) is not None]
    groups = {key_of(choice): tuple(c.layer for c in unit) for unit in _units(done) for choice in unit}
    now = {
        key_of(choice): _current(choice, layers[key_of(choice)], groups[key_of(choice)]) for choice in done
    }
    widths = {key_of(cut): level_of(cut, channels.values()) for cut in cuts}
    loss = sum(own.output_loss for own in (*now.values(), *widths.values()) if own is not None)
    if not loss > 0 or len(done) + len(cuts) < len(changes_of(plan)) or None in now.values():
        return without(plan, _worst_half(plan, {**now, **widths}), reason)
    befores = [own.before for own in done if own.before] + [cut.before for cut in cuts if cut.before]
    macs = sum(cost.macs for cost in befores) or 1
    params = sum(cost.params for cost in befores) or 1

    def price(parts: Sequence[float | None], costs: Sequence[Cost]) -> float:
        shares = zip(parts, costs, strict=True)
        return sum(_cost(part, cost.macs / macs, cost.params / params) for part, cost in shares)

    items, ways = [], []
    for unit in _units(done):
        own = [(choice, layers[key_of(choice)]) for choice in unit]
        options = _options(own)
        kept = price([layer.part for _, layer in own], [choice.before or Cost(0, 0) for choice in unit])
        taken = [price([c.part for c in way], [Cost(c.params, c.macs) for c in way]) for way in options]
        lost = [sum(candidate.output_loss for candidate in way) for way in options]
        items.append([Option((0.0,), kept), *map(Option, [(loss,) for loss in lost], taken)])
        ways.append((unit, options))
    wider = [_wider(cut, channels[cut.channel]) for cut in cuts]
    items += [
        [Option((one.output_loss,), price([one.part], [Cost(one.params, one.macs)])) for one in own]
        for own in wider
    ]
    found = allocate(items, [share * loss], fixed=[0.0])
    if isinstance(found, OutOfReach):  # keeping all is always within
        return without(plan, {key_of(change) for change in changes_of(plan)}, reason)
    picked: dict[Key, CandidateRecord | None] = {}
    for (unit, options), index in zip(ways, found.choice, strict=False):
        way = options[index - 1] if index else (None,) * len(unit)
        picked |= {key_of(choice): candidate for choice, candidate in zip(unit, way, strict=True)}
    levels = zip(cuts, wider, found.choice[len(ways) :], strict=True)
    left = {key_of(cut): own[index].kept for cut, own, index in levels}
    whole = {key_of(cut) for cut in cuts if left[key_of(cut)] == cut.width}
    back = without(plan, whole | {key for key, candidate in picked.items() if candidate is None}, reason)
    return replace(
        back,
        choices=tuple(_with(choice, picked.get(key_of(choice))) for choice in back.choices),
        channels=tuple(_widened(cut, left.get(key_of(cut)), channels) for cut in back.channels),
    )


def _wider(cut: Cut, channel: ChannelLevels) -> list[LevelRecord]:
    """The widths from the one that was chosen on; the first is the channel's own."""
    return [level for level in channel.levels if level.kept >= cut.kept]


def _widened(cut: Cut, kept: int | None, channels: Mapping[str, ChannelLevels]) -> Cut:
    """The cut with so many units left."""
    if cut.method is None or kept is None:
        return cut
    level = next(own for own in channels[cut.channel].levels if own.kept == kept)
    return replace(cut, kept=kept, after=Cost(level.params, level.macs))


def _units(done: Sequence[Choice]) -> list[list[Choice]]:
    """The choices, those of a group of siblings together."""
    units: dict[tuple[str, str, str], list[Choice]] = {}
    for choice in done:
        own = (choice.graph, choice.group, "" if choice.group else choice.layer)
        units.setdefault(own, []).append(choice)
    return list(units.values())


def _options(unit: Sequence[tuple[Choice, LayerCandidates]]) -> list[tuple[CandidateRecord, ...]]:
    """The candidates of a layer, or of siblings at one rank, that lose no more than what was chosen."""
    names = tuple(choice.layer for choice, _ in unit)
    current = [_current(choice, layer, names) for choice, layer in unit]
    most = sum(math.inf if candidate is None else candidate.output_loss for candidate in current)
    group = names if unit[0][0].group else None
    own = [[c for c in layer.candidates if c.group == group] for _, layer in unit]
    ways = zip(*own, strict=True)  # siblings were weighed at the same ranks
    return [way for way in ways if sum(candidate.output_loss for candidate in way) <= most]


def _current(choice: Choice, layer: LayerCandidates, unit: tuple[str, ...]) -> CandidateRecord | None:
    """The candidate that was chosen, which of siblings is that of these layers."""
    return chosen_candidate(choice, layer, unit if choice.group else None)


def _cost(part: float | None, macs: float, params: float) -> float:
    """What is made small: the share of the latency where it is known, of the MACs where it is not.

    The parameters tell apart what is alike, and stand for what has no MACs.
    """
    return (macs if part is None else part) + 1e-3 * params


def _worst_half(plan: Plan, now: Mapping[Key, CandidateRecord | LevelRecord | None]) -> set[Key]:
    """The half of the changes by which most is lost, each by itself."""
    losses = {key: own.loss for key, own in now.items() if own is not None}
    ordered = sorted(map(key_of, changes_of(plan)), key=lambda key: -losses.get(key, 1.0))
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
