"""Never slower: what does not pay in the whole model is put back, until the whole pays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onnxdecomp import benchmark
from onnxdecomp.benchmark import BenchResult
from onnxdecomp.graph.save import save
from onnxdecomp.pipeline import PipelineResult
from onnxdecomp.plan.plan import Choice, Cost, Plan
from onnxdecomp.watch import Watch

_ROUNDS = 3
"""Times that half of the layers are put back, before all are."""


@dataclass(frozen=True, eq=False)
class Settled:
    """The result that is not slower than the original.

    Attributes:
        ran: The pipeline's result; of no rewritten layer where nothing pays.
        plan: What was carried out.
        timed: The timing that shows it, or None where nothing is left to time.
        notes: What was put back.
    """

    ran: PipelineResult
    plan: Plan
    timed: BenchResult | None
    notes: tuple[str, ...]


def settle(
    ran: PipelineResult, again: Callable[[Plan | None, bool], PipelineResult], watch: Watch, *, enabled: bool
) -> Settled:
    """Time the result against the original, and undo what does not pay.

    Of a result that was quantized, quantization alone must be faster than the original, or it is undone;
    and with layers decomposed it must be faster than without, or they are put back.

    Args:
        ran: What the pipeline made of the original.
        again: Runs the pipeline with another plan, quantizing or not; with None it plans anew.
        watch: Times.
        enabled: Else the result is taken as it is.
    """
    plan = _plan_of(ran)
    if not enabled:
        return Settled(ran, plan, None, ())
    if not is_quantized(ran):
        return _settle_layers(ran, lambda plan: again(plan, False), watch, "the original's time")
    alone = again(_nothing_of(plan), True) if ran.rewritten else ran
    timed = watch.time_model(alone.model)
    ratio = timed.settings[0].models[1].ratio
    if ratio is None or ratio.high >= 1:
        kind = ran.record.get("quantize", {}).get("kind", "quantized")
        took = f"{ratio.value:.2f}x the original's time" if ratio else "no less than the original's time"
        note = f"not quantized, for {kind} alone takes {took} on {watch.provider}"
        # What pays in floating point is another question than the one that the plan answers.
        undone = _settle_layers(
            again(None, False), lambda plan: again(plan, False), watch, "the original's time"
        )
        return replace(undone, notes=(note, *undone.notes))
    if not ran.rewritten:
        return Settled(ran, plan, timed, ())
    with tempfile.TemporaryDirectory(prefix="onnxdecomp-") as folder:
        file = Path(folder) / "quantized.onnx"
        save(alone.model, file)
        against = watch.against(file)
        found = _settle_layers(
            ran, lambda plan: again(plan, True), against, "the time of the original quantized"
        )
    gain = None if found.timed is None else found.timed.settings[0].models[1].ratio
    facts = {**found.ran.record.get("quantize", {}), "gain": benchmark.speedup(gain)}
    record = {**found.ran.record, "quantize": facts}
    # What it was timed against is not the original.
    return replace(found, ran=replace(found.ran, record=record), timed=None)


def is_quantized(ran: PipelineResult) -> bool:
    """Whether the pipeline quantized the model."""
    return "quantize" in ran.modified


def _settle_layers(
    ran: PipelineResult, again: Callable[[Plan], PipelineResult], watch: Watch, against: str
) -> Settled:
    """Put layers back until the result is faster than what the watch compares it with."""
    plan = _plan_of(ran)
    gains = _gains(ran.record.get("decompose", {}).get("search"))
    notes: list[str] = []
    for left in reversed(range(_ROUNDS + 1)):
        if not ran.rewritten:
            break
        timed = watch.time_model(ran.model)
        ratio = timed.settings[0].models[1].ratio
        if ratio is not None and ratio.high < 1:
            return Settled(ran, plan, timed, tuple(notes))
        took = f"{ratio.value:.2f}x {against}" if ratio else f"no less than {against}"
        reason = f"does not pay on {watch.provider}: with it the model took {took}"
        plan, put_back = _put_back(plan, gains, reason, everything=left == 0)
        notes.append(f"put back, for with them the model takes {took}: {', '.join(put_back)}")
        ran = again(plan)
    return Settled(ran, plan, None, tuple(notes))


def _plan_of(ran: PipelineResult) -> Plan:
    record = ran.record.get("decompose", {})
    return Plan.from_json(record.get("plan", {"version": 1, "choices": []}))  # type: ignore[arg-type]


def _nothing_of(plan: Plan) -> Plan:
    return _put_back(plan, {}, "", everything=True)[0]


def _put_back(
    plan: Plan, gains: Mapping[tuple[str, str], float], reason: str, *, everything: bool
) -> tuple[Plan, list[str]]:
    """The plan without the half of its layers that gain least."""
    ordered = sorted(
        plan.decomposed, key=lambda choice: gains.get((choice.graph, choice.layer), _saved(choice))
    )
    worst = ordered if everything else ordered[: max(1, len(ordered) // 2)]
    names = {(choice.graph, choice.layer) for choice in worst}

    def kept(choice: Choice) -> Choice:
        if (choice.graph, choice.layer) not in names:
            return choice
        return replace(choice, method=None, options={}, ranks=(), reason=reason, after=None)

    choices = tuple(kept(choice) for choice in plan.choices)
    return replace(plan, choices=choices), [choice.layer for choice in worst]


def _saved(choice: Choice) -> float:
    """The share of MACs that a layer saves: what it gains where nothing was timed."""
    before, after = choice.before or Cost(0, 0), choice.after or Cost(0, 0)
    return (before.macs - after.macs) * 1e-12


def _gains(search: object) -> dict[tuple[str, str], float]:
    """What each layer was expected to take off the model's latency, at best."""
    gains: dict[tuple[str, str], float] = {}
    for layer in search.get("layers", []) if isinstance(search, Mapping) else []:
        parts = [candidate["part"] for candidate in layer["candidates"] if candidate["part"] is not None]
        if layer["part"] is not None and parts:
            gains[layer["graph"], layer["layer"]] = layer["part"] - min(parts)
    return gains
