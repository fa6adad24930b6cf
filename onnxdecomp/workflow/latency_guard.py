"""Never slower: what does not pay in the whole model is put back, until the whole pays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from onnxdecomp.core.names import some
from onnxdecomp.evaluate import benchmark
from onnxdecomp.evaluate.benchmark import BenchResult
from onnxdecomp.evaluate.timing_verdict import Finding
from onnxdecomp.graph.save import save
from onnxdecomp.latency.meter import LatencyMeter
from onnxdecomp.pipeline.pipeline import PipelineResult
from onnxdecomp.record.schema.reading import recorded
from onnxdecomp.record.schema.timing import DecidingTiming, Interval
from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.deadline import APPLY, passed
from onnxdecomp.runtime.timing import Ratio
from onnxdecomp.search.keep_layers import Key, changes_of, key_of, nothing_of, without
from onnxdecomp.search.plan import Choice, Cost, Cut, Plan
from onnxdecomp.search.search_record import SearchRecord, chosen_candidate, level_of

_ROUNDS = 3
"""Times that half of the layers are put back, before all are."""

_ORIGINAL, _QUANTIZED = "the original's time", "the time of the original quantized"


@dataclass(frozen=True, eq=False)
class TimedResult:
    """The result that is not slower than the original.

    Attributes:
        ran: The pipeline's result; of no rewritten layer where nothing pays.
        plan: What was carried out.
        search: The record of the search that found the plan, or None.
        said: What that search has said, a sentence each.
        timed: The timing that shows it, or None where nothing is left to time.
        notes: What was put back, and what was kept without being sure.
        looks: What was timed on the way.
    """

    ran: PipelineResult
    plan: Plan
    search: SearchRecord | None = None
    said: tuple[str, ...] = ()
    timed: BenchResult | None = None
    notes: tuple[str, ...] = ()
    looks: tuple[DecidingTiming, ...] = ()


def guard_latency(
    ran: PipelineResult,
    again: Callable[[Plan | None, bool], PipelineResult],
    meter: LatencyMeter,
    *,
    enabled: bool,
    before: TimedResult | None = None,
    alone_took: Ratio | None = None,
) -> TimedResult:
    """Time the result against the original, and undo what does not pay.

    Of a result that was quantized, quantization alone must be faster than the original, or it is undone;
    and with layers decomposed it must be faster than without, or they are put back.

    Args:
        ran: What the pipeline made of the original.
        again: Runs the pipeline with another plan, quantizing or not; with None it plans anew.
        meter: Times.
        enabled: Else the result is taken as it is.
        before: What this result was made in place of: the search that it goes back to is that one's.
        alone_took: The time of quantization alone over the original's, where the choice of its kind has
            measured it: it is not timed again then.
    """
    first = _of(ran)
    if first.search is None and before is not None:
        first = replace(first, search=before.search, said=before.said)
    if not enabled:
        return first if ran.precision else replace(first, notes=(*ran.unquantized, *first.notes))
    if not ran.precision:
        plain = _guard_layers(first, lambda plan: again(plan, False), meter, _ORIGINAL)
        return replace(plain, notes=(*ran.unquantized, *plain.notes))
    alone = again(nothing_of(first.plan), True) if ran.decomposed else ran
    timed = None if ran.decomposed and alone_took is not None else meter.time_model(alone.model)
    found = (
        Finding(alone_took, _ORIGINAL, meter.limit) if timed is None else _finding(timed, _ORIGINAL, meter)
    )
    looks = (_look("quantization", 0, found),)
    kind = ran.precision
    if not found.pays:
        note = f"not quantized, for {kind} alone {found.why} on {meter.provider}"
        if found.outcome == "undecided":
            note = f"not quantized, for whether {kind} alone is faster on {meter.provider} is {found.why}"
        # What pays in floating point is another question than the one that the plan answers.
        fresh = again(None, False)
        undone = _guard_layers(_of(fresh), lambda plan: again(plan, False), meter, _ORIGINAL)
        return replace(undone, notes=(note, *undone.notes), looks=(*looks, *undone.looks))
    notes = _kept_unsure(found, f"{kind} alone")
    if not ran.decomposed:
        return replace(first, timed=timed, notes=notes, looks=looks)
    with temporary_files.folder() as folder:
        file = folder / "quantized.onnx"
        save(alone.model, file)
        chosen = _guard_layers(first, lambda plan: again(plan, True), meter.against(file), _QUANTIZED)
    gain = None if chosen.timed is None else chosen.timed.settings[0].models[1].ratio
    facts = {name: {"gain": benchmark.speedup(gain)} for name in chosen.ran.precisions}
    record = {name: {**own, **facts.get(name, {})} for name, own in chosen.ran.record.items()}
    return replace(
        chosen,
        ran=replace(chosen.ran, record=record),
        timed=None,  # what it was timed against is not the original
        notes=(*notes, *chosen.notes),
        looks=(*looks, *chosen.looks),
    )


def _of(ran: PipelineResult) -> TimedResult:
    """A result as it is, with its plan, and the search for that where it was not given."""
    return TimedResult(ran, ran.plan or Plan(()), ran.search, ran.search_notes)


def _guard_layers(
    chosen: TimedResult, again: Callable[[Plan], PipelineResult], meter: LatencyMeter, against: str
) -> TimedResult:
    """Put layers back until the result is faster than what the meter compares it with."""
    gains = _gains(chosen.search, chosen.plan)
    for left in reversed(range(_ROUNDS + 1)):
        if not chosen.ran.decomposed:
            break
        timed = meter.time_model(chosen.ran.model)
        found = _finding(timed, against, meter)
        looks = (*chosen.looks, _look("layers", len(changes_of(chosen.plan)), found))
        if found.pays:
            notes = (*chosen.notes, *_kept_unsure(found, "the result"))
            return replace(chosen, timed=timed, notes=notes, looks=looks)
        everything = left == 0 or passed(meter.deadline, APPLY)
        worst = _worst(chosen.plan, gains, everything=everything)
        names = some([key_of(choice)[1] for choice in worst])
        if found.outcome == "undecided":
            reason = f"not shown to pay on {meter.provider}: with it {found.why}"
            note = f"put back, for whether the model is faster with them is {found.why}: {names}"
        else:
            reason = f"does not pay on {meter.provider}: with it the model {found.why}"
            note = f"put back, for with them the model {found.why}: {names}"
        plan = without(chosen.plan, {key_of(choice) for choice in worst}, reason)
        ran = again(plan)
        chosen = replace(chosen, ran=ran, plan=_of(ran).plan, notes=(*chosen.notes, note), looks=looks)
    return replace(chosen, timed=None)


def _finding(timed: BenchResult, against: str, meter: LatencyMeter) -> Finding:
    return Finding(timed.settings[0].models[1].ratio, against, meter.limit)


def _look(what: Literal["layers", "quantization"], decomposed: int, found: Finding) -> DecidingTiming:
    return DecidingTiming(
        what=what,
        decomposed=decomposed,
        outcome=found.outcome,
        pays=found.pays,
        against=found.against,
        ratio=None if found.ratio is None else recorded(Interval, found.ratio),
        limit_s=found.limit,
    )


def _kept_unsure(found: Finding, what: str) -> tuple[str, ...]:
    """What is said of something that is kept although it is undecided whether it is faster."""
    if found.outcome != "undecided" or found.ratio is None:
        return ()
    return (
        f"whether {what} is faster is {found.why}; it is kept, for the middle, {found.ratio.value:.2f}, "
        "is a gain",
    )


def _worst(plan: Plan, gains: Mapping[Key, float], *, everything: bool) -> list[Choice | Cut]:
    """The half of what a plan does that gains least, or all."""
    ordered = sorted(changes_of(plan), key=lambda choice: gains.get(key_of(choice), _saved(choice)))
    return ordered if everything else ordered[: max(1, len(ordered) // 2)]


def _saved(choice: Choice | Cut) -> float:
    """The MACs that a layer or channel saves, made small: what it gains where nothing was timed."""
    before, after = choice.before or Cost(0, 0), choice.after or Cost(0, 0)
    return (before.macs - after.macs) * 1e-12


def _gains(search: SearchRecord | None, plan: Plan) -> dict[Key, float]:
    """What each layer and channel was expected to take off the model's latency with what the plan has."""
    if search is None:
        return {}
    groups, gains = _groups(plan), dict[Key, float]()
    layers = {(layer.graph, layer.layer): layer for layer in search.layers}
    for choice in plan.decomposed:
        if (layer := layers.get(key_of(choice))) is not None:
            candidate = chosen_candidate(choice, layer, groups.get(key_of(choice)))
            if candidate is not None and layer.part is not None and candidate.part is not None:
                gains[key_of(choice)] = layer.part - candidate.part
    channels = {channel.channel: channel for channel in search.channels or ()}
    for cut in plan.cuts:
        level = level_of(cut, channels.values())
        whole = None if level is None else channels[cut.channel].levels[0].part
        if level is not None and whole is not None and level.part is not None:
            gains[key_of(cut)] = whole - level.part
    return gains | _evened(gains, groups)


def _groups(plan: Plan) -> dict[Key, tuple[str, ...]]:
    """The names of the layers that siblings are decomposed with, of each of them."""
    found: dict[Key, list[str]] = {}
    grouped = [choice for choice in plan.decomposed if choice.group]
    for choice in grouped:
        found.setdefault((choice.graph, choice.group), []).append(choice.layer)
    return {key_of(choice): tuple(found[choice.graph, choice.group]) for choice in grouped}


def _evened(gains: Mapping[Key, float], groups: Mapping[Key, tuple[str, ...]]) -> dict[Key, float]:
    """The gains of siblings, to whose first one alone the cost of what they have in common was counted."""
    found = {}
    for graph, layer in gains:
        if names := groups.get((graph, layer)):
            found[graph, layer] = sum(gains.get((graph, name), 0.0) for name in names) / len(names)
    return found
