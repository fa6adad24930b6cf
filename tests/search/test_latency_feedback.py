"""Plans that are looked at: the best of those that keep the target, whatever the order they came in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.latency_feedback import ROUNDS, corrected, refine_by_latency
from onnxdecomp.search.plan import Choice, Plan
from onnxdecomp.search.select import Chosen


def plan(latency: float) -> Chosen:
    """A plan of which that latency is expected, and which loses the more the faster it is."""
    choice = Choice("a", "", "Conv", method="svd", ranks=(round(1000 * latency),))
    return Chosen(Plan((choice,)), 1 - latency, 0.0, 0.0, latency)


def expected(chosen: Plan) -> float:
    return chosen.decomposed[0].ranks[0] / 1000


def test_what_is_measured_corrects_what_is_expected() -> None:
    # Everything takes 1.25 times what is expected: the second plan aims at 0.5 / 1.25, less a little.
    found = refine_by_latency(lambda correction: plan(0.5 / correction), lambda p: 1.25 * expected(p), 0.5)
    assert isinstance(found, Chosen)
    assert found.measured == pytest.approx(0.5 / 1.01, rel=0.01)


def test_a_disturbed_look_does_not_lose_the_target() -> None:
    # The second measurement is far too small, and what follows far too slow: the first is the answer.
    noise: Iterator[float] = iter((0.9, 0.3, 1.0, 1.0))
    asked = []

    def choose(correction: float) -> Chosen:
        asked.append(correction)
        return plan(min(0.95, 0.5 / correction))

    found = refine_by_latency(choose, lambda p: next(noise) * expected(p), 0.5)
    assert len(asked) == ROUNDS
    assert isinstance(found, Chosen)
    assert found.measured is not None
    assert found.measured <= 0.5


def test_among_plans_that_keep_the_target_the_one_of_least_loss() -> None:
    noise = iter((0.8, 0.9, 0.9, 1.3))
    seen = []

    def measure(p: Plan) -> float:
        seen.append((expected(p), next(noise) * expected(p)))
        return seen[-1][1]

    found = refine_by_latency(lambda correction: plan(min(0.95, 0.5 / correction)), measure, 0.5)
    assert isinstance(found, Chosen)
    kept = [latency for latency, measured in seen if measured <= 0.5]
    assert len(kept) > 1
    assert found.latency == pytest.approx(max(kept), abs=1e-3)  # ranks are whole numbers


def test_where_none_keeps_it_the_fastest() -> None:
    found = refine_by_latency(lambda correction: plan(0.6), lambda p: 0.7, 0.5)
    assert isinstance(found, Chosen)
    assert found.measured == 0.7


def test_no_later_look_takes_the_original_for_an_answer() -> None:
    # Measured far too small, so that the original itself seems to be fast enough.
    kept = Chosen(Plan((Choice("a", "", "Conv"),)), 0.0, 0.0, 0.0, 0.8)
    found = refine_by_latency(lambda correction: plan(0.5) if correction == 1 else kept, lambda p: 0.1, 0.5)
    assert isinstance(found, Chosen)
    assert found.plan.decomposed


def test_out_of_reach_is_said_only_of_the_first_plan() -> None:
    beyond = OutOfReach("no", (0.6,))
    assert refine_by_latency(lambda correction: beyond, expected, 0.5) is beyond
    found = refine_by_latency(lambda correction: plan(0.5) if correction == 1 else beyond, lambda p: 0.7, 0.5)
    assert isinstance(found, Chosen)
    assert found.measured == 0.7


@pytest.mark.parametrize("fastest", [0.3, 0.45])
def test_what_simplification_alone_would_meet_is_met_by_a_plan(fastest: float) -> None:
    """The file of a plan that keeps everything is the original, as slow as it was."""
    nothing = Chosen(Plan(()), 0.0, 0.0, 0.0, 0.45)

    def choose(correction: float) -> Chosen | OutOfReach:
        if 0.45 * correction <= 0.5:
            return nothing
        return plan(0.44) if fastest < 0.45 else OutOfReach("nothing is", (0.45,))

    found = refine_by_latency(choose, expected, 0.5)
    assert isinstance(found, Chosen)
    if fastest < 0.45:
        assert found.plan.decomposed
        assert found.measured == pytest.approx(0.44)
    else:
        assert found == nothing  # there is no other
    assert refine_by_latency(choose, expected, 0.5, quantized=True) == nothing  # its file is another one


def test_a_measurement_of_another_plan_is_where_the_first_one_begins() -> None:
    asked = []

    def choose(correction: float) -> Chosen:
        asked.append(correction)
        return plan(0.5 / correction)

    first = refine_by_latency(choose, lambda p: 1.25 * expected(p), 0.5)
    start = corrected(first)
    assert start is not None
    assert start == pytest.approx(1.25 * 1.01, rel=0.01)
    asked.clear()
    found = refine_by_latency(choose, lambda p: 1.25 * expected(p), 0.5, start=start)
    assert len(asked) == 1
    assert isinstance(found, Chosen)
    assert found.measured == pytest.approx(0.5 / 1.01, rel=0.01)


def test_where_that_is_out_of_reach_what_was_asked_for_is_tried() -> None:
    def choose(correction: float) -> Chosen | OutOfReach:
        return plan(0.5) if correction == 1 else OutOfReach("nothing is so fast", ())

    assert isinstance(refine_by_latency(choose, expected, 0.5, start=1.3), Chosen)
