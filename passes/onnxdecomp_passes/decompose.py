"""The decompose pass: plan, fit the factors, put the chains in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from onnxdecomp.apply.apply_plan import carry_out
from onnxdecomp.apply.kept_stages import CODEC as STAGES
from onnxdecomp.apply.stages_ahead import StageOptions
from onnxdecomp.apply.trials import Trials
from onnxdecomp.calibration.input_shapes import input_shapes
from onnxdecomp.calibration.measured_shapes import largest_value, with_seen_shapes
from onnxdecomp.calibration.random_set import synthetic
from onnxdecomp.calibration.statistics import VARIED, Calibration, bounded, sized
from onnxdecomp.channels.channel import Channel, ChannelSkip
from onnxdecomp.channels.find_channels import find_channels
from onnxdecomp.decompositions.joint import CUTS
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.inferred import is_inferred
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.int8_weights import OLDEST_OPSET
from onnxdecomp.layers.recurrence import with_recurrences
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline.base import (
    Need,
    PassContext,
    PassResult,
    PlanFailedError,
    Planner,
    option,
)
from onnxdecomp.runtime.deadline import APPLY, Deadline
from onnxdecomp.runtime.providers import provider_of, quantum
from onnxdecomp.runtime.session import Feed
from onnxdecomp.search.channel_costs import CutCosts, narrowed_layers, recounted
from onnxdecomp.search.check_plan import check_plan
from onnxdecomp.search.fixed_ranks import Request, plan_uniform, resolved
from onnxdecomp.search.fixed_widths import plan_widths
from onnxdecomp.search.keep_layers import Key, changes_of, key_of
from onnxdecomp.search.kept_survey import CODEC
from onnxdecomp.search.layer_errors import defect_of, foreseen, keeping, reason_for
from onnxdecomp.search.metrics.base import CostMetric
from onnxdecomp.search.plan import Choice, Cut, Plan
from onnxdecomp.search.rules import Defaults, make_rule, parse_rule
from onnxdecomp.search.scope import Scope
from onnxdecomp.search.search import SearchResult, search_plan
from onnxdecomp.search.spectra import spectra_of
from onnxdecomp.search.stored_parameters import remaining
from onnxdecomp.search.targets import about_speed, parse_budgets
from onnxdecomp.tasks.course import Course
from onnxdecomp.tasks.journal import Journal
from onnxdecomp_passes._decompose_notes import in_fewer_bits, origins, sketches, stays, unfitted

_LONGER = 2.0
"""Times that a plan takes longer than in a trial, on as many inputs."""


@dataclass(frozen=True)
class Decompose(Planner):
    """Replace layers by chains of smaller ones."""

    name: ClassVar[str] = "decompose"
    summary: ClassVar[str] = "replace layers by chains of smaller ones"

    provider: str = option("", "the provider that rank_multiple=auto aligns to (default: the run's)")

    def __post_init__(self) -> None:
        # A mistake in the request is known before anything starts.
        if not self.idle:
            self._request()
        if self.target:
            if self.rank or self.layers:
                what = "a rank" if self.rank else "rules for single layers"
                raise UsageError(f"{what} and a target exclude each other: the target finds the ranks")
            parse_budgets(self.target)

    @property
    def needs(self) -> frozenset[Need]:
        """What the goal is about."""
        costs = self._costs() if self.searches else []
        timed: list[Need] = ["latency"] if any(cost.timed for cost in costs) else []
        counted = any(cost.filed for cost in costs) or self.objective == "size"
        filed: list[Need] = ["original_bytes"] if counted else []
        return frozenset((*timed, *filed))

    @property
    def uses(self) -> frozenset[Need]:
        """A plan, inputs to fit to and to judge by, what is done to the result; latency if that counts."""
        always: frozenset[Need] = frozenset(("plan", "calibration", "evaluation", "quantization", "kernels"))
        return always | {"latency"} if self.searches and self._about_speed else always

    def plan(
        self, model: ir.Model, context: PassContext | None = None
    ) -> tuple[SearchResult, list[LayerMatch]]:
        """What would be done, without doing it (activation shapes are filled in)."""
        context = context or PassContext()
        if not is_inferred(model):
            infer_shapes(model)
        if self.idle:
            return SearchResult(Plan(())), []
        matched, skips = find(model, freeze=self.freeze_initializers)
        matched = with_recurrences(with_seen_shapes(model, matched))
        if context.plan is not None:
            channels, _ = self._found(model, matched) if context.plan.channels else ((), ())
            check_plan(context.plan, matched, channels)
            return SearchResult(recounted(context.plan, matched, channels)), matched
        if not self.searches:
            request = resolved(self._request(context.provider), matched, skips)
            joint = any(rule.joint for rule in request.rules)
            channels, broken = self._found(model, matched) if joint else ((), ())
            widths = plan_widths(channels, broken, request)
            smaller = narrowed_layers(matched, channels, {c.channel: c.kept for c in widths if c.method})
            plan = replace(plan_uniform(matched, skips, request, smaller), channels=widths)
            return SearchResult(replace(recounted(plan, matched, channels), repair=self.repair)), matched
        calibration, notes = self._calibration(model, matched, context)
        latency = context.latency if self._about_speed else None
        quantization = context.quantization
        channels = self._weighed(model, matched, calibration)
        scope = self._scope(context.provider, timed=latency is not None)
        if context.kernels is not None and self.rank_multiple in ("", "auto") and not self.provider:
            # For goals on MACs, too: what is left of a block is computed all the same.
            scope = replace(scope, measured=context.kernels())
        trials, journal = self._trials(model, context), None
        if context.course is not None:
            names = [channel.name for channel in channels]
            course = context.course.under(
                "survey", scope, names, latency is not None, calibration.fingerprint
            )
            journal = course.journal(CODEC)
        found = search_plan(
            model,
            matched,
            skips,
            scope,
            parse_budgets(self.goal),
            calibration,
            trials,
            task=context.task,
            stopwatch=latency,
            size=context.original_bytes or 0,
            precision="float" if quantization is None else quantization.precision,
            objective=self.objective,
            channels=channels,
            progress=context.progress,
            deadline=context.deadline,
            journal=journal,
            ahead=trials.begun,
        )
        plan = replace(recounted(found.plan, matched, channels), repair=self.repair)
        return replace(found, plan=plan, notes=(*notes, *found.notes)), matched

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Plan and carry out."""
        searched, matched = self.plan(model, context)
        plan, search = searched.plan, searched.record
        calibration = None if context.calibration is None else _sized(context.calibration, model, matched)
        calibration, hurried = _in_time(calibration, searched, context.deadline)
        total = len(changes_of(plan))
        count = iter(range(total))
        report = context.progress
        opset = int(model.opset_imports.get("", 1))
        dense, large = remaining(plan, matched), tuple(sketches(matched, plan))
        costs = CutCosts.of(matched, self._found(model, matched)[0] if plan.cuts else ())
        idle = () if calibration is None else tuple(unfitted(model, matched, plan, calibration))
        # Before the dense weights are let go of.
        spectra = spectra_of(matched, plan) if context.spectra else ()
        failed: dict[Key, str] = {}

        def on_failure(choice: Choice | Cut, error: Exception) -> None:
            reason = reason_for(error, key_of(choice)[1])
            if choice.method is not None:
                failed[key_of(choice)] = reason

        try:
            done = carry_out(
                model,
                matched,
                plan,
                seed=self.seed,
                requantize=self.requantize and opset >= OLDEST_OPSET,
                calibration=calibration,
                on_layer=(lambda layer: report(f"decompose {layer}", next(count), total)) if report else None,
                on_failure=on_failure,
                probe=self._probe(model, context) if plan.cuts else None,
                journal=self._journal(plan, calibration, context.course),
            )
        except Exception as error:
            if foreseen(error):
                raise
            raise PlanFailedError(defect_of(error), plan, search) from error
        return PassResult(
            model,
            bool(done.rewritten or done.cuts),
            notes=(
                *searched.notes,
                *large,
                *hurried,
                *origins(plan),
                *stays(dense),
                *idle,
                *in_fewer_bits(done.rewritten, self.requantize, opset),
            ),
            rewritten=done.rewritten,
            cuts=done.cuts,
            plan=costs.costed(keeping(plan, failed)) if failed else plan,
            search=search,
            search_notes=searched.notes if search else (),
            spectra=spectra,
        )

    def _calibration(
        self, model: ir.Model, matched: Sequence[LayerMatch], context: PassContext
    ) -> tuple[Calibration, tuple[str, ...]]:
        if context.calibration is not None:
            return _sized(context.calibration, model, matched), ()
        made = synthetic(model, seed=self.seed, shapes=context.shapes)
        note = (
            "no calibration inputs: errors were measured on random ones, and factors fitted to the weights "
            "alone; give real inputs with --calib for far better accuracy"
        )
        return _sized(made, model, matched), (note,)

    def _found(
        self, model: ir.Model, matched: Sequence[LayerMatch]
    ) -> tuple[tuple[Channel, ...], tuple[ChannelSkip, ...]]:
        return find_channels(model, matched, freeze=self.freeze_initializers)

    def _weighed(
        self, model: ir.Model, matched: Sequence[LayerMatch], calibration: Calibration
    ) -> tuple[Channel, ...]:
        """The channels that a search may cut: "auto" cuts them where inputs show what is lost."""
        named = set(self.method.split(","))
        if not named & {*CUTS} and (named != {"auto"} or calibration.synthetic):
            return ()
        return self._found(model, matched)[0]

    def _probe(self, model: ir.Model, context: PassContext) -> Feed | None:
        """Inputs that cuts are checked on; None where the model runs on no random ones."""
        if context.calibration is not None:
            return context.calibration.feeds.largest()
        try:
            return synthetic(model, seed=self.seed, shapes=context.shapes).feeds.largest()
        except ModelError:
            return None

    def _journal(self, plan: Plan, calibration: Calibration | None, course: Course | None) -> Journal | None:
        """What keeps the stages of a plan on these inputs."""
        return None if course is None else self._stages.course(course, plan, calibration).journal(STAGES)

    @property
    def _stages(self) -> StageOptions:
        return StageOptions(self.seed, self.freeze_initializers, self.repair)

    def _trials(self, model: ir.Model, context: PassContext) -> Trials:
        """What carries plans out on copies of the model."""
        # Without a named target the error allowed is that of the decomposition, rounding comes on top.
        quantization = context.quantization if self.target else None
        quantized = None if quantization is None else quantization.quantized
        return Trials(model, self._stages, quantized, context.course, context.pool)

    @property
    def _about_speed(self) -> bool:
        """Whether latency is measured for the search."""
        return about_speed(self.goal, self.objective)

    def _costs(self) -> list[CostMetric]:
        """What the target limits, apart from losses."""
        return [budget.cost for budget in parse_budgets(self.goal) if not budget.on_loss]

    def _scope(self, provider: str, *, timed: bool) -> Scope:
        budgets = parse_budgets(self.goal)
        weighs = all(not budget.on_loss and budget.cost.weighs for budget in budgets)
        weighs = weighs or (self.objective == "size" and not timed)
        return Scope(
            methods=tuple(name for name in self.method.split(",") if name not in CUTS),
            cuts=tuple(name for name in CUTS if self.method == "auto" or name in self.method.split(",")),
            multiple=self._multiple("auto" if timed or _is_card(provider) else "1", provider),
            quantum=self._quantum(provider),
            what="params" if weighs else "macs",
            include=tuple(self.include),
            exclude=tuple(self.exclude),
            options=self.options,
            skip_below=self.skip_below,
            worse=2.0 if timed else 1.3,
            seed=self.seed,
        )

    def _request(self, provider: str = "") -> Request:
        defaults = Defaults(self.rank or "0.5", self.options)
        method = "tucker" if self.method == "auto" else self.method
        rules = (*(parse_rule(text, defaults) for text in self.layers), make_rule(method, defaults))
        used = {method.name for rule in rules for method in rule.methods}
        if unused := [name for name in self.options if name not in used]:
            raise UsageError(f"options are given for method {unused[0]!r}, which no layer is given")
        return Request(
            rules=rules,
            multiple=self._multiple("1", provider),
            quantum=self._quantum(provider),
            include=tuple(self.include),
            exclude=tuple(self.exclude),
            must_save=self.must_save,
            skip_below=self.skip_below,
        )

    def _quantum(self, provider: str) -> int:
        """What widths fill, where nothing is said of multiples."""
        return 1 if self.rank_multiple else quantum(self.provider or provider or "cpu")

    def _multiple(self, default: str, provider: str) -> int:
        text = self.rank_multiple or default
        if text == "auto":
            return quantum(self.provider or provider or "cpu")
        try:
            multiple = int(text)
        except ValueError:
            multiple = 0
        if multiple < 1:
            raise UsageError(f"rank multiple {text!r} is neither a positive number nor 'auto'")
        return multiple


def _is_card(provider: str) -> bool:
    return bool(provider) and not provider_of(provider).synchronous


def _sized(calibration: Calibration, model: ir.Model, matched: Sequence[LayerMatch]) -> Calibration:
    """The calibration with as many samples as fits need, in batches that suit the largest of its inputs."""
    largest = calibration.feeds.largest()
    if len(calibration.feeds) > VARIED and all(match.layer.conv is not None for match in matched):
        names = {value.name for value in model.graph.inputs}
        given = {name: array.shape for name, array in largest.items() if name in names}
        calibration = bounded(calibration, matched, input_shapes(model, given))
    return sized(calibration, matched, largest_value(model, largest))


def _in_time(
    calibration: Calibration | None, searched: SearchResult, deadline: Deadline | None
) -> tuple[Calibration | None, tuple[str, ...]]:
    """What to fit to: as little as in trials, with a note, where the time that is left would not do."""
    brief = searched.brief
    if deadline is None or calibration is None or brief is None or brief.synthetic:
        return calibration, ()
    more = max(1.0, len(calibration.feeds) / len(brief.feeds))
    if _LONGER * more * searched.seconds <= deadline.left(APPLY):
        return calibration, ()
    note = f"fitted to {len(brief.feeds)} of the calibration inputs, and in fewer rounds, for the time limit"
    return brief, (note,)
