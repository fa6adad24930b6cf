"""Starts: the optimum of two factors in closed form, and plain fits of whitened weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Layer, Ranks
from onnxdecomp.decompositions.base import Decomposition, refusal_of
from onnxdecomp.decompositions.registry import get
from onnxdecomp.fitting.als import alternate
from onnxdecomp.fitting.initialization import pair_of, plain_start, reduced_start, whitened_start
from onnxdecomp.fitting.quadratic_loss import Problem, as_rows, problem
from tests.builders.layers import fitted
from tests.builders.moments import LAYERS, asymmetric, correlated, gathered, taking, third

FEW = settings(max_examples=10)
KERNEL_FIRST = get("svd", order="kernel-first")
EACH = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def posed_for(layer: Layer, seed: int = 0, shrinkage: float = 1e-3) -> Problem:
    moments = gathered(layer, *asymmetric(layer, 150, seed=seed))
    return problem(moments, as_rows(layer.weight, layer), shrinkage)


def loss_of(chain: Chain, layer: Layer, posed: Problem) -> float:
    return posed.loss(as_rows(chain.dense(), layer))


def tail(posed: Problem, rank: int) -> float:
    """What the eigenvalues beyond the rank add up to, over all groups."""
    spread = posed.best @ posed.second @ posed.best.swapaxes(1, 2)
    return float(np.sum(np.linalg.eigvalsh(spread)[:, ::-1][:, rank:]))


@EACH
@FEW
@given(seed=st.integers(0, 99), shrinkage=st.sampled_from([0.0, 1e-2]))
def test_two_factors_lose_the_tail_of_the_eigenvalues(layer: Layer, seed: int, shrinkage: float) -> None:
    posed = posed_for(layer, seed, shrinkage)
    (full,) = KERNEL_FIRST.full_ranks(layer)
    for rank in range(1, full + 1):
        chain = reduced_start(fitted(KERNEL_FIRST, layer, (rank,)), layer, posed)
        assert chain is not None
        expected = posed.loss(posed.best) + tail(posed, rank)
        assert loss_of(chain, layer, posed) == pytest.approx(expected, rel=1e-9, abs=1e-9 * posed.energy)


@pytest.mark.parametrize(
    "method", [KERNEL_FIRST, get("svd", order="channel-first"), get("tucker"), get("cp")]
)
@EACH
def test_a_pair_of_factors_is_told_from_other_chains(layer: Layer, method: Decomposition) -> None:
    """Whatever is taken for a pair has the product of its rows for its weight."""
    if refusal_of(method, layer):
        pytest.skip("not of this method")
    chain = fitted(method, layer, tuple(1 for _ in method.full_ranks(layer)))
    dense = as_rows(chain.dense(), layer)
    pair = pair_of(chain, *dense.shape[::2])
    assert (pair is not None) or method is not KERNEL_FIRST
    if pair is not None:
        np.testing.assert_allclose(pair[1] @ pair[0], dense, rtol=1e-6, atol=1e-6)


@EACH
def test_nothing_is_better_than_the_two_factors(layer: Layer) -> None:
    posed = posed_for(layer)
    like = fitted(KERNEL_FIRST, layer, (2,))
    start = reduced_start(like, layer, posed)
    assert start is not None
    least = loss_of(start, layer, posed)
    assert loss_of(like, layer, posed) > least
    further = loss_of(alternate(like, posed, sweeps=20, tolerance=0), layer, posed)
    assert further >= least - 1e-9 * posed.energy
    assert further < loss_of(like, layer, posed)


@pytest.mark.parametrize("kind", ["conv2d", "conv2d grouped", "transposed"])
@pytest.mark.parametrize(
    "method", [get("svd", order="channel-first"), get("tucker"), get("spatial"), get("cp")], ids=str
)
def test_other_forms_have_no_closed_optimum(method: Decomposition, kind: str) -> None:
    layer = LAYERS[kind]
    like = fitted(method, layer, method.fraction_ranks(layer, 0.5))
    assert reduced_start(like, layer, posed_for(layer)) is None


@pytest.mark.parametrize("method", [get("tt"), get("btt"), get("kronecker"), get("tproduct")], ids=str)
def test_other_forms_of_a_matrix_have_no_closed_optimum(method: Decomposition) -> None:
    layer = LAYERS["linear"]
    like = fitted(method, layer, method.fraction_ranks(layer, 0.5))
    assert reduced_start(like, layer, posed_for(layer)) is None


def whitened(method: Decomposition, layer: Layer, ranks: Ranks, posed: Problem) -> Chain | None:
    return whitened_start(method, layer, ranks, posed, 0)


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("kind", ["linear", "pointwise"])
def test_whitened_a_matrix_is_met_as_well_as_can_be(kind: str, rank: int) -> None:
    layer = LAYERS[kind]
    rank = min(rank, *KERNEL_FIRST.full_ranks(layer))
    posed = posed_for(layer)
    chain = whitened(KERNEL_FIRST, layer, (rank,), posed)
    assert chain is not None
    expected = posed.loss(posed.best) + tail(posed, rank)
    assert loss_of(chain, layer, posed) == pytest.approx(expected, rel=1e-4, abs=1e-5 * posed.energy)


def test_what_whitens_is_found_once_for_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS["conv2d"]
    posed, method = posed_for(layer), get("spatial")
    first = whitened(method, layer, (2,), posed)
    monkeypatch.delattr(np.linalg, "eigh")
    assert first is not None
    again, more = (whitened(method, layer, (rank,), posed) for rank in (2, 3))
    assert again is not None
    assert more is not None
    np.testing.assert_array_equal(again.dense(), first.dense())
    assert loss_of(more, layer, posed) < loss_of(first, layer, posed)


CASES = [
    pytest.param(method, layer, id=f"{method.name}, {kind}")
    for kind, method, layer in third(
        [(kind, method, layer) for kind, layer in LAYERS.items() for method in taking(layer)], 1
    )
]


def channels_apart(layer: Layer) -> Problem:
    """Of inputs of which few directions among the channels carry most, alike at all kernel positions."""
    rng = np.random.default_rng(0)
    g, s, k = layer.groups, layer.inputs // layer.groups, int(np.prod(layer.kernel, dtype=int))
    mix = rng.standard_normal((g, s, s)) * np.geomspace(10, 0.1, s)[:, None]
    white = rng.standard_normal((g, 3000, k, s)) @ mix[:, None]
    rows = white.swapaxes(2, 3).reshape(g, 3000, s * k)
    return problem(gathered(layer, rows), as_rows(layer.weight, layer), 1e-4)


@pytest.mark.parametrize(("method", "layer"), CASES)
def test_whitened_it_is_better_than_plain_or_left_alone(method: Decomposition, layer: Layer) -> None:
    posed = channels_apart(layer)
    ranks = method.fraction_ranks(layer, 0.5)
    plain = loss_of(fitted(method, layer, ranks), layer, posed)
    chain = whitened(method, layer, ranks, posed)
    assert chain is None or loss_of(chain, layer, posed) < plain


@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv2d grouped", "conv3d", "transposed grouped"])
def test_tucker_is_whitened(kind: str) -> None:
    layer, method = LAYERS[kind], get("tucker")
    chain = whitened(method, layer, method.fraction_ranks(layer, 0.5), channels_apart(layer))
    assert chain is not None
    assert chain.bias is layer.bias


def test_a_first_step_that_does_not_read_the_channels_is_not_whitened() -> None:
    layer = LAYERS["linear"]
    for name in ("tt", "kronecker", "btt"):
        method = get(name)
        assert whitened(method, layer, method.fraction_ranks(layer, 0.5), posed_for(layer)) is None


def test_weights_too_large_for_their_type_are_whitened_in_a_wider_one() -> None:
    layer = replace(LAYERS["linear"], weight=np.full((12, 18), 1e37, np.float32))
    rows = 1e4 * correlated(layer, 100)
    posed = problem(gathered(layer, rows), as_rows(layer.weight, layer), 1e-3)
    chain = whitened(KERNEL_FIRST, layer, (2,), posed)
    assert chain is not None
    assert np.isfinite(chain.dense()).all()


@EACH
def test_plain_is_the_methods_own_fit(layer: Layer) -> None:
    method = get("svd")
    chain = plain_start(method, layer, (3,), as_rows(layer.weight, layer), 0)
    np.testing.assert_array_equal(chain.dense(), fitted(method, layer, (3,)).dense())
