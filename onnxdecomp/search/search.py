"""From a target to a plan: profile layers, choose; where the target is a loss, try and choose again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

import onnx_ir as ir

from onnxdecomp.calibration.statistics import Calibration, hasty, parted, shortened
from onnxdecomp.channels.channel import Channel
from onnxdecomp.decompositions.joint import ATTENTION, CUTS
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.measure import Task
from onnxdecomp.layers.adapter import LayerMatch, Skip
from onnxdecomp.quantization.kinds import bytes_of
from onnxdecomp.runtime.deadline import Deadline
from onnxdecomp.search.cut_trials import (
    cheaper_without_cuts,
    doubted,
    try_fewer_cuts,
    whole_channels,
    whole_layers,
)
from onnxdecomp.search.file_size import file_size, refine_by_size
from onnxdecomp.search.joint_options import JointOptions, joint_options
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.latency_feedback import corrected, refine_by_latency
from onnxdecomp.search.latency_model import Stopwatch
from onnxdecomp.search.layer_profiles import LayerProfiles, Progress, profile_layers
from onnxdecomp.search.metrics.base import Reference, Sizes
from onnxdecomp.search.plan import Cost, Plan, kept
from onnxdecomp.search.plan_options import Objective
from onnxdecomp.search.plan_trials import LossLimit, Tried, Tries, tried_plans, try_plans
from onnxdecomp.search.reach import refusal, require_reach
from onnxdecomp.search.scope import Scope
from onnxdecomp.search.search_notes import ended, idle, missed
from onnxdecomp.search.search_record import SearchRecord, search_record
from onnxdecomp.search.select import Chosen, choose, with_reason
from onnxdecomp.search.sensitivity import original_outputs, output_error
from onnxdecomp.search.targets import Budget, allowance
from onnxdecomp.search.timed_outlines import in_time
from onnxdecomp.tasks.journal import Journal

_SELDOM = 8
"""Whole plans are tried seldom: as many times more samples judge them than judge one layer's candidates."""

_LESS = 0.97
"""Of the file's bytes, what must be left at most for less accuracy to be worth it."""

Ahead = Callable[[Sequence[Plan], Calibration], AbstractContextManager[None]]

Trial = Callable[[Plan, Calibration], ir.Model]
"""Carries a plan out on a copy of the model, fitted to these inputs."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The plan for a target.

    Attributes:
        plan: The decision for every layer.
        record: What was weighed and how the plan came about; None where nothing was searched for.
        notes: What a user should know.
        brief: What trials were fitted to; None where nothing was searched for.
        seconds: That the longest of them took, or weighing the layers where none was made.
    """

    plan: Plan
    record: SearchRecord | None = None
    notes: tuple[str, ...] = ()
    brief: Calibration | None = None
    seconds: float = 0.0


def search_plan(
    model: ir.Model,
    matched: Sequence[LayerMatch],
    skips: Sequence[Skip],
    scope: Scope,
    budgets: Sequence[Budget],
    calibration: Calibration,
    trial: Trial,
    *,
    task: Task | None = None,
    stopwatch: Stopwatch | None = None,
    size: int = 0,
    precision: str = "float",
    objective: Objective = "latency",
    channels: Sequence[Channel] = (),
    progress: Progress | None = None,
    deadline: Deadline | None = None,
    journal: Journal | None = None,
    ahead: Ahead | None = None,
) -> SearchResult:
    """Find the plan that meets the budgets: of least loss, or where they limit that, of the least objective.

    Args:
        model, matched, skips: Simplified and normalised; they stay as they are.
        scope: What is looked at.
        budgets: All are kept.
        calibration: Inputs.
        trial: Carries a plan out.
        task: The metric of the task on samples to choose by, for a budget on it.
        stopwatch: Measures latency; needed for a budget on it.
        size: Bytes of the original with its external data, for a budget on them.
        precision: The kernels that the trial is quantized for; "float" where it is not.
        objective: What is least where a loss is limited.
        channels: Those between layers that may be cut.
        progress: Called as the work goes on.
        deadline: Ends the search with the best that was found by then.
        journal: As for `profile_layers`.
        ahead: Begins with plans that will be tried in any case, elsewhere, as long as the block lasts.

    Raises:
        UsageError: A budget cannot be met; the line says what can. Where every layer and channel at its least
            costs too much already, nothing was weighed by then.
    """
    allowed = {budget: allowance(budget, task) for budget in budgets if budget.on_loss}
    for budget in budgets:
        if budget.loss is None and budget.cost.timed and stopwatch is None:
            raise UsageError(f"--target {budget.quantity}=… needs something to measure latency with")
    costs, sizes = (
        [budget for budget in budgets if not budget.on_loss],
        Sizes(size, size, bytes_of(precision)),
    )
    beyond = Cost(sum(skip.params for skip in skips), sum(skip.macs or 0 for skip in skips))

    def require(known: LayerProfiles) -> None:
        require_reach(replace(known, beyond=beyond), skips, costs, replace(sizes, whole=0))

    hurried: tuple[str, ...] = ()
    if stopwatch is not None and deadline is not None and not any(budget.cost.timed for budget in costs):
        stopwatch, hurried = in_time(stopwatch, deadline)
    began = time.perf_counter()
    weighed = profile_layers(
        *(model, matched, scope, calibration),
        channels=channels,
        stopwatch=stopwatch,
        progress=progress,
        deadline=deadline,
        journal=journal,
        require=require,
    )
    surveyed, took = time.perf_counter() - began, list[float]()
    weighed = replace(weighed, beyond=beyond)
    brief = shortened(parted(calibration)[0], weighed.work.macs, weighed.work.samples)
    if not any(budget.on_loss for budget in budgets):  # plans are compared, and no error is judged
        brief = hasty(brief, weighed.work.samples)

    def carried_out(plan: Plan) -> ir.Model:
        start = time.perf_counter()
        made = trial(plan, brief)
        took.append(time.perf_counter() - start)
        return made

    picker = _Picker(
        *(model, skips, weighed, costs, carried_out, sizes, precision, stopwatch),
        objective=objective,
        deadline=weighed.deadline,
        ahead=nullcontext if ahead is None else lambda plans: ahead(plans, brief),
    ).with_sizes()
    judging = weighed.outputs
    if not calibration.synthetic:
        judging = original_outputs(model, parted(calibration)[1], weighed.work.macs // _SELDOM)
    reference = Reference(model, judging, calibration, task)
    tried = _smaller(picker, _chosen(picker, allowed, reference, progress))
    result = _result(picker, tried)
    notes = (*hurried, *result.notes)
    return replace(result, notes=notes, brief=brief, seconds=max(took, default=surveyed))


def _smaller(picker: _Picker, tried: Tried) -> Tried:
    """The same; where the file is to be smallest, and is as small with every layer as it is, that one."""
    plan, whole = tried.chosen.plan, picker.untouched()
    if picker.objective != "size" or not plan.changes or whole is None:
        return tried
    before, after = picker.bytes_of(whole.plan), picker.bytes_of(plan)
    if after < _LESS * before:
        return tried
    reason = f"with chains or cuts the file has {after:,} bytes, with every layer as it is {before:,}"
    return replace(tried, chosen=with_reason(whole, picker.weighed, reason))


def _chosen(
    picker: _Picker, losses: Mapping[Budget, float], reference: Reference, progress: Progress | None
) -> Tried:
    """The plan, and what was tried on the way to it; `losses` are budgets with what they allow."""
    if not losses:
        chosen = picker.reached(picker.pick(None))
        if reference.calibration.synthetic or not reference.outputs.names:
            return Tried(chosen)

        def error(plan: Plan) -> float:
            return math.sqrt(output_error(picker.trial(plan), reference.outputs, reference.calibration))

        picks = [partial(own.pick, None) for own in picker.others()]
        wanted = picker.wanted_latency()
        return try_fewer_cuts(
            *(chosen, picks, error),
            wanted=wanted,
            progress=progress,
            deadline=picker.deadline,
            ahead=picker.ahead,
        )
    unseen = [budget for budget in losses if budget.loss is not None and budget.loss.of_outputs]
    if unseen and not reference.outputs.names:
        # What layers lose, each of its own output, is all that is known; the network in general loses less.
        chosen = picker.reached(picker.pick(min(budget.limit for budget in unseen) ** 2))
        note = "no output can be compared: the error allowed is that of all layers' own outputs together"
        return Tried(chosen, notes=(note,))
    limits = [
        LossLimit(budget, budget.loss, limit, budget.loss.measure(reference))
        for budget, limit in losses.items()
        if budget.loss is not None
    ]

    def tries(own: _Picker) -> Tried:
        return try_plans(own.pick, own.reached, own.costs, limits, own.trial, progress, picker.deadline)

    if picker.options.channels:
        alone = picker.without_cuts()
        pick = cache(alone.pick)

        def within(loss: float) -> Chosen | None:
            found = pick(loss)
            return None if isinstance(found, OutOfReach) else found

        def cheaper(start: float, below: float) -> tuple[Chosen | None, Tries]:
            return tried_plans(
                within, limits, picker.trial, start, progress, below=below, deadline=picker.deadline
            )

        tried = cheaper_without_cuts(partial(tries, picker), partial(tries, alone), cheaper, pick)
    else:
        tried = tries(picker)
    if not tried.notes:
        return tried
    reason = "no plan that was tried keeps the loss asked for"
    return replace(tried, chosen=with_reason(tried.chosen, picker.weighed, reason))


@dataclass(frozen=True, eq=False)
class _Picker:
    """Picks the best plan within the budgets on costs; what is expected is corrected by what is measured.

    Attributes:
        model, skips, weighed: What is chosen from.
        costs: The budgets.
        trial: Carries a plan out.
        sizes: Of files.
        precision: What the trial is quantized to.
        stopwatch: Measures latency, or None.
        objective: What is least where a loss is limited.
        lows: The lower ends of the intervals of the latencies that were measured, over the original's.
        corrections: What plans for a latency were measured to take over what was expected.
        deadline: Behind its share of the time nothing more is tried.
        ahead: Begins with plans that will be tried.
    """

    model: ir.Model
    skips: Sequence[Skip]
    weighed: LayerProfiles
    costs: Sequence[Budget]
    trial: Callable[[Plan], ir.Model]
    sizes: Sizes
    precision: str
    stopwatch: Stopwatch | None
    objective: Objective = "latency"
    lows: list[float] = field(default_factory=list)
    corrections: list[float] = field(default_factory=list)
    deadline: Deadline | None = None
    ahead: Callable[[Sequence[Plan]], AbstractContextManager[object]] = nullcontext

    @cached_property
    def options(self) -> JointOptions:
        """What is chosen among."""
        return joint_options(self.weighed)

    def with_sizes(self) -> _Picker:
        """The same with the size of the file in which every layer stays, where a budget is on it."""
        if self._largest_file() is None:
            return self
        untouched = Plan(tuple(kept(entry.match.layer, entry.dense) for entry in self.weighed.layers))
        return replace(self, sizes=replace(self.sizes, whole=file_size(self.trial(untouched))))

    def with_doubt(self) -> _Picker:
        """The same where what cuts lose counts more."""
        return replace(self, weighed=doubted(self.weighed))

    def without_cuts(self, methods: Collection[str] = tuple(CUTS)) -> _Picker:
        """The same where these methods may cut no channel."""
        return replace(self, weighed=whole_channels(self.weighed, methods))

    def without_chains(self) -> _Picker:
        """The same where no layer may become a chain."""
        return replace(self, weighed=whole_layers(self.weighed))

    def others(self) -> list[_Picker]:
        """The same with less to choose among, or more doubt, where that may come to other plans."""
        narrow = [self.without_cuts((ATTENTION.name,))] if self._cuts_by(ATTENTION.name) else []
        chains = any(entry.candidates for entry in self.weighed.layers)
        alone = [own.without_chains() for own in (self, *narrow)] if chains else []
        return [self.with_doubt(), *narrow, self.without_cuts(), *alone]

    def _cuts_by(self, method: str) -> bool:
        return any(entry.method == method and entry.levels[1:] for entry in self.weighed.channels)

    def pick(self, max_loss: float | None) -> Chosen | OutOfReach:
        """The best plan that is expected to lose at most so much (None: whatever it loses)."""
        limit = self._largest_file()

        def best(correction: float) -> Chosen | OutOfReach:
            def small(spare: float) -> Chosen | OutOfReach:
                sizes = replace(self.sizes, spare=spare)
                return choose(
                    *(self.weighed, self.skips, self.costs),
                    sizes=sizes,
                    max_loss=max_loss,
                    correction=correction,
                    options=self.options,
                    objective=self.objective,
                )

            return small(0.0) if limit is None else refine_by_size(small, self.bytes_of, limit)

        if self.stopwatch is None:
            return best(1.0)
        quantized, wanted = self.stopwatch.precision != "float", self.wanted_latency()
        start = self.corrections[-1] if self.corrections else 1.0
        found = refine_by_latency(best, self._latency, wanted, quantized=quantized, start=start)
        if wanted is not None and (correction := corrected(found)) is not None:
            self.corrections.append(correction)
        return found

    def reached(self, found: Chosen | OutOfReach) -> Chosen:
        """What was found.

        Raises:
            UsageError: It is out of reach; the line says what is not.
        """
        if isinstance(found, OutOfReach):
            if self.weighed.late and (whole := self.untouched()) is not None:
                return whole
            raise refusal(self.weighed, self.costs, self.sizes, found)
        return found

    def untouched(self) -> Chosen | None:
        """The plan in which every layer stays."""
        found = replace(self, costs=(), stopwatch=None).pick(0.0)
        return None if isinstance(found, OutOfReach) else found

    def wanted_latency(self) -> float | None:
        """The latency over the original's that a budget asks for."""
        now = self.weighed.original_ms
        return next((b.allowed(now) / now for b in self.costs if b.cost.timed and now), None)

    def _largest_file(self) -> float | None:
        return next((b.allowed(self.sizes.original) for b in self.costs if b.cost.filed), None)

    def bytes_of(self, plan: Plan) -> int:
        """Bytes of a plan's file, which is made."""
        # A file in which nothing is decomposed or quantized is the original, which nobody has simplified.
        as_it_was = not plan.changes and self.precision == "float"
        return self.sizes.original if as_it_was else file_size(self.trial(plan))

    def _latency(self, plan: Plan) -> float:
        assert self.stopwatch is not None
        ratio = self.stopwatch.time_plan(self.model, plan)
        self.lows.append(ratio.low)
        return ratio.value


def _result(picker: _Picker, tried: Tried) -> SearchResult:
    """The plan with what is to be said of it; a target that was missed is no reason to keep a layer.

    Raises:
        UsageError: The target of latency was missed, by the lower ends of all plans' intervals.
    """
    chosen, weighed, wanted = tried.chosen, picker.weighed, picker.wanted_latency()
    slow = missed(chosen, wanted)
    if slow and wanted is not None and min(picker.lows, default=0.0) > wanted:
        raise UsageError(f"--target latency is out of reach: {slow[0]}")
    if slow:
        chosen = with_reason(chosen, weighed, "no plan that was measured to be faster decomposes it")
    late = weighed.late or tried.late
    limited = ended(weighed, tried, picker.deadline) if late else ()
    said = (*weighed.notes, *weighed.outputs.notes, *idle(weighed), *limited, *tried.notes, *slow)
    record = search_record(weighed, chosen, tried.tries)
    return SearchResult(chosen.plan, replace(record, limited=True) if late else record, said)
