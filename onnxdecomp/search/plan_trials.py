"""Plans are tried where the goal is a loss: carried out, measured, and chosen anew by what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.deadline import SEARCH, Deadline, passed
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.layer_profiles import Progress
from onnxdecomp.search.metrics.base import LossMetric
from onnxdecomp.search.pareto import macs_left
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.select import Chosen
from onnxdecomp.search.targets import Budget

TRIALS = 6
"""Plans that are tried at most."""

_ENOUGH = 0.8
"""A trial that uses up this share of what may be lost is not improved on."""

_AIM = 0.92
"""The share of what may be lost that the next plan is to use up."""

_EVEN = 0.98
"""The cost of a plan that loses too much, over that of one that does not, above which nothing is to be gained
between the two."""

_FARTHER = 10.0
"""By how much more may be lost, where a little more brings no other plan."""

_NEAREST = 0.2
"""How near to one of two plans, on the way from it to the other, the next one is looked for."""


Tries: TypeAlias = tuple[Mapping[str, float | None], ...]
"""What was expected and found of every plan that was tried."""


class QuantizedTooFarError(UsageError):
    """A loss is passed with every layer kept, by quantization alone.

    Attributes:
        limit, used: What may be lost, and what is.
        of_error: Whether that is the error of the outputs, and not of a metric.
    """

    def __init__(self, budget: Budget, used: float, limit: float | None = None) -> None:
        lost = f"{budget.quantity}={used:.3g}" if budget.sign == "=" else f"lost {used:.3g} of the metric"
        super().__init__(
            f"--target {budget} is out of reach: without any decomposition the quantized model has {lost}"
        )
        self.of_error = budget.quantity == "error"
        self.limit, self.used = budget.limit if limit is None else limit, used


@dataclass(frozen=True, eq=False)
class LossLimit:
    """A loss that is limited, and what measures it.

    Attributes:
        budget: The limit.
        metric: Its metric.
        limit: The most that may be lost, as `measure` tells it.
        measure: Tells how much a model has lost.
    """

    budget: Budget
    metric: LossMetric
    limit: float
    measure: Callable[[ir.Model], float]

    @property
    def allowed(self) -> float:
        """The most that may be measured on calibration inputs."""
        return self.limit * self.metric.margin


@dataclass(frozen=True, eq=False)
class Tried:
    """What came of trying.

    Attributes:
        chosen: The plan.
        tries: What was expected and found of every plan that was tried.
        notes: What a user should know.
        late: The deadline ended it.
    """

    chosen: Chosen
    tries: Tries = ()
    notes: tuple[str, ...] = ()
    late: bool = False


def try_plans(
    pick: Callable[[float | None], Chosen | OutOfReach],
    reached: Callable[[Chosen | OutOfReach], Chosen],
    costs: Sequence[Budget],
    losses: Sequence[LossLimit],
    trial: Callable[[Plan], ir.Model],
    progress: Progress | None,
    deadline: Deadline | None = None,
) -> Tried:
    """The best of some plans that are tried (see `tried_plans`); every layer stays where none is good enough.

    Where the budgets on costs need more loss than is expected to be allowed, the plan that needs least is
    tried, and what is measured of it decides.

    Args:
        pick: The best plan that is expected to lose at most so much; None: that is within the costs.
        reached: Refuses what is out of reach.
        costs, losses: The budgets.
        trial: Carries a plan out.
        progress: Called as the work goes on.
        deadline: No further plan is tried behind its share of the time.

    Raises:
        UsageError: The loss asked for does not go with the budgets on costs: said with what was measured.
    """
    cheapest: list[Chosen] = []

    def within(expected: float) -> Chosen | None:
        found = pick(expected)
        if isinstance(found, OutOfReach) and costs:
            if cheapest:
                return None
            found = pick(None)
            cheapest.append(reached(found))
        return reached(found)

    expected = min(loss.metric.expected(loss.allowed) for loss in losses)
    best, tries = tried_plans(within, losses, trial, expected, progress, deadline=deadline)
    return _best(best, pick, costs, losses, trial, tries, late=passed(deadline, SEARCH))


def tried_plans(
    pick: Callable[[float], Chosen | None],
    losses: Sequence[LossLimit],
    trial: Callable[[Plan], ir.Model],
    start: float,
    progress: Progress | None,
    *,
    below: float = math.inf,
    deadline: Deadline | None = None,
) -> tuple[Chosen | None, Tries]:
    """Plans of rising and falling expected loss, until one uses up what may be lost, and not more.

    What is expected only ranks plans.

    Args:
        pick: The best plan that is expected to lose at most so much; None: there are no more.
        losses, trial, progress, deadline: As for `try_plans`.
        start: The expected loss of the first plan.
        below: Plans are of use that cost less than this (see `cost_left`).

    Returns:
        The cheapest plan that keeps the limits, or None, and what was expected and found of all.
    """
    power = max(loss.metric.power for loss in losses)
    best: Chosen | None = None
    tries: list[dict[str, float | None]] = []
    low, high = _Point(0.0, 0.0, math.inf), _Point(math.inf, math.inf, 0.0)
    expected, known = start, list[Plan]()
    for attempt in range(TRIALS):
        if passed(deadline, SEARCH):
            break
        if progress:
            progress(f"try plan {attempt + 1}", attempt, TRIALS)
        chosen = pick(expected)
        if chosen is None or cost_left(chosen) >= below:
            break
        if not chosen.plan.changes:
            best = best or chosen
            break
        if any(same(chosen.plan, plan) for plan in known):
            if high.expected < math.inf:
                break
            expected *= _FARTHER  # no plan is expected to lose just a little more
            continue
        known.append(chosen.plan)
        made = trial(chosen.plan)
        used = [loss.measure(made) for loss in losses]
        share = max(map(_share, used, (loss.allowed for loss in losses)))
        tries.append(
            {"expected": chosen.loss, "latency": chosen.latency, "macs": macs_left(chosen.plan)}
            | {loss.metric.name: value for loss, value in zip(losses, used, strict=True)}
        )
        point = _Point(chosen.loss, share, cost_left(chosen))
        if share <= 1:
            if point.expected >= low.expected:
                best, low = chosen, point
            if share >= _ENOUGH:
                break
        elif point.expected < high.expected:
            high = point
        if low.expected > 0.85 * high.expected or low.cost * _EVEN < high.cost:
            break
        expected = _between(low, high) or chosen.loss * float(
            np.clip(_AIM / max(share, 1e-3), 0.1, 4.0) ** power
        )
    return best, tuple(tries)


@dataclass(frozen=True)
class _Point:
    """A plan that was tried: its expected loss, the share of what may be lost that it uses up, its cost."""

    expected: float
    share: float
    cost: float


def _between(low: _Point, high: _Point) -> float | None:
    """The expected loss between two plans that should use up _AIM; None where one of them is not known.

    By a straight line through the logarithms, away from both ends: what is measured is no smooth curve.
    """
    if not (low.expected > 0 and high.expected < math.inf):
        return None
    along = 0.5
    if 0 < low.share < high.share < math.inf:
        along = math.log(_AIM / low.share) / math.log(high.share / low.share)
    along = min(max(along, _NEAREST), 1 - _NEAREST)
    return float(low.expected * (high.expected / low.expected) ** along)


def same(one: Plan, other: Plan) -> bool:
    """Whether the same is done to the layers and channels."""
    return (one.decomposed, one.cuts) == (other.decomposed, other.cuts)


def cost_left(chosen: Chosen) -> float:
    """What is expected of a plan's cost over the original's: of what is to be least, timed or counted."""
    if chosen.stored is not None:
        return chosen.stored
    return macs_left(chosen.plan) if chosen.latency is None else chosen.latency


def _share(used: float, allowed: float) -> float:
    """How much of what may be lost is used up."""
    if allowed > 0:
        return used / allowed
    return 0.0 if used <= 0 else math.inf


def _best(
    best: Chosen | None,
    pick: Callable[[float | None], Chosen | OutOfReach],
    costs: Sequence[Budget],
    losses: Sequence[LossLimit],
    trial: Callable[[Plan], ir.Model],
    tries: Sequence[Mapping[str, float | None]],
    *,
    late: bool = False,
) -> Tried:
    """The best plan that was tried; where none was good enough, the one that keeps every layer, if it may."""
    notes: tuple[str, ...] = ()
    if best is None:
        nothing = pick(0.0)
        if isinstance(nothing, OutOfReach):
            if not tries:  # there was no time for any
                raise UsageError(_untried(costs, losses))
            raise UsageError(_too_lossy(costs, losses, tries))
        best = nothing
        if tries or not late:  # else what is said of the time limit is all
            notes = ("no plan that was tried keeps the loss asked for: every layer stays",)
    if not best.plan.changes and not late:
        _require_reach(losses, trial(best.plan))
    return Tried(best, tuple(tries), notes, late)


def _untried(costs: Sequence[Budget], losses: Sequence[LossLimit]) -> str:
    """What is said where the time was over before a plan within the budgets on costs was tried."""
    asked = ",".join([*map(str, costs), *(str(loss.budget) for loss in losses)])
    return f"--time-limit: the time was over before a plan for --target {asked} was tried; give more"


def _too_lossy(
    costs: Sequence[Budget], losses: Sequence[LossLimit], tries: Sequence[Mapping[str, float | None]]
) -> str:
    """What is said where every plan within the budgets on costs was measured to lose too much."""
    asked, wanted = ",".join(map(str, costs)), ",".join(str(loss.budget) for loss in losses)
    names = [loss.metric.name for loss in losses]
    least = [min(float(entry[name] or 0.0) for entry in tries) for name in names]
    found = ",".join(
        f"{'a drop of the metric of ' if name == 'metric' else f'{name}='}{value:.3g}"
        for name, value in zip(names, least, strict=True)
    )
    return (
        f"--target {asked},{wanted} is out of reach: of the plans with {asked} that were tried, the best has "
        f"{found}"
    )


def _require_reach(losses: Sequence[LossLimit], made: ir.Model) -> None:
    """Refuse a loss that is passed with every layer kept: by the quantization that comes after."""
    for loss in losses:
        used = loss.measure(made)
        if used > loss.limit:
            raise QuantizedTooFarError(loss.budget, used, loss.limit)
