"""The curvature of a factor: exact where kernel positions are independent, and far better than none."""

from __future__ import annotations

import numpy as np
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import MatMul, WeightedStep
from onnxdecomp.decompositions.registry import get
from onnxdecomp.fitting import als
from onnxdecomp.fitting.als import alternate
from onnxdecomp.fitting.curvature import preconditioner
from onnxdecomp.fitting.fit import dense_rows
from onnxdecomp.fitting.quadratic_loss import Problem, as_rows, problem
from tests.builders.layers import conv_layer, fitted
from tests.builders.moments import asymmetric, gathered

LAYER = conv_layer(6, 5, (3, 2), seed=1)


def posed() -> Problem:
    rows = asymmetric(LAYER, 300)
    return problem(gathered(LAYER, *rows), as_rows(LAYER.weight, LAYER), 1e-3)


@pytest.mark.parametrize(("name", "index"), [("spatial", 1), ("tucker", 1), ("tucker", 2)])
def test_where_no_kernel_position_comes_later_it_is_the_curvature(name: str, index: int) -> None:
    """The gradient moves with the weight by the curvature: what divides by it gives the move back."""
    chain, found = fitted(get(name), LAYER, get(name).fraction_ranks(LAYER, 0.5)), posed()
    steps = [step for step in chain.steps if isinstance(step, WeightedStep)]
    responses = als._Responses(chain, found)
    seen = responses.inputs(steps)
    divided = preconditioner(steps[index], seen[index], steps[index + 1 :], found.second)
    assert divided is not None
    move = np.random.default_rng(0).standard_normal(steps[index].weight.shape)

    def gradient(weight: Array) -> Array:
        moved = [*steps[:index], steps[index].with_weight(weight), *steps[index + 1 :]]
        after = responses.inputs(moved)
        z = responses.response(found.gradient(responses.rows(after[-1])), after[-1].shape)
        for place in range(len(moved) - 1, index, -1):
            z = moved[place].adjoint(z, after[place].shape)
        return steps[index].weight_gradient(after[index], z)

    own = steps[index].weight.astype(np.float64)
    np.testing.assert_allclose(divided(gradient(own + move) - gradient(own)), move, rtol=0.05, atol=0.05)


def test_a_step_that_is_no_convolution_has_none() -> None:
    assert preconditioner(MatMul(np.eye(3)), np.eye(3), [], np.eye(3)[None]) is None


def test_a_few_preconditioned_iterations_do_what_many_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, found = fitted(get("spatial"), LAYER, (4,)), posed()

    def lost(iterations: int) -> float:
        return found.loss(dense_rows(alternate(chain, found, sweeps=3, iterations=iterations), LAYER))

    with_it = lost(3)
    monkeypatch.setattr(als, "preconditioner", lambda *_: None)
    assert with_it < lost(3)
    assert with_it < 1.01 * lost(12)
