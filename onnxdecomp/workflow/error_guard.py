"""A gate that is held: where a search chose the ranks, layers give way until the verification passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnxdecomp.core.names import some
from onnxdecomp.runtime.deadline import APPLY, passed
from onnxdecomp.search.keep_layers import changes_of, key_of, nothing_of
from onnxdecomp.search.plan import Choice, Plan
from onnxdecomp.search.plan_trials import QuantizedTooFarError
from onnxdecomp.search.targets import parse_budgets
from onnxdecomp.search.tighten import tighter
from onnxdecomp.workflow.finish_result import FinishedResult, Finisher
from onnxdecomp.workflow.latency_guard import TimedResult

if TYPE_CHECKING:
    from onnxdecomp.evaluate.verify import Verification
    from onnxdecomp.pipeline.pipeline import PipelineResult
    from onnxdecomp.record.schema.timing import DecidingTiming

_TRIES = 5
"""Plans that are tried after the first, before every layer is put back."""

_AIM = 0.92
"""Share of the error allowed that the next plan is to use up; the next but one that share of it, …"""


def first_run(
    run: Callable[[bool], PipelineResult], *, giving_up: bool
) -> tuple[PipelineResult, tuple[str, ...]]:
    """Run the pipeline, and without quantization where that alone passes the largest error.

    Args:
        run: Runs it, quantizing or not.
        giving_up: Whether quantization is given up where it loses too much; else that is an error.

    Returns:
        The result, and a note on what was given up.

    Raises:
        QuantizedTooFarError: It loses too much, and is not to be given up.
    """
    try:
        return run(True), ()
    except QuantizedTooFarError as failure:
        if not giving_up:
            raise
        what = "has an error of" if failure.of_error else "loses of the metric"
        note = f"not quantized, for that alone {what} {failure.used:.3g}, above {failure.limit:g}"
    return run(False), (note,)


def guard_error(ran: PipelineResult, finisher: Finisher, goal: str | None) -> FinishedResult:
    """Make the result ready; give layers higher ranks, or put them back, until the verification passes.

    How much less the next plan may lose follows from the error that was measured. If even quantization
    alone fails, it is undone, and the ranks are searched for anew. The last resort is the original. Where the
    finisher compares nothing yet the result is the first.

    Args:
        ran: What the search has made.
        finisher: Makes results ready.
        goal: The target; where it is one of cost it gives way too.
    """
    made = finisher.finish(ran)
    notes: list[str] = []
    looks: list[DecidingTiming] = []
    tries, floor = 0, None
    while (checked := _missed(made)) is not None:
        chosen = made.chosen
        quantized = bool(chosen.ran.precision)
        notes += chosen.notes
        looks += chosen.looks
        if not chosen.ran.decomposed:
            notes.append(f"not quantized, for with that alone {checked.reason}")
            made, tries = finisher.finish(finisher.again(None, False)), 0
            continue
        if quantized and floor is None:
            # No plan is of use where quantization alone loses too much; else it has its share of the error.
            alone = finisher.finish(finisher.again(nothing_of(chosen.plan, _reason(checked)), True), chosen)
            if _missed(alone) is not None or not alone.chosen.ran.precision:
                made = alone
                continue
            floor = alone.checked.worst if alone.checked is not None else None
        late = passed(finisher.meter.deadline, APPLY)
        plan = _next_plan(chosen, checked, floor or 0.0, _TRIES if late else tries)
        tries += 1
        notes.append(_changes(chosen.plan, plan, checked))
        made = finisher.finish(finisher.again(plan, quantized), chosen)
    if tries:
        notes += _given_way(goal)
    told = replace(made.chosen, notes=(*notes, *made.chosen.notes), looks=(*looks, *made.chosen.looks))
    return replace(made, chosen=told)


def _given_way(goal: str | None) -> list[str]:
    """What is said of a target that is not of loss, where another plan than that for it was taken."""
    costs = [str(budget) for budget in parse_budgets(goal or "") if not budget.on_loss] if goal else []
    return [f"the target {','.join(costs)} gives way to the largest error"] if costs else []


def _missed(made: FinishedResult) -> Verification | None:
    """The comparison that failed by its numbers; None where none did."""
    checked = made.checked
    failed = checked is not None and checked.status == "failed" and not checked.interface
    return checked if failed else None


def _reason(checked: Verification) -> str:
    return f"put back: with it {checked.reason}"


def _next_plan(chosen: TimedResult, checked: Verification, floor: float, tries: int) -> Plan:
    """A plan that loses so much less that the error will do; with every try a little less than that.

    Args:
        chosen: What was tried last.
        checked: How it was found to fail.
        floor: The part of the error that is none of the plan's: of quantization alone.
        tries: How many plans were tried.
    """
    reason = _reason(checked)
    if tries >= _TRIES or chosen.search is None:
        return nothing_of(chosen.plan, reason)
    share = 0.25
    if checked.max_error is not None and checked.worst is not None and np.isfinite(checked.worst):
        # The error goes with the root of the loss, and independent errors add up by their squares.
        wanted = (_AIM ** (1 + tries) * checked.max_error) ** 2 - floor**2
        share = float(np.clip(wanted / max(checked.worst**2 - floor**2, 1e-24), 0.01, 0.9))
    return tighter(chosen.plan, chosen.search, share, reason)


def _changes(before: Plan, after: Plan, checked: Verification) -> str:
    """What was changed from one plan to the next, and why."""
    now = {key_of(choice): choice for choice in changes_of(after)}
    back = [key_of(choice)[1] for choice in changes_of(before) if key_of(choice) not in now]
    other = [choice for choice in changes_of(before) if choice != now.get(key_of(choice), choice)]
    layers = sum(isinstance(choice, Choice) for choice in other)
    channels = len(other) - layers
    done = [f"{layers} layer{'s' if layers > 1 else ''} got ranks that lose less"] if layers else []
    done += [f"{channels} channel{'s' if channels > 1 else ''} got more units"] if channels else []
    done += [f"put back: {some(back)}"] if back else []
    return f"{checked.reason}: {'; '.join(done) or 'the plan stays'}"
