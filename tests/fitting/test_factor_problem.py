"""What a factor sees: the same quadratic as through the whole chain, and a good guess at its curvature."""

from __future__ import annotations

import numpy as np
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Convolve, MatMul, Step, WeightedStep
from onnxdecomp.decompositions.registry import get
from onnxdecomp.fitting import als
from onnxdecomp.fitting.als import alternate
from onnxdecomp.fitting.factor_problem import FactorProblem, factor_problem, sight
from onnxdecomp.fitting.fit import dense_rows
from onnxdecomp.fitting.quadratic_loss import Problem, as_rows, problem
from tests.builders.layers import conv_layer, fitted
from tests.builders.moments import asymmetric, gathered

LAYER = conv_layer(6, 5, (3, 2), seed=1)
PLACES = [("spatial", 0), ("spatial", 1), ("tucker", 0), ("tucker", 1), ("tucker", 2), ("cp", 0), ("tt", 1)]


def posed() -> Problem:
    rows = asymmetric(LAYER, 300)
    return problem(gathered(LAYER, *rows), as_rows(LAYER.weight, LAYER), 1e-3)


def steps_of(name: str) -> tuple[als._Responses, list[Step], Problem]:
    found = posed()
    chain = fitted(get(name), LAYER, get(name).fraction_ranks(LAYER, 0.5))
    steps = list(chain.with_weights(lambda step: step.weight.astype(np.float64)).steps)
    return als._Responses(chain, found), steps, found


def seen_by(steps: list[Step], index: int, responses: als._Responses, found: Problem) -> FactorProblem:
    step = steps[index]
    seen = sight(step, responses.inputs(steps)[index] if index else None, steps[index + 1 :], found)
    assert seen is not None
    assert isinstance(step, Convolve)
    return factor_problem(step, steps[index + 1 :], seen)


@pytest.mark.parametrize(("name", "index"), PLACES)
def test_it_is_the_loss_in_the_factor(name: str, index: int) -> None:
    responses, steps, found = steps_of(name)
    own = seen_by(steps, index, responses, found)
    step = steps[index]
    assert isinstance(step, WeightedStep)
    weight = step.weight.reshape(len(step.weight), -1)

    def loss(moved: Array) -> float:
        changed = [*steps[:index], step.with_weight(moved.reshape(step.weight.shape)), *steps[index + 1 :]]
        return found.loss(responses.dense(changed))

    move = np.random.default_rng(0).standard_normal(weight.shape)
    slope = 2 * float(np.sum(own.gradient(weight) * move))
    bend = float(np.sum(own.curved(move) * move))
    for far in (-1.0, 1.0, 2.0):
        change = loss(weight + far * move) - loss(weight)
        assert change == pytest.approx(far * slope + far**2 * bend, rel=1e-8, abs=1e-8 * abs(bend))


@pytest.mark.parametrize(("name", "index"), [("spatial", 1), ("tucker", 1), ("tucker", 2)])
def test_where_no_kernel_position_comes_later_its_curvature_is_known(name: str, index: int) -> None:
    responses, steps, found = steps_of(name)
    own = seen_by(steps, index, responses, found)
    move = np.random.default_rng(0).standard_normal(own.right.shape)
    np.testing.assert_allclose(own.preconditioner()(own.curved(move)), move, rtol=0.05, atol=0.05)


def test_a_step_that_is_no_convolution_has_none() -> None:
    assert sight(MatMul(np.eye(3)), None, [], posed()) is None


def test_a_few_iterations_do_what_many_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, found = fitted(get("spatial"), LAYER, (4,)), posed()

    def lost(iterations: int) -> float:
        return found.loss(dense_rows(alternate(chain, found, sweeps=3, iterations=iterations), LAYER))

    with_it = lost(3)
    monkeypatch.setattr(als, "sight", lambda *_: None)
    assert with_it < lost(3)
    assert with_it < 1.01 * lost(12)
