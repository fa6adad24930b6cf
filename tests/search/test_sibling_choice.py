"""Searches over siblings: a group is decomposed at one rank or not at all, and costs what it costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.channels import find_channels
from onnxdecomp.decompositions.shared import Shared
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.siblings import siblings
from onnxdecomp.layers.tied_weights import ties
from onnxdecomp.search.channel_costs import behind_cuts
from onnxdecomp.search.joint_options import joint_options
from onnxdecomp.search.knapsack import Option, OutOfReach
from onnxdecomp.search.layer_profiles import profile_layers
from onnxdecomp.search.plan import Choice, Cost, Plan
from onnxdecomp.search.scope import Scope
from onnxdecomp.search.search_record import (
    CandidateRecord,
    Expected,
    LayerCandidates,
    Measured,
    SearchRecord,
)
from onnxdecomp.search.sensitivity import Effect
from onnxdecomp.search.sibling_candidates import Relatives, SiblingOutlines, sibling_outlines
from onnxdecomp.search.sibling_choice import Agreement, Mode, allocate_agreeing
from onnxdecomp.search.tighten import tighter
from onnxdecomp.workflow import compress
from onnxdecomp.workflow.latency_guard import _gains
from onnxdecomp.workflow.result import Result
from tests.builders.feeds import calibration
from tests.builders.graphs import loaded
from tests.search.test_sibling_groups import FEEDS, QKV, attention, error, grouped


@cache
def searched(method: str, target: str) -> Result:
    return compress.compress(
        attention(), bench=False, verify=False, simplify="none", method=method, target=target, calib=FEEDS
    )


@pytest.mark.parametrize("target", ["macs=1.5x", "params=2x"])
def test_a_search_gives_siblings_one_factor_where_that_loses_least(target: str) -> None:
    shared, alone = searched("svd,shared", target), searched("svd", target)
    assert grouped(shared.plan) == list(QKV)
    assert len({choice.ranks for choice in shared.plan.decomposed if choice.group}) == 1
    what, factor = target.rstrip("x").split("=")
    assert shared.record["totals"][what]["ratio"] >= float(factor)
    assert error(shared.model) < 0.9 * error(alone.model)
    weighed = {layer["layer"]: layer["candidates"] for layer in shared.record["search"]["layers"]}
    assert {name: {c["method"] for c in own} for name, own in weighed.items()} == {
        **{key: {"svd", "shared"} for key in QKV},
        "o": {"svd"},
    }
    expected = shared.record["search"]["expected"]
    assert expected["gap"] <= 1e-9 * expected["loss"]


def test_siblings_behind_cuts_cost_in_a_search_what_they_cost_in_a_plan() -> None:
    """The first factor once, at a rank that one of them alone could not have."""
    model = loaded(attention())
    matched = find(model)[0]
    scope = Scope(methods=("svd", "shared"), cuts=("width", "attention"), skip_below=0.0)
    channels = find_channels(model, matched)[0]
    weighed = profile_layers(model, matched, scope, calibration(FEEDS), channels=channels)
    options = joint_options(weighed)
    assert {entry.channel.name for entry in options.channels} >= {"q", "v"}
    beyond = 0
    for (pick,) in itertools.chain(*options.decisions):
        entry = weighed.layers[pick.place]
        candidate = None if pick.candidate is None else entry.candidates[pick.candidate]
        if candidate is None or not candidate.group:
            continue
        narrow = options.narrowed(pick.place)
        method, first = candidate.outline.method, weighed.layers[candidate.group[0]].match.layer.name
        choice = Choice(
            *(entry.match.layer.name, "", "MatMul", method.name, {}, candidate.outline.ranks),
            before=entry.dense,
            group=first,
        )
        for levels in itertools.product(*map(range, narrow.shape)):
            layer = narrow.layer(levels)
            exact = options.exactly(pick, dict(zip(narrow.channels, levels, strict=True)))
            after = behind_cuts(choice, layer if any(levels) else entry.match.layer).after
            assert after is not None
            assert exact.macs == after.macs
            beyond += candidate.outline.ranks[0] > layer.outputs
    assert beyond


def test_what_takes_siblings_alone_leaves_the_others() -> None:
    result = searched("shared", "macs=1.5x")
    assert grouped(result.plan) == list(QKV)
    reasons = {choice.layer: choice.reason for choice in result.plan.choices}
    assert reasons["o"] == "no other layer of its kind reads its activation"


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[Option]], list[Agreement], list[float]]:
    numbers = st.integers(0, 9).map(float)
    count = draw(st.integers(1, 4))
    budgets = draw(st.integers(1, 2))
    items = [
        [Option((0.0,) * budgets, 9.0)]
        + [
            Option(tuple(draw(numbers) for _ in range(budgets)), draw(numbers))
            for _ in range(draw(st.integers(1, 3)))
        ]
        for _ in range(count)
    ]
    members = sorted(draw(st.sets(st.integers(0, count - 1), max_size=count)))
    agreements = []
    if len(members) > 1:
        # All of them at two ranks, or all but the last.
        known: list[Mode] = [(tuple(members), (1,)), (tuple(members), (2,)), (tuple(members[:-1]), (1,))]
        modes = {
            m: [
                None,
                *(draw(st.sampled_from([None, *(k for k in known if m in k[0])])) for _ in items[m][1:]),
            ]
            for m in members
        }
        agreements.append(Agreement(modes, {mode: mode[0] for mode in known}))
    return items, agreements, [draw(st.integers(0, 20).map(float)) for _ in range(budgets)]


@settings(max_examples=60)
@given(problem=problems())
def test_it_is_the_best_choice_that_agrees(
    problem: tuple[list[list[Option]], list[Agreement], list[float]],
) -> None:
    items, agreements, limits = problem
    best = math.inf
    for choice in itertools.product(*(range(len(own)) for own in items)):
        picked = [own[k] for own, k in zip(items, choice, strict=True)]
        costs = np.sum([option.cost for option in picked], axis=0)
        if all(agree(agreement, choice) for agreement in agreements) and np.all(costs <= limits):
            best = min(best, sum(option.loss for option in picked))
    answer = allocate_agreeing(items, agreements, limits, fixed=[0.0] * len(limits))
    assert not isinstance(answer, OutOfReach)
    assert answer.loss == pytest.approx(best)
    assert len(answer.choice) == len(items)
    assert all(agree(agreement, answer.choice) for agreement in agreements)


def agree(agreement: Agreement, choice: Sequence[int]) -> bool:
    """Whether what is chosen together is: of one mode, by all of its items."""
    chosen = {item: modes[choice[item]] for item, modes in agreement.modes.items()}
    modes = {mode for mode in chosen.values() if mode is not None}
    return not modes or (
        len(modes) == 1 and all(chosen[item] is not None for item in agreement.members[next(iter(modes))])
    )


def outlines() -> tuple[list[LayerMatch], SiblingOutlines]:
    model = loaded(attention())
    matched, _ = find(model)
    own, *parts = sibling_outlines(
        matched, siblings(matched, ties(matched)), [True] * 4, ("auto",), multiple=lambda layer: 2
    )
    assert [part.places for part in parts] == [(0, 1), (0, 2), (1, 2)]
    return matched, own


def test_outlines_cost_less_than_the_layers_and_are_multiples() -> None:
    matched, own = outlines()
    assert own.places == (0, 1, 2)
    assert own.ranks == tuple(sorted(own.ranks))
    assert own.ranks[-1] >= 8
    assert all(rank % 2 == 0 for rank in own.ranks)
    for rank, layers in zip(own.ranks, own.outlines, strict=True):
        params = [outline.cost.params for outline in layers]
        assert params == [rank * 16 + rank * 16 + 16, rank * 16, rank * 12]
        assert sum(outline.cost.macs for outline in layers) < 6 * 16 * 44
    assert len(matched) == 4


def test_what_takes_longer_than_the_layers_together_is_left_out() -> None:
    matched, own = outlines()
    parts = {0: 0.1, 1: 0.1, 2: 0.1}
    takes = {
        id(one.chain): 0.02 * rank
        for rank, layers in zip(own.ranks, own.outlines, strict=True)
        for one in layers
    }
    paying, known = own.paying(matched, takes, parts)
    assert 0 < len(paying.ranks) < len(own.ranks)
    for rank, layers in zip(paying.ranks, paying.outlines, strict=True):
        first, *others = (known[id(one)] for one in layers)
        assert first == pytest.approx(0.02 * rank)
        # The first factor's time is the first layer's.
        assert all(0.3 < other / first < 0.7 for other in others)
        assert first + sum(others) < 0.3


def weighed(part: float | None = None) -> tuple[Plan, SearchRecord]:
    """Two siblings at rank 1, weighed as such and alone: each further rank halves what is lost."""
    choices = tuple(
        Choice(
            name, "", "MatMul", "shared", {}, (1,), before=Cost(100, 100), after=Cost(cost, cost), group="q"
        )
        for name, cost in (("q", 20), ("k", 10))
    )
    layers = tuple(
        LayerCandidates(
            *(choice.layer, "", 100, None if part is None else 0.5, ()),
            tuple(
                CandidateRecord(
                    *(method, {}, (rank,), cost * rank, cost * rank), 0.1, 0.1 / 2**rank, part, group
                )
                for method, cost, group in (
                    ("svd", 1, None),
                    ("shared", choice.after.params if choice.after else 0, ("q", "k")),
                    ("shared", 1, ("q", "k", "v")),
                )
                for rank in (1, 2, 3)
            ),
        )
        for choice, part in zip(choices, (part, None if part is None else part / 2), strict=True)
    )
    return Plan(choices), SearchRecord(Expected(0.1, 0.0, 0.0, None), Measured(None), None, 4, (), (), layers)


def test_a_tighter_plan_keeps_groups_whole() -> None:
    plan, search = weighed()
    for share, rank in ((0.6, 2), (0.3, 3)):
        less = tighter(plan, search, share, "put back")
        assert [(c.layer, c.method, c.ranks, c.group) for c in less.choices] == [
            ("q", "shared", (rank,), "q"),
            ("k", "shared", (rank,), "q"),
        ]
    back = tighter(plan, search, 0.1, "put back")
    assert [(choice.method, choice.group, choice.reason) for choice in back.choices] == [
        (None, "", "put back")
    ] * 2


def test_gains_of_siblings_are_alike() -> None:
    plan, search = weighed(0.4)
    assert _gains(search, plan) == pytest.approx({("", "q"): 0.2, ("", "k"): 0.2})
    # Its first factor is the first layer's: alone it would seem to gain least.
    assert [layer.candidates[0].part for layer in search.layers] == [0.4, 0.2]


def test_weights_are_what_the_losses_do_to_the_output() -> None:
    _, own = outlines()
    model = loaded(attention())
    matched, _ = find(model)
    kin = siblings(matched, ties(matched))
    related = Relatives(matched, kin, True, [own])
    effects = {0: Effect(((0.1, 0.4), (0.2, 0.8))), 1: Effect(((0.1, 0.1),)), 2: Effect(((0.1, 0.025),))}
    for place, effect in effects.items():
        related.see(place, None, effect)
    assert related.weights(own) == pytest.approx((4.0, 1.0, 0.25))
    candidates = related.candidates()
    assert {candidate.group for candidate in candidates[0]} == {(0, 1, 2)}
    chosen = related.weighted(0, candidates[0][0]).outline.method
    assert chosen == Shared(weight=4.0)
    # What counts most loses least.
    alike = own.candidates(matched, [None] * 3, (1.0, 1.0, 1.0))
    assert candidates[0][1].loss < alike[0][1].loss
    assert candidates[2][1].loss > alike[2][1].loss
    related.effects[1] = Effect(())
    assert related.weights(own) == (1.0, 1.0, 1.0)
