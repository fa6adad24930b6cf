"""Whether cuts of channels pay beside chains: tried.

Before layers are fitted to each other, losses that are added up are too high, and not by the same factor for
cuts as for chains: the sum that chooses between the two may be wrong. So the plan is carried out with and
without its cuts, and inputs that neither was fitted to decide: which loses less, where the goal is a cost, or
which costs less, where it is a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from onnxdecomp.errors import UsageError
from onnxdecomp.search.channel_profiles import ChannelProfile
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.layer_profiles import LayerProfiles, Progress
from onnxdecomp.search.pareto import macs_left
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.plan_trials import QuantizedTooFarError, Tried
from onnxdecomp.search.select import Chosen

NO_GAIN = "tried without cuts, the plan lost less"
"""Why channels stay whole that could have been cut."""

_OPTIMISM = 4.0
"""Expected losses may be too low by this factor for cuts, seen beside those of chains."""

_EQUAL = 0.99
"""A plan without cuts must have less than this share of the error of the other."""


def whole_channels(profiles: LayerProfiles) -> LayerProfiles:
    """The same where no channel may be cut."""

    def whole(entry: ChannelProfile) -> ChannelProfile:
        return replace(entry, levels=entry.levels[:1], reason=entry.reason or NO_GAIN)

    return replace(profiles, channels=tuple(map(whole, profiles.channels)))


def try_without_cuts(
    chosen: Chosen,
    alone: Callable[[], Chosen | OutOfReach],
    error: Callable[[Plan], float],
    *,
    wanted: float | None = None,
    progress: Progress | None = None,
) -> Tried:
    """The better of a plan and the one without cuts.

    Args:
        chosen: The plan; where it cuts nothing, nothing is tried.
        alone: The best plan within the same budgets that cuts nothing.
        error: The relative error of the output where a plan is carried out.
        wanted: The latency over the original's that is asked for. A plan that was measured to be slower
            does not win against one that is not.
        progress: Called as the work goes on.
    """
    if not chosen.plan.cuts:
        return Tried(chosen)
    other = alone()
    if isinstance(other, OutOfReach) or (_slow(other, wanted) and not _slow(chosen, wanted)):
        return Tried(chosen)
    errors: list[float] = []
    for done, own in enumerate((chosen, other)):
        if progress:
            progress("try the plan " + ("without cuts" if done else "with cuts"), done, 2)
        errors.append(error(own.plan))
    tries = tuple(_entry(own, value) for own, value in zip((chosen, other), errors, strict=True))
    faster = _slow(chosen, wanted) and not _slow(other, wanted)
    return Tried(other if faster or _worse(errors) else chosen, tries)


def cheaper_without_cuts(
    found: Callable[[], Tried],
    alone: Callable[[float | None], Tried],
    pick: Callable[[float | None], Chosen | OutOfReach],
) -> Tried:
    """The cheaper of two plans that lose as much as may be lost, with and without cuts.

    Args:
        found: Tries plans.
        alone: Likewise, of those that cut nothing, from one on of such an expected loss.
        pick: The plan of these that is expected to lose at most so much.

    Raises:
        UsageError: Of `found`, where `alone` raises it as well.
    """
    try:
        tried = found()
    except QuantizedTooFarError:
        raise
    except UsageError:
        return alone(None)
    if tried.chosen.plan.changes:
        bold = pick(_OPTIMISM * tried.chosen.loss)
        if not tried.chosen.plan.cuts or isinstance(bold, OutOfReach) or _cost(bold) >= _cost(tried.chosen):
            return tried
    try:
        other = alone(tried.chosen.loss or None)
    except UsageError:
        return tried
    tries = (*tried.tries, *other.tries)
    better = other.chosen.plan.changes and _cost(other.chosen) < _cost(tried.chosen)
    return replace(other if better else tried, tries=tries)


def _cost(chosen: Chosen) -> float:
    return macs_left(chosen.plan) if chosen.latency is None else chosen.latency


def _worse(errors: Sequence[float]) -> bool:
    """Whether the second of two errors is smaller by what counts."""
    first, second = errors
    return math.isfinite(second) and not first * _EQUAL <= second


def _slow(chosen: Chosen, wanted: float | None) -> bool:
    return wanted is not None and chosen.measured is not None and chosen.measured > wanted


def _entry(chosen: Chosen, error: float) -> Mapping[str, float | None]:
    left = macs_left(chosen.plan)
    return {"expected": chosen.loss, "latency": chosen.latency, "macs": left, "error": error}
