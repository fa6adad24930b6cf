"""Plans with cuts are tried beside those without: the better one is taken."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.search.cut_trials import (
    CUTS_ALONE,
    NO_GAIN,
    cheaper_without_cuts,
    doubted,
    try_fewer_cuts,
    whole_channels,
    whole_layers,
)
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.layer_profiles import profile_layers
from onnxdecomp.search.pareto import macs_left
from onnxdecomp.search.plan import Choice, Cost, Cut, Plan
from onnxdecomp.search.plan_trials import QuantizedTooFarError, Tried, Tries, cost_left
from onnxdecomp.search.scope import Scope
from onnxdecomp.search.select import Chosen
from onnxdecomp.search.targets import parse_budgets
from tests.search.test_channel_profiles import branches, calibration, chosen, opened
from tests.search.test_select import search

CHAINS = Plan((Choice("a", "", "Conv", method="svd", ranks=(4,), before=Cost(9, 9), after=Cost(4, 4)),))
KEPT = Plan((Choice("a", "", "Conv", before=Cost(9, 9)),))
CUTS = replace(CHAINS, channels=(Cut("a", "width", 4, 8, ("a",), ("b",)),))
OTHER_CUTS = replace(CHAINS, channels=(Cut("a", "width", 2, 8, ("a",), ("b",)),))


def tried(
    with_cuts: float, without: float, speeds: tuple[float, float] = (0.5, 0.5), wanted: float | None = None
) -> tuple[Tried, list[Plan]]:
    """What is chosen where plans have these errors and measured latencies, and the plans that were tried."""
    asked: list[Plan] = []
    first, second = (
        Chosen(plan, loss, 0.0, 0.0, None, measured)
        for plan, loss, measured in zip((CUTS, CHAINS), (0.1, 0.2), speeds, strict=True)
    )

    def error(plan: Plan) -> float:
        asked.append(plan)
        return with_cuts if plan is CUTS else without

    return try_fewer_cuts(first, [lambda: first, lambda: second], error, wanted=wanted), asked


@pytest.mark.parametrize(
    ("with_cuts", "without", "plan"),
    [
        (0.1, 0.2, CUTS),
        (0.2, 0.1, CHAINS),
        (0.1, 0.0995, CUTS),
        (float("nan"), 0.2, CHAINS),
        (0.2, float("nan"), CUTS),
    ],
)
def test_the_plan_of_less_error_is_taken(with_cuts: float, without: float, plan: Plan) -> None:
    found, asked = tried(with_cuts, without)
    assert found.chosen.plan is plan
    assert asked == [CUTS, CHAINS]
    assert [entry["macs"] for entry in found.tries] == [4 / 9, 4 / 9]
    assert [set(entry) for entry in found.tries] == [{"expected", "latency", "macs", "error"}] * 2


@pytest.mark.parametrize(("error", "wins"), [(0.108, True), (0.112, False), (0.09, True)])
@pytest.mark.parametrize("first", [True, False])
def test_cuts_alone_may_lose_a_little_more(error: float, wins: bool, first: bool) -> None:
    """They add no node, and what a trial finds is no more exact than that."""
    alone = replace(CUTS, choices=KEPT.choices)
    plans = (alone, CUTS) if first else (CUTS, alone)
    own, other = (Chosen(plan, 0.1, 0.0, 0.0, None) for plan in plans)
    found = try_fewer_cuts(own, [lambda: other], lambda plan: error if plan is alone else 0.1)
    assert (found.chosen.plan is alone) == wins


def test_a_plan_that_is_too_slow_does_not_win() -> None:
    for speeds, plan in (((0.5, 0.7), CUTS), ((0.7, 0.5), CHAINS)):
        found, asked = tried(0.2, 0.1, speeds, wanted=0.6)
        assert found.chosen.plan is plan
        assert not asked
    assert tried(0.1, 0.2, (0.7, 0.8), wanted=0.6)[0].chosen.plan is CUTS


def test_what_is_expected_to_lose_far_more_is_not_tried() -> None:
    """Losses that are added up are too high by other factors for cuts than for chains, within bounds."""
    asked: list[Plan] = []

    def error(plan: Plan) -> float:
        asked.append(plan)
        return 0.1

    cuts = Chosen(CUTS, 0.1, 0.0, 0.0, None)
    assert try_fewer_cuts(cuts, [lambda: replace(cuts, plan=CHAINS, loss=0.9)], error).chosen is cuts
    assert not asked
    try_fewer_cuts(cuts, [lambda: replace(cuts, plan=CHAINS, loss=0.7)], error)
    assert asked == [CUTS, CHAINS]


@pytest.mark.parametrize(("without", "plan"), [(0.1015, CHAINS), (0.09, CHAINS), (0.103, CUTS)])
def test_cuts_that_gain_next_to_nothing_are_not_worth_a_trial(without: float, plan: Plan) -> None:
    asked: list[Plan] = []

    def error(plan: Plan) -> float:
        asked.append(plan)
        return 0.1 if plan is CUTS else 0.2

    cuts = Chosen(CUTS, 0.1, 0.0, 0.0, None)
    found = try_fewer_cuts(cuts, [lambda: replace(cuts, plan=CHAINS, loss=without)], error)
    assert found.chosen.plan is plan
    assert asked == ([] if plan is CHAINS else [CUTS, CHAINS])


def test_cuts_alone_that_may_be_as_good_are_tried() -> None:
    """They are taken where they lose hardly more than others."""
    alone = replace(CUTS, choices=KEPT.choices)
    cuts, *others = (
        Chosen(plan, loss, 0.0, 0.0, None) for plan, loss in ((CUTS, 0.1), (CHAINS, 0.1), (alone, 0.19))
    )
    found = try_fewer_cuts(cuts, [partial(lambda own: own, own) for own in others], lambda plan: 0.1)
    assert found.chosen.plan is alone


def test_nothing_is_tried_where_there_is_no_choice() -> None:
    def error(plan: Plan) -> float:
        raise AssertionError(plan)

    chains = Chosen(CHAINS, 0.1, 0.0, 0.0, None)
    assert try_fewer_cuts(chains, [lambda: chains], error).chosen is chains
    cuts = replace(chains, plan=CUTS)
    assert try_fewer_cuts(cuts, [lambda: OutOfReach("no chain saves so much", ())], error).chosen is cuts


@pytest.mark.parametrize(
    ("second", "expected", "asked"),
    [(CHAINS, 0.096, True), (CHAINS, 0.107, False), (OTHER_CUTS, 0.098, True)],
)
def test_what_would_lose_far_more_is_not_tried(second: Plan, expected: float, asked: bool) -> None:
    """The squared errors are 0.02 and 0.01, a half and about a quarter of what was expected."""
    plans: list[Plan] = []
    squared = [0.02, 0.01, 0.1]

    def error(plan: Plan) -> float:
        plans.append(plan)
        return math.sqrt(squared[len(plans) - 1])

    alone = replace(CUTS, choices=KEPT.choices)
    first, *others = (
        Chosen(plan, loss, 0.0, 0.0, None)
        for plan, loss in ((CUTS, 0.04), (second, 0.043), (alone, expected))
    )
    try_fewer_cuts(first, [partial(lambda found: found, own) for own in others], error)
    assert (alone in plans) == asked


def test_those_in_between_come_last_and_must_promise_more() -> None:
    """What cuts and chains alone have shown bounds what both together do."""
    mixed = replace(CUTS, channels=OTHER_CUTS.channels)
    for expected, count in ((0.1, 3), (0.14, 2)):
        asked: list[Plan] = []

        def error(plan: Plan, asked: list[Plan] = asked) -> float:
            asked.append(plan)
            return 0.12 if plan is CHAINS else 0.1

        first, *others = (
            Chosen(plan, loss, 0.0, 0.0, None)
            for plan, loss in ((CUTS, 0.1), (mixed, expected), (CHAINS, 0.14))
        )
        try_fewer_cuts(first, [partial(lambda found: found, own) for own in others], error)
        assert asked == [CUTS, CHAINS, mixed][:count]


def cheaper(with_cuts: Tried | UsageError, alone: Tried | UsageError, bold: float = 0.1) -> Tried:
    """The choice where plans of chains alone that lose more would be of this latency."""

    def either(found: Tried | UsageError) -> Tried:
        if isinstance(found, UsageError):
            raise found
        return found

    def below(start: float, below: float) -> tuple[Chosen | None, Tries]:
        found, chosen = either(alone), either(with_cuts).chosen
        assert (start, below) == (chosen.loss, chosen.latency)
        useful = found.chosen.plan.changes and cost_left(found.chosen) < below
        return (found.chosen if useful else None), found.tries

    def pick(loss: float | None) -> Chosen:
        return Chosen(CHAINS, 0.1, 0.0, 0.0, bold)

    return cheaper_without_cuts(lambda: either(with_cuts), lambda: either(alone), below, pick)


def test_where_the_loss_is_the_goal_the_cheaper_plan_is_taken() -> None:
    def plan(plan: Plan, latency: float) -> Tried:
        return Tried(Chosen(plan, 0.1, 0.0, 0.0, latency), ({"latency": latency},))

    cuts, missed = plan(CUTS, 0.7), UsageError("out of reach")
    assert cheaper(cuts, plan(CHAINS, 0.6)).chosen.plan is CHAINS
    assert cheaper(cuts, plan(CHAINS, 0.6)).tries == ({"latency": 0.7}, {"latency": 0.6})
    assert cheaper(cuts, plan(CHAINS, 0.8)).chosen.plan is CUTS
    # Where bolder plans of chains alone are no cheaper, none is tried.
    assert cheaper(cuts, plan(CHAINS, 0.6), bold=0.7) is cuts
    chains = plan(CHAINS, 0.7)
    assert cheaper(chains, plan(CHAINS, 0.6)) is chains
    nothing = Tried(Chosen(KEPT, 0.0, 0.0, 0.0, 1.0))
    assert cheaper(nothing, plan(CHAINS, 0.6)).chosen.plan is CHAINS
    assert cheaper(nothing, missed) is nothing
    assert cheaper(cuts, nothing).chosen.plan is CUTS
    assert cheaper(missed, plan(CHAINS, 0.6)).chosen.plan is CHAINS
    with pytest.raises(UsageError, match="out of reach"):
        cheaper(missed, missed)
    with pytest.raises(QuantizedTooFarError):
        cheaper(QuantizedTooFarError(parse_budgets("error=0.1")[0], 0.2), plan(CHAINS, 0.6))


def test_the_first_of_the_bolder_plans_that_costs_less_is_tried() -> None:
    asked: list[float] = []

    def below(start: float, below: float) -> tuple[Chosen | None, Tries]:
        asked.append(start)
        return None, ()

    def pick(loss: float | None) -> Chosen:
        assert loss is not None
        return Chosen(CHAINS, loss, 0.0, 0.0, 0.8 - loss)

    tried = Tried(Chosen(CUTS, 0.1, 0.0, 0.0, 0.6))
    assert cheaper_without_cuts(lambda: tried, lambda: tried, below, pick).chosen is tried.chosen
    assert asked == [pytest.approx(0.25)]


def test_fewer_channels_are_cut_where_it_counts_more() -> None:
    found, matched, channels = opened(branches())
    scope = Scope(methods=("svd",), skip_below=0.0)
    profiles = profile_layers(found, matched, scope, calibration(), channels=channels)
    assert chosen(profiles, "params=1.2x").plan.cuts
    fewer = chosen(doubted(profiles, 100.0), "params=1.2x").plan
    assert len(fewer.cuts) < len(chosen(profiles, "params=1.2x").plan.cuts)
    whole = chosen(whole_channels(profiles), "params=1.2x").plan
    assert whole.choices == chosen(replace(profiles, channels=()), "params=1.2x").plan.choices
    assert {cut.reason for cut in whole.channels} == {NO_GAIN}
    first, *others = profiles.channels
    mixed = replace(profiles, channels=(replace(first, method="attention"), *others))
    without, *same = whole_channels(mixed, ("attention",)).channels
    assert (len(without.levels), without.reason, same) == (1, NO_GAIN, others)


def test_a_search_tries_its_cuts() -> None:
    plan, record = search("macs=3x", method="svd,width")
    assert 2 <= len(record.tries) <= 4
    errors = {float(entry["macs"] or 0.0): float(entry["error"] or 0.0) for entry in record.tries}
    assert 0.99 * errors[macs_left(plan)] <= min(errors.values())
    assert {cut.reason == NO_GAIN for cut in plan.channels if cut.method is None} <= {not plan.cuts}


def test_a_plan_of_cuts_alone_has_no_chains() -> None:
    found, matched, channels = opened(branches())
    scope = Scope(methods=("svd",), skip_below=0.0)
    profiles = profile_layers(found, matched, scope, calibration(), channels=channels)
    assert chosen(whole_channels(profiles), "macs=2x").plan.decomposed
    alone = chosen(whole_layers(profiles), "macs=2x").plan
    assert alone.cuts
    assert not alone.decomposed
    assert CUTS_ALONE in {choice.reason for choice in alone.choices}


def test_a_search_for_a_loss_keeps_it_and_is_no_dearer_than_chains_alone() -> None:
    plan, record = search("error=0.1", method="svd,width")
    alone, _ = search("error=0.1", method="svd")
    assert macs_left(plan) <= 1.02 * macs_left(alone)
    assert any(0 < float(entry["error"] or 0.0) <= 0.1 for entry in record.tries)
