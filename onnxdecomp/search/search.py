"""Pursuing a goal: survey, choose, and where the goal is a loss, try, measure and choose again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import open_taps
from onnxdecomp.calibration.reachability import UNREACHED
from onnxdecomp.calibration.statistics import Calibration, parted, shortened
from onnxdecomp.core.names import some
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.layers.site import Site, Skip
from onnxdecomp.runtime.metrics import score_rows
from onnxdecomp.search.file_size import file_size, fitting, width
from onnxdecomp.search.fixed_ranks import method_options
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.latency_feedback import look
from onnxdecomp.search.latency_model import Stopwatch
from onnxdecomp.search.layer_profiles import Progress, Scope, Survey, survey
from onnxdecomp.search.pareto import frontier, macs_left
from onnxdecomp.search.plan import Plan, kept
from onnxdecomp.search.select import Bytes, Chosen, choose, totals, with_reason
from onnxdecomp.search.sensitivity import Outputs, output_errors
from onnxdecomp.search.targets import Budget

TRIALS = 6
"""Plans that are tried at most where the goal is a loss."""

_ENOUGH = 0.8
"""A trial that uses up this share of what may be lost is not improved on."""

_BOLD = 0.03
"""The loss of the first plan that is tried for a drop of accuracy, at most."""

_MARGIN = 0.95
"""Of an error measured on some calibration inputs: on others it may be a little larger."""

Trial = Callable[[Plan, Calibration], ir.Model]
"""Carries a plan out on a copy of the model, fitted to these inputs."""


class QuantizedTooFarError(UsageError):
    """A loss is passed with every layer kept, by quantization alone.

    Attributes:
        limit, used: What may be lost, and what is.
    """

    def __init__(self, budget: Budget, name: str, used: float) -> None:
        super().__init__(
            f"--target {budget} is out of reach: without any decomposition the quantized model has "
            f"{name}={used:.3g}"
        )
        self.limit, self.used = budget.limit, used


@dataclass(frozen=True, eq=False)
class Pursued:
    """The plan for a goal.

    Attributes:
        plan: The decision for every layer.
        record: JSON-serialisable: what was weighed and how the plan came about.
        notes: What a user should know.
    """

    plan: Plan
    record: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Measure:
    """How far a model is from the original, in the unit of a budget.

    Attributes:
        name: "error" or "drop".
        of: Measures a model.
    """

    name: str
    of: Callable[[ir.Model], float]


def pursue(
    model: ir.Model,
    sites: Sequence[Site],
    skips: Sequence[Skip],
    scope: Scope,
    budgets: Sequence[Budget],
    calibration: Calibration,
    trial: Trial,
    *,
    labelled: Feeds | None = None,
    stopwatch: Stopwatch | None = None,
    size: int = 0,
    precision: str = "float",
    progress: Progress | None = None,
) -> Pursued:
    """Find the plan that meets the budgets: of least loss, or of least latency where they limit the loss.

    Args:
        model, sites, skips: Simplified and normalised; they stay as they are.
        scope: What is looked at.
        budgets: All are kept.
        calibration: Inputs.
        trial: Carries a plan out.
        labelled: Samples with labels, for a budget on the drop of accuracy.
        stopwatch: Measures latency; needed for a budget on it.
        size: Bytes of the original with its external data, for a budget on them.
        precision: What the trial is quantized to: "float", "int8" or "fp16".
        progress: Called as the work goes on.

    Raises:
        UsageError: A budget cannot be met; the line says what can.
    """
    if any(budget.quantity == "drop" for budget in budgets) and (labelled is None or labelled.labels is None):
        none = "" if labelled is None else f" (there are none in {labelled.source})"
        raise UsageError(f"--target drop=… needs labels{none}: give samples with labels by --eval")
    if stopwatch is None and any(budget.quantity == "latency" for budget in budgets):
        raise UsageError("--target latency=… needs something to measure latency with")
    weighed = survey(model, sites, scope, calibration, stopwatch=stopwatch, progress=progress)
    costs = [budget for budget in budgets if not budget.on_loss]
    losses = [budget for budget in budgets if budget.on_loss]

    wanted = _wanted_latency(costs, weighed)
    lows: list[float] = []

    def measure(plan: Plan) -> float:
        assert stopwatch is not None
        ratio = stopwatch.time_plan(model, plan)
        lows.append(ratio.low)
        return ratio.value

    brief = shortened(parted(calibration)[0], weighed.macs)
    limit = next((budget.allowed(size) for budget in costs if budget.quantity == "size"), None)
    sizes = Bytes(size, size, width(precision))
    if limit is not None:
        untouched = Plan(tuple(kept(entry.site.layer, entry.dense) for entry in weighed.layers))
        sizes = replace(sizes, whole=file_size(trial(untouched, brief)))

    def made(plan: Plan) -> int:
        # A file in which nothing is decomposed or quantized is the original, which nobody has simplified.
        as_it_was = not plan.decomposed and precision == "float"
        return size if as_it_was else file_size(trial(plan, brief))

    def pick(max_loss: float | None) -> Chosen | OutOfReach:
        def best(optimism: float) -> Chosen | OutOfReach:
            def small(spare: float) -> Chosen | OutOfReach:
                known = replace(sizes, spare=spare)
                return choose(weighed, skips, costs, sizes=known, max_loss=max_loss, optimism=optimism)

            return small(0.0) if limit is None else fitting(small, made, limit)

        if stopwatch is None:
            return best(1.0)
        return look(best, measure, wanted, quantized=stopwatch.precision != "float")

    def reached(found: Chosen | OutOfReach) -> Chosen:
        if isinstance(found, OutOfReach):
            reach = _out_of_reach(costs, found, totals(weighed, size))
            raise UsageError("; ".join((reach, *_idle(weighed))))
        return found

    on_outputs = [budget for budget in losses if budget.quantity == "error"]
    if on_outputs and not weighed.outputs.names:
        # What layers lose, each of its own output, is all that is known; the network in general loses less.
        chosen = reached(pick(min(budget.limit for budget in on_outputs) ** 2))
        note = "no output can be compared: the error allowed is that of all layers' own outputs together"
        return _pursued(weighed, chosen, (), (note,), wanted, lows)
    if not losses:
        return _pursued(weighed, reached(pick(None)), (), (), wanted, lows)
    measures = [_measure(budget, model, weighed.outputs, calibration, labelled) for budget in losses]
    chosen, tries, notes = try_plans(
        pick, reached, costs, losses, measures, lambda plan: trial(plan, brief), progress
    )
    if notes:
        chosen = with_reason(chosen, weighed, "no plan that was tried keeps the loss asked for")
    return _pursued(weighed, chosen, tries, notes, wanted, lows)


def _pursued(
    weighed: Survey,
    chosen: Chosen,
    tries: Sequence[Mapping[str, float | None]],
    notes: tuple[str, ...],
    wanted: float | None,
    lows: Sequence[float],
) -> Pursued:
    """The plan with what is to be said of it; a target that was missed is no reason to keep a layer.

    Raises:
        UsageError: The target of latency was missed, by the lower ends of all plans' intervals (`lows`).
    """
    missed = _missed(chosen, wanted)
    if missed and wanted is not None and min(lows, default=0.0) > wanted:
        raise UsageError(f"--target latency is out of reach: {missed[0]}")
    if missed:
        reason = "no plan that was measured to be faster decomposes it"
        chosen = with_reason(chosen, weighed, reason)
    said = (*weighed.notes, *weighed.outputs.notes, *_idle(weighed), *notes, *missed)
    return Pursued(chosen.plan, _record(weighed, chosen, tries), said)


def _idle(weighed: Survey) -> Iterator[str]:
    """What is said of layers that no input reaches: nothing is known of what they would lose."""
    names = [entry.site.layer.name for entry in weighed.layers if entry.reason == UNREACHED]
    if names:
        yield f"kept, for no calibration input reaches them: {some(names)}"


def try_plans(
    pick: Callable[[float | None], Chosen | OutOfReach],
    reached: Callable[[Chosen | OutOfReach], Chosen],
    costs: Sequence[Budget],
    losses: Sequence[Budget],
    measures: Sequence[Measure],
    trial: Callable[[Plan], ir.Model],
    progress: Progress | None,
) -> tuple[Chosen, list[dict[str, float | None]], tuple[str, ...]]:
    """Plans of rising and falling expected loss, until one uses up what may be lost, and not more.

    What is expected only ranks plans. Where the budgets on costs need more loss than is expected to be
    allowed, the plan that needs least is tried, and what is measured of it decides.

    Raises:
        UsageError: The loss asked for does not go with the budgets on costs: said with what was measured.
    """
    limits = [budget.limit * (_MARGIN if budget.quantity == "error" else 1.0) for budget in losses]
    # What layers lose adds up to more than the network does once they are fitted to each other.
    expected = min(
        limit**2 * 1.5 if budget.quantity == "error" else min(2.0 * limit, _BOLD)
        for budget, limit in zip(losses, limits, strict=True)
    )
    best: Chosen | None = None
    tries: list[dict[str, float | None]] = []
    low, high = 0.0, float("inf")
    cheapest: Chosen | OutOfReach | None = None
    for attempt in range(TRIALS):
        if progress:
            progress(f"try plan {attempt + 1}", attempt, TRIALS)
        found = pick(expected)
        if isinstance(found, OutOfReach) and costs:
            if cheapest is not None:
                break
            found = cheapest = pick(None)
        chosen = reached(found)
        if not chosen.plan.decomposed:
            best = best or chosen
            break
        made = trial(chosen.plan)
        used = [measure.of(made) for measure in measures]
        share = max(
            value / limit if limit > 0 else (0.0 if value <= 0 else float("inf"))
            for value, limit in zip(used, limits, strict=True)
        )
        tries.append(
            {"expected": chosen.loss, "latency": chosen.latency, "macs": macs_left(chosen.plan)}
            | {measure.name: value for measure, value in zip(measures, used, strict=True)}
        )
        if share <= 1:
            best, low = chosen, max(low, chosen.loss)
            if share >= _ENOUGH:
                break
        else:
            high = min(high, chosen.loss)
        # The error goes with the root of the loss, the drop about with the loss.
        power = 2.0 if any(budget.quantity == "error" for budget in losses) else 1.0
        expected = chosen.loss * float(np.clip(0.92 / max(share, 1e-3), 0.1, 4.0)) ** power
        if low > 0 and high < float("inf") and not low < expected < high:
            expected = float(np.sqrt(low * high))
        if high < float("inf") and low > 0.85 * high:
            break
    return _settled(best, pick, costs, losses, measures, trial, tries)


def _settled(
    best: Chosen | None,
    pick: Callable[[float | None], Chosen | OutOfReach],
    costs: Sequence[Budget],
    losses: Sequence[Budget],
    measures: Sequence[Measure],
    trial: Callable[[Plan], ir.Model],
    tries: list[dict[str, float | None]],
) -> tuple[Chosen, list[dict[str, float | None]], tuple[str, ...]]:
    """The best plan that was tried; where none was good enough, the one that keeps every layer, if it may."""
    notes: tuple[str, ...] = ()
    if best is None:
        nothing = pick(0.0)
        if isinstance(nothing, OutOfReach):
            raise UsageError(_too_lossy(costs, losses, measures, tries))
        best = nothing
        notes = ("no plan that was tried keeps the loss asked for: every layer stays",)
    if not best.plan.decomposed:
        _require_reach(losses, measures, trial(best.plan))
    return best, tries, notes


def _too_lossy(
    costs: Sequence[Budget],
    losses: Sequence[Budget],
    measures: Sequence[Measure],
    tries: Sequence[Mapping[str, float | None]],
) -> str:
    """What is said where every plan within the budgets on costs was measured to lose too much."""
    asked, wanted = ",".join(map(str, costs)), ",".join(map(str, losses))
    least = [min(float(entry[measure.name] or 0.0) for entry in tries) for measure in measures]
    found = ",".join(f"{measure.name}={value:.3g}" for measure, value in zip(measures, least, strict=True))
    return (
        f"--target {asked},{wanted} is out of reach: of the plans with {asked} that were tried, the best has "
        f"{found}"
    )


def _require_reach(losses: Sequence[Budget], measures: Sequence[Measure], made: ir.Model) -> None:
    """Refuse a loss that is passed with every layer kept: by the quantization that comes after."""
    for budget, measure in zip(losses, measures, strict=True):
        used = measure.of(made)
        if used > budget.limit:
            raise QuantizedTooFarError(budget, measure.name, used)


def _wanted_latency(costs: Sequence[Budget], weighed: Survey) -> float | None:
    """The latency over the original's that a budget asks for."""
    for budget in costs:
        if budget.quantity == "latency" and weighed.original_ms:
            return budget.allowed(weighed.original_ms) / weighed.original_ms
    return None


def _missed(chosen: Chosen, wanted: float | None) -> tuple[str, ...]:
    """What is said of a plan that is slower than asked for."""
    if wanted is None or chosen.measured is None or chosen.measured <= wanted:
        return ()
    return (
        f"the target of {1 / wanted:.3g}x in latency was missed: of the plans that were measured, the "
        f"fastest is {1 / chosen.measured:.3g}x as fast as the original",
    )


def _measure(
    budget: Budget,
    model: ir.Model,
    outputs: Outputs,
    calibration: Calibration,
    labelled: Feeds | None,
) -> Measure:
    if budget.quantity == "error":
        # Of the worst output, as the verification counts: a state that is fed back is an output too.
        return Measure(
            "error", lambda made: max(output_errors(made, outputs, calibration), default=0.0) ** 0.5
        )
    assert labelled is not None
    before = accuracy(model, labelled, calibration)
    return Measure("drop", lambda made: before - accuracy(made, labelled, calibration))


def accuracy(model: ir.Model, labelled: Feeds, calibration: Calibration) -> float:
    """The share of samples whose largest score is their label's.

    Raises:
        UsageError: The model's first output is no table of scores with a row per label.
    """
    name = str(model.graph.outputs[0].name)
    taps = open_taps(model, [name], provider=calibration.provider, threads=calibration.threads)
    rows = []
    for feed in labelled.batches(calibration.batch):
        scores = score_rows(taps.run(feed)[0])
        if scores is None:
            raise UsageError(f"the output {name!r} holds no scores of classes: a drop of accuracy is unknown")
        rows.append(scores.argmax(1))
    found = np.concatenate(rows)
    labels = labelled.labels
    if labels is None or len(labels) != len(found):
        raise UsageError(f"{len(found)} rows of scores do not fit the labels")
    return float(np.mean(found == labels))


def _out_of_reach(costs: Sequence[Budget], found: OutOfReach, original: Mapping[str, float]) -> str:
    least = found.least[-len(costs) :] if costs else ()
    reach = ", ".join(
        f"{budget.quantity}={original[budget.quantity] / value:.3g}x"
        for budget, value in zip(costs, least, strict=True)
        if value > 0
    )
    asked = ",".join(map(str, costs))
    within = all(
        value <= budget.allowed(original[budget.quantity]) for budget, value in zip(costs, least, strict=True)
    )
    if within:
        return f"--target {asked} cannot be kept together with the other limits: {found.reason}"
    return f"--target {asked} is out of reach: these methods and layers allow at most {reach}"


def _record(weighed: Survey, chosen: Chosen, tries: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    return {
        "expected": {
            "loss": chosen.loss,
            "bound": chosen.bound,
            "gap": chosen.gap,
            "latency": chosen.latency,
        },
        "measured": {"latency": chosen.measured},
        "original_ms": weighed.original_ms or None,
        "weighed": sum(len(entry.candidates) for entry in weighed.layers),
        "tries": [dict(entry) for entry in tries],
        "frontier": [asdict(point) for point in frontier(weighed)],
        "layers": [
            {
                "layer": entry.site.layer.name,
                "graph": entry.site.layer.graph,
                "macs": entry.dense.macs,
                "part": entry.part or None,
                "effect": [list(point) for point in entry.effect.points],
                "candidates": [
                    {
                        "method": candidate.outline.method.name,
                        "options": method_options(candidate.outline.method),
                        "ranks": list(candidate.outline.ranks),
                        "params": candidate.outline.cost.params,
                        "macs": candidate.outline.cost.macs,
                        "loss": candidate.loss,
                        "output_loss": loss,
                        "part": part,
                    }
                    for candidate, loss, part in zip(
                        entry.candidates,
                        entry.losses(),
                        entry.parts or (None,) * len(entry.candidates),
                        strict=True,
                    )
                ],
            }
            for entry in weighed.layers
            if entry.candidates
        ],
    }
