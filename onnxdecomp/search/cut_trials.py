"""Whether cuts of channels pay beside chains: tried.

Before layers are fitted to each other, losses that are added up are too high, and not by the same factor for
cuts as for chains: the sum that chooses between the two may be wrong. So plans are carried out with cuts,
with fewer, without those of attention, without any, and without chains, and inputs that they were not fitted
to decide: which loses least, where the goal is a cost, or which costs less, where it is a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from onnxdecomp.decompositions.joint import CUTS
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.deadline import SEARCH, Deadline, passed
from onnxdecomp.search.channel_profiles import ChannelProfile
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.layer_profiles import LayerProfile, LayerProfiles, Progress
from onnxdecomp.search.pareto import macs_left
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.plan_trials import QuantizedTooFarError, Tried, Tries, cost_left, same
from onnxdecomp.search.select import Chosen
from onnxdecomp.search.sensitivity import Effect

NO_GAIN = "tried without cuts, the plan lost less"
"""Why channels stay whole that could have been cut."""

CUTS_ALONE = "tried with cuts alone, the plan lost less"
"""Why layers stay that could have become chains."""

DOUBT = 3.0
"""Times that losses of cuts count where less of them is expected."""

_TIMES = (1.0, 1.6, 2.5, 4.0)
"""Expected losses may be too low by these factors for cuts, seen beside those of chains."""

_HOPELESS = 2 * _TIMES[-1]
"""A plan that is expected to lose more than so many times what another one loses is not tried."""

_BEATEN, _MIXED = 2.0, 1.25
"""Times the least squared error that a plan would have even by the most favourable of the ratios found: of
one kind alone, and of cuts and chains together, which lies between those."""

_ALIKE = 1.02
"""Up to so many times the least expected loss a plan without cuts is taken, and nothing is tried: cuts that
gain less than that are worth neither the trials nor the doubt. Not where cuts alone may be as good."""

_OPEN = 2.0
"""Up to so many times the least expected loss a plan of cuts alone may be as good as others."""

_EQUAL = 0.99
"""A plan with fewer cuts must have less than this share of the error of the others."""

_SIMPLER = 1.1
"""So many times the error of others a plan of cuts alone may have: it adds no node, quantizes as the original
does, and what hasty fits lose is no more exact than that."""


def whole_channels(profiles: LayerProfiles, methods: Collection[str] = tuple(CUTS)) -> LayerProfiles:
    """The same where these methods may cut no channel."""

    def whole(entry: ChannelProfile) -> ChannelProfile:
        if entry.method not in methods:
            return entry
        return replace(entry, levels=entry.levels[:1], reason=entry.reason or NO_GAIN)

    return replace(profiles, channels=tuple(map(whole, profiles.channels)))


def whole_layers(profiles: LayerProfiles) -> LayerProfiles:
    """The same where no layer may become a chain."""

    def whole(entry: LayerProfile) -> LayerProfile:
        return replace(entry, candidates=(), parts=(), reason=entry.reason or CUTS_ALONE)

    return replace(profiles, layers=tuple(map(whole, profiles.layers)), groups=())


def doubted(profiles: LayerProfiles, times: float = DOUBT) -> LayerProfiles:
    """The same where what channels lose counts so many times as much."""

    def doubtful(entry: ChannelProfile) -> ChannelProfile:
        points = tuple((loss, times * error) for loss, error in entry.effect.points)
        return replace(entry, effect=Effect(points))

    return replace(profiles, channels=tuple(map(doubtful, profiles.channels)))


def try_fewer_cuts(
    chosen: Chosen,
    others: Sequence[Callable[[], Chosen | OutOfReach]],
    error: Callable[[Plan], float],
    *,
    wanted: float | None = None,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
    ahead: Callable[[Sequence[Plan]], AbstractContextManager[object]] = nullcontext,
) -> Tried:
    """The best of a plan and others, with fewer cuts or with nothing else.

    Where a plan without cuts is expected to lose as little, it is taken, and nothing is tried. By how much
    expected losses are too high for cuts and for chains is known as soon as a plan without cuts was carried
    out as well: that is the second. After it those of less expected loss come first, and those are not tried
    which would lose more than the best of them.

    Args:
        chosen: The plan; where it cuts nothing, nothing is tried.
        others: Pick the best plans within the same budgets where cuts count more, or they or chains are not
            allowed.
        error: The relative error of the output where a plan is carried out.
        wanted: The latency over the original's that is asked for. A plan that was measured to be slower
            does not win against one that is not.
        progress: Called as the work goes on.
        deadline: No further plan is tried behind its share of the time.
        ahead: Begins with all of the plans elsewhere, as long as the block lasts.
    """
    if not chosen.plan.cuts:
        return Tried(chosen)
    plans = [chosen]
    for pick in others:
        found = pick()
        if not isinstance(found, OutOfReach) and not any(same(found.plan, own.plan) for own in plans):
            plans.append(found)
    fast = [own for own in plans if not _slow(own, wanted)] or plans
    fast = [own for own in fast if own.loss <= _HOPELESS * min(other.loss for other in fast)]
    if len(fast) == 1:
        return Tried(fast[0])
    expected = min(own.loss for own in fast)
    alone = any(not own.plan.decomposed and own.loss <= _OPEN * expected for own in fast)
    for own in () if alone else fast:
        if not own.plan.cuts and own.loss <= _ALIKE * expected:
            return Tried(own)
    first, *rest = fast
    fast = [first, *sorted(rest, key=lambda own: (bool(own.plan.cuts), own.loss))]
    tries: list[Mapping[str, float | None]] = []
    best, least, late = first, math.inf, False
    ratios: list[float] = []
    known = False  # of both kinds
    with ahead([own.plan for own in fast]):
        for own in fast:
            if late := passed(deadline, SEARCH):
                break
            allowed = 1.0 if own.plan.decomposed else _SIMPLER
            beaten = _MIXED if own.plan.cuts and own.plan.decomposed else _BEATEN
            if known and min(ratios) * own.loss > beaten * (allowed * least) ** 2:
                continue
            if progress:
                progress(f"try the plan with {len(own.plan.cuts)} cuts", len(tries), len(fast))
            value = error(own.plan)
            tries.append(_entry(own, value))
            ratios.append(value**2 / own.loss if own.loss > 0 else 0.0)
            known = known or not own.plan.cuts
            if value < (_EQUAL * allowed * least if tries[1:] else math.inf):
                best, least = own, value / allowed
    return Tried(best, tuple(tries), late=late)


def cheaper_without_cuts(
    found: Callable[[], Tried],
    alone: Callable[[], Tried],
    tried_alone: Callable[[float, float], tuple[Chosen | None, Tries]],
    pick: Callable[[float | None], Chosen | OutOfReach],
) -> Tried:
    """The cheaper of two plans that lose as much as may be lost, with and without cuts.

    Args:
        found: Tries plans.
        alone: Likewise, of those that cut nothing.
        tried_alone: The same from one on of such an expected loss, as long as they cost less than so much.
        pick: The plan of these that is expected to lose at most so much.

    Raises:
        UsageError: Of `found`, where `alone` raises it as well.
    """
    try:
        tried = found()
    except QuantizedTooFarError:
        raise
    except UsageError:
        return alone()
    chosen = tried.chosen
    if not chosen.plan.changes:
        try:
            other = alone()
        except UsageError:
            return tried
        better = other.chosen.plan.changes and cost_left(other.chosen) < cost_left(chosen)
        return replace(other if better else tried, tries=(*tried.tries, *other.tries))
    if not chosen.plan.cuts:
        return tried
    # What is worth trying costs less: the plan of least expected loss that does comes first.
    for times in _TIMES:
        plan = pick(times * chosen.loss)
        if not isinstance(plan, OutOfReach) and cost_left(plan) < cost_left(chosen):
            best, tries = tried_alone(times * chosen.loss, cost_left(chosen))
            return Tried(best or chosen, (*tried.tries, *tries), () if best else tried.notes)
    return tried


def _slow(chosen: Chosen, wanted: float | None) -> bool:
    return wanted is not None and chosen.measured is not None and chosen.measured > wanted


def _entry(chosen: Chosen, error: float) -> Mapping[str, float | None]:
    left = macs_left(chosen.plan)
    return {"expected": chosen.loss, "latency": chosen.latency, "macs": left, "error": error}
