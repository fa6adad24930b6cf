"""The alternation: it never loses ground, from any method's chain on any kind of layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.core.steps import Convolve, MatMul, Reshape, Step, WeightedStep
from onnxdecomp.decompositions.base import Decomposition, outline
from onnxdecomp.decompositions.registry import get, names
from onnxdecomp.fitting import als
from onnxdecomp.fitting.als import alternate
from onnxdecomp.fitting.quadratic_loss import Problem, as_rows, problem
from tests.builders.layers import conv_layer, fitted, linear_layer, specialised
from tests.builders.moments import LAYERS, asymmetric, gathered, taking, third

CASES = [
    (kind, method, layer)
    for kind, layer in LAYERS.items()
    for method in [*taking(layer), *([get("svd", order="channel-first")] if layer.conv else [])]
]
THIRDS = tuple(third(CASES, which) for which in range(3))
"""Every method is in each; together they are all cases."""


def each(cases: list[tuple[str, Decomposition, Layer]]) -> pytest.MarkDecorator:
    values = [pytest.param(method, layer, id=f"{method.name}, {kind}") for kind, method, layer in cases]
    return pytest.mark.parametrize(("method", "layer"), values)


def posed_for(layer: Layer, shrinkage: float = 1e-3) -> Problem:
    moments = gathered(layer, *asymmetric(layer, 200))
    return problem(moments, as_rows(layer.weight, layer), shrinkage)


def loss_of(chain: Chain, layer: Layer, posed: Problem) -> float:
    return posed.loss(as_rows(chain.dense(), layer))


def at_half(method: Decomposition, layer: Layer) -> Chain:
    return fitted(method, layer, method.fraction_ranks(layer, 0.5))


def test_every_method_is_tried() -> None:
    assert all({method.name for _, method, _ in cases} == set(names()) for cases in THIRDS)
    assert all(len(taking(layer)) >= 3 for layer in LAYERS.values())


@each(THIRDS[0])
def test_the_loss_never_rises(method: Decomposition, layer: Layer) -> None:
    posed, chain = posed_for(layer), at_half(method, layer)
    losses = [loss_of(chain, layer, posed)]
    for _ in range(4):
        chain = alternate(chain, posed, sweeps=1, tolerance=0)
        losses.append(loss_of(chain, layer, posed))
    assert all(b <= a + 1e-9 * posed.energy for a, b in pairwise(losses)), losses
    # The plain fit knows nothing of correlated inputs: there is much to gain.
    assert losses[-1] < 0.9 * losses[0]
    assert losses[-1] >= posed.loss(posed.best) - 1e-9 * posed.energy


def test_rounds_are_carried_farther(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = conv_layer(8, 12, (3, 3), seed=1)
    posed = posed_for(layer)
    chain = at_half(specialised(get("cp"), layer), layer)

    def loss(sweeps: int) -> float:
        return loss_of(alternate(chain, posed, sweeps=sweeps, tolerance=0), layer, posed)

    def far(steps: Sequence[Step], earlier: Sequence[Step], others: Sequence[int]) -> list[Step]:
        return [s.with_weight(0 * s.weight) if isinstance(s, WeightedStep) else s for s in steps]

    fast = loss(8)
    monkeypatch.setattr(als, "_farther", lambda steps, earlier, others: list(steps))
    slow, fewer = loss(8), loss(5)
    assert fast < 0.98 * slow
    # Where it is too far, every second round begins again from the best; the last one is not carried.
    monkeypatch.setattr(als, "_farther", far)
    assert loss(8) == pytest.approx(fewer, rel=1e-9)


LARGE = {"conv": conv_layer(16, 64, (3, 3), seed=1), "linear": linear_layer(20, 600, seed=2)}


@pytest.mark.parametrize("method", [get("tucker"), get("svd", order="channel-first"), get("tt")], ids=str)
@pytest.mark.parametrize("kind", LARGE)
def test_it_does_not_rise_where_products_are_rounded_either(method: Decomposition, kind: str) -> None:
    """Rows are so long here that conjugate gradients take their products in float32."""
    layer = LARGE[kind]
    method = specialised(method, layer)
    posed = problem(gathered(layer, *asymmetric(layer, 900)), as_rows(layer.weight, layer), 1e-3)
    assert posed.single.dtype == np.float32
    chain = at_half(method, layer)
    losses = [loss_of(chain, layer, posed)]
    for _ in range(6):
        chain = alternate(chain, posed, sweeps=1, tolerance=0)
        losses.append(loss_of(chain, layer, posed))
    assert all(b <= a + 1e-9 * posed.energy for a, b in pairwise(losses)), losses
    assert losses[-1] < 0.9 * losses[0]


@each(THIRDS[1])
def test_the_form_stays(method: Decomposition, layer: Layer) -> None:
    before = at_half(method, layer)
    numbers = [step.weight.copy() for step in before.weighted]
    after = alternate(before, posed_for(layer), sweeps=2)
    assert [type(step) for step in after.steps] == [type(step) for step in before.steps]
    assert after.bias is before.bias
    assert after.params == before.params
    shape = layer.assumed_input_shape()
    assert after.output_shape(shape) == before.output_shape(shape)
    assert {step.weight.dtype for step in after.weighted} == {np.dtype(np.float64)}
    kept = [step.weight for step in before.weighted]
    assert all(np.array_equal(a, b) for a, b in zip(numbers, kept, strict=True))


@each(THIRDS[2])
def test_at_full_rank_the_best_weight_is_reached(method: Decomposition, layer: Layer) -> None:
    moments = gathered(layer, *asymmetric(layer, 200, noise=0.6))
    posed = problem(moments, as_rows(layer.weight, layer), 1e-1)
    chain = fitted(method, layer, method.full_ranks(layer))
    start, best = loss_of(chain, layer, posed), posed.loss(posed.best)
    reached = loss_of(alternate(chain, posed, sweeps=30, tolerance=0), layer, posed)
    assert reached - best < 1e-3 * (start - best)


def solved(method: Decomposition, layer: Layer) -> bool:
    """Whether the last factor's normal equations are solved, not only neared."""
    last = outline(method, layer, method.fraction_ranks(layer, 0.5)).steps[-1]
    return isinstance(last, MatMul) or (isinstance(last, Convolve) and last.spec.groups == layer.groups)


@each(third([case for case in CASES if solved(*case[1:])], 0))
def test_the_last_factor_meets_the_normal_equations(method: Decomposition, layer: Layer) -> None:
    chain, posed = at_half(method, layer), posed_for(layer)
    refitted = alternate(chain, posed, sweeps=1)
    rng = np.random.default_rng(0)
    (*others, best) = refitted.steps
    assert isinstance(best, Convolve | MatMul)
    least = loss_of(refitted, layer, posed)
    for _ in range(5):
        away = rng.standard_normal(best.weight.shape) * np.linalg.norm(best.weight)
        up, down = (
            loss_of(
                replace(refitted, steps=(*others, best.with_weight(best.weight + sign * away))), layer, posed
            )
            for sign in (1, -1)
        )
        curvature = (up + down) / 2 - least
        assert curvature > 0
        # No slope in any direction; the loss is exactly quadratic.
        assert abs(up - down) < 1e-6 * curvature


def test_few_numbers_are_met_by_conjugate_gradients() -> None:
    """As many steps as numbers lead to the minimum, however long the valley is."""
    layer = linear_layer(1, 10)
    posed = posed_for(layer)
    chain = Chain((MatMul(-layer.weight.T), Reshape((1,), (1,))), None, 10)
    least = posed.loss(posed.best)
    assert loss_of(chain, layer, posed) > least + 1e-3 * posed.energy
    refitted = alternate(chain, posed, sweeps=1)
    assert loss_of(refitted, layer, posed) == pytest.approx(least, abs=1e-7 * posed.energy)


def test_it_ends_when_nothing_is_gained() -> None:
    layer = LAYERS["conv2d"]
    posed, chain = posed_for(layer), at_half(get("spatial"), layer)
    once = alternate(chain, posed, sweeps=1)
    ended = alternate(chain, posed, sweeps=9, tolerance=1.0)
    assert loss_of(ended, layer, posed) == loss_of(once, layer, posed)
    assert loss_of(alternate(chain, posed, sweeps=9, tolerance=0), layer, posed) < loss_of(once, layer, posed)


def test_no_sweeps_change_nothing() -> None:
    layer = LAYERS["conv2d"]
    chain = at_half(get("tucker"), layer)
    np.testing.assert_allclose(
        alternate(chain, posed_for(layer), sweeps=0).dense(), chain.dense(), rtol=1e-4, atol=1e-5
    )
