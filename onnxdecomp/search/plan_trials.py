"""Plans are tried where the goal is a loss: carried out, measured, and chosen anew by what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.errors import UsageError
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


class QuantizedTooFarError(UsageError):
    """A loss is passed with every layer kept, by quantization alone.

    Attributes:
        limit, used: What may be lost, and what is.
    """

    def __init__(self, budget: Budget, used: float) -> None:
        super().__init__(
            f"--target {budget} is out of reach: without any decomposition the quantized model has "
            f"{budget.quantity}={used:.3g}"
        )
        self.limit, self.used = budget.limit, used


@dataclass(frozen=True, eq=False)
class LossLimit:
    """A loss that is limited, and what measures it.

    Attributes:
        budget: The limit.
        metric: Its metric.
        measure: Tells how much a model has lost.
    """

    budget: Budget
    metric: LossMetric
    measure: Callable[[ir.Model], float]

    @property
    def allowed(self) -> float:
        """The most that may be measured on calibration inputs."""
        return self.budget.limit * self.metric.margin


@dataclass(frozen=True, eq=False)
class Tried:
    """What came of trying.

    Attributes:
        chosen: The plan.
        tries: What was expected and found of every plan that was tried.
        notes: What a user should know.
    """

    chosen: Chosen
    tries: tuple[Mapping[str, float | None], ...] = ()
    notes: tuple[str, ...] = ()


def try_plans(
    pick: Callable[[float | None], Chosen | OutOfReach],
    reached: Callable[[Chosen | OutOfReach], Chosen],
    costs: Sequence[Budget],
    losses: Sequence[LossLimit],
    trial: Callable[[Plan], ir.Model],
    progress: Progress | None,
    *,
    start: float | None = None,
) -> Tried:
    """Plans of rising and falling expected loss, until one uses up what may be lost, and not more.

    What is expected only ranks plans. Where the budgets on costs need more loss than is expected to be
    allowed, the plan that needs least is tried, and what is measured of it decides.

    Args:
        pick: The best plan that is expected to lose at most so much; None: that is within the costs.
        reached: Refuses what is out of reach.
        costs, losses: The budgets.
        trial: Carries a plan out.
        progress: Called as the work goes on.
        start: The expected loss of the first plan; None: by what the limits say.

    Raises:
        UsageError: The loss asked for does not go with the budgets on costs: said with what was measured.
    """
    expected = start or min(loss.metric.expected(loss.allowed) for loss in losses)
    power = max(loss.metric.power for loss in losses)
    best: Chosen | None = None
    tries: list[dict[str, float | None]] = []
    low, high = 0.0, math.inf
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
        if not chosen.plan.changes:
            best = best or chosen
            break
        made = trial(chosen.plan)
        used = [loss.measure(made) for loss in losses]
        share = max(map(_share, used, (loss.allowed for loss in losses)))
        tries.append(
            {"expected": chosen.loss, "latency": chosen.latency, "macs": macs_left(chosen.plan)}
            | {loss.metric.name: value for loss, value in zip(losses, used, strict=True)}
        )
        if share <= 1:
            best, low = chosen, max(low, chosen.loss)
            if share >= _ENOUGH:
                break
        else:
            high = min(high, chosen.loss)
        expected = chosen.loss * float(np.clip(0.92 / max(share, 1e-3), 0.1, 4.0)) ** power
        if low > 0 and high < math.inf and not low < expected < high:
            expected = float(np.sqrt(low * high))
        if high < math.inf and low > 0.85 * high:
            break
    return _best(best, pick, costs, losses, trial, tries)


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
) -> Tried:
    """The best plan that was tried; where none was good enough, the one that keeps every layer, if it may."""
    notes: tuple[str, ...] = ()
    if best is None:
        nothing = pick(0.0)
        if isinstance(nothing, OutOfReach):
            raise UsageError(_too_lossy(costs, losses, tries))
        best = nothing
        notes = ("no plan that was tried keeps the loss asked for: every layer stays",)
    if not best.plan.changes:
        _require_reach(losses, trial(best.plan))
    return Tried(best, tuple(tries), notes)


def _too_lossy(
    costs: Sequence[Budget], losses: Sequence[LossLimit], tries: Sequence[Mapping[str, float | None]]
) -> str:
    """What is said where every plan within the budgets on costs was measured to lose too much."""
    asked, wanted = ",".join(map(str, costs)), ",".join(str(loss.budget) for loss in losses)
    names = [loss.metric.name for loss in losses]
    least = [min(float(entry[name] or 0.0) for entry in tries) for name in names]
    found = ",".join(f"{name}={value:.3g}" for name, value in zip(names, least, strict=True))
    return (
        f"--target {asked},{wanted} is out of reach: of the plans with {asked} that were tried, the best has "
        f"{found}"
    )


def _require_reach(losses: Sequence[LossLimit], made: ir.Model) -> None:
    """Refuse a loss that is passed with every layer kept: by the quantization that comes after."""
    for loss in losses:
        used = loss.measure(made)
        if used > loss.budget.limit:
            raise QuantizedTooFarError(loss.budget, used)
