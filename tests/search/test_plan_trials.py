"""Plans are tried until one uses up what may be lost: no more of them than are of use."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.search.plan import Choice, Cost, Plan
from onnxdecomp.search.plan_trials import TRIALS, LossLimit, Tries, tried_plans
from onnxdecomp.search.select import Chosen
from onnxdecomp.search.targets import parse_budgets


def tried(
    error: Callable[[float], float],
    *,
    start: float = 1e-3,
    step: float = 0.0,
    cost: Callable[[float], float] = lambda loss: 1 / (1 + 1e3 * loss),
    below: float = math.inf,
) -> tuple[Chosen | None, Tries]:
    """What is found where plans of an expected loss have this error and cost, at most 0.1 of the former.

    With a `step` there are plans at its powers alone.
    """
    budget = parse_budgets("error=0.1")[0]
    assert budget.loss is not None
    made: dict[int, float] = {}

    def pick(expected: float) -> Chosen:
        loss = step ** math.floor(math.log(expected) / math.log(step)) if step else expected
        rank = round(1e9 * loss)
        choice = Choice("a", "", "Conv", method="svd", ranks=(rank,), before=Cost(9, 9), after=Cost(4, 4))
        plan = Plan((choice,))
        made[rank] = error(loss)
        return Chosen(plan, loss, 0.0, 0.0, cost(loss))

    now: list[float] = []

    def trial(plan: Plan) -> ir.Model:
        now.append(made[plan.choices[0].ranks[0]])
        return ir.Model(ir.Graph([], [], nodes=[]), ir_version=8)

    limit = LossLimit(budget, budget.loss, budget.limit, lambda _: now[-1])
    return tried_plans(pick, [limit], trial, start, None, below=below)


@settings(max_examples=60, deadline=None)
@given(st.floats(-2, 2), st.floats(0.4, 2.5), st.integers(0, 3))
def test_most_of_what_may_be_lost_is_used_up(scale: float, power: float, wave: int) -> None:
    """Whatever errors are over expected ones, within bounds, and where they are no smooth curve."""

    def error(loss: float) -> float:
        smooth = 0.1 * math.exp(scale) * math.pow(loss / 1e-3, power / 2)
        return smooth * (1 + 0.05 * math.sin(wave * loss * 1e4))

    best, tries = tried(error)
    assert len(tries) <= TRIALS
    errors = [float(entry["error"] or 0.0) for entry in tries]
    if best is None:
        assert min(errors) > 0.095
    else:
        found = [entry for entry in tries if entry["expected"] == best.loss]
        assert float(found[0]["error"] or 0.0) <= 0.095
        assert max(error for error in errors if error <= 0.095) > 0.75 * 0.095


def test_no_plan_is_tried_twice() -> None:
    _, tries = tried(lambda loss: 10 * loss**0.6, step=3.0)
    losses = [entry["expected"] for entry in tries]
    assert len(losses) == len(set(losses)) > 1


def test_plans_that_would_gain_nothing_are_not_tried() -> None:
    """Between a plan that loses too much and one that does not, all cost alike."""
    jump = lambda loss: 0.2 if loss > 1e-3 / 2 else 0.05  # noqa: E731
    assert len(tried(jump)[1]) > 2
    assert len(tried(jump, cost=lambda loss: 0.5)[1]) == 2


@pytest.mark.parametrize(("below", "count"), [(0.4, 0), (0.6, 1)])
def test_plans_that_cost_too_much_are_not_tried(below: float, count: int) -> None:
    best, tries = tried(lambda loss: 0.3, below=below)
    assert best is None
    assert len(tries) == count
