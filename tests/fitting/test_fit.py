"""Whole fits: never worse than the plain one, shrunk where rows are few, with the bias that goes with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.decompositions.base import Refusal, refusal_of
from onnxdecomp.decompositions.registry import get
from onnxdecomp.errors import ModelError
from onnxdecomp.fitting.fit import dense_rows, fit, stored
from onnxdecomp.fitting.strengths import SHRINKAGES
from tests.builders.layers import conv_layer, convolutions, fitted, linear_layer, matrices, specialised
from tests.builders.moments import LAYERS, asymmetric, correlated, gathered, outputs

QUADRATIC = ("svd", "spatial", "tucker", "cp", "tt", "tr", "ht", "btt", "kronecker")
EACH = pytest.mark.parametrize("name", QUADRATIC)
FEW = settings(max_examples=20)


def taken_by(name: str) -> Layer:
    """A layer that the method takes, a convolution with a kernel if it can."""
    kinds = ("conv2d", "pointwise", "linear")
    return next(LAYERS[kind] for kind in kinds if refusal_of(get(name), LAYERS[kind]) is None)


def lost(chain: Chain, layer: Layer, rows: Array, wanted: Array) -> float:
    """E |y - What x - b|² over E |y|², y centred, from the rows themselves."""
    made = rows @ dense_rows(chain, layer).swapaxes(1, 2)
    made = made.swapaxes(0, 1).reshape(wanted.shape) + (0 if chain.bias is None else chain.bias)
    energy = np.square(wanted - wanted.mean(0)).sum()
    return float(np.square(wanted - made).sum() / energy)


def bias_of(chain: Chain) -> Array:
    assert chain.bias is not None
    return chain.bias


def with_means(chain: Chain, layer: Layer, rows: Array, wanted: Array) -> Chain:
    """The chain with the bias that its rows ask for."""
    bare = rows.mean(1, keepdims=True) @ dense_rows(chain, layer).swapaxes(1, 2)
    return replace(chain, bias=wanted.mean(0) - bare.reshape(-1))


LAYERS_OF_ANY_KIND = st.one_of(convolutions(), matrices())
EVEN = st.sampled_from([4, 6, 8, 12])
SQUARES = st.one_of(
    st.builds(linear_layer, EVEN, EVEN, seed=st.integers(0, 9)),
    st.builds(conv_layer, EVEN, EVEN, st.just((1, 1)), seed=st.integers(0, 9)),
)
"""What methods take that cut both sides into blocks."""


@EACH
@FEW
@given(
    data=st.data(),
    count=st.sampled_from([1, 2, 12, 80]),
    held=st.sampled_from([0, 1, 20]),
    noise=st.sampled_from([0.0, 0.4]),
    fraction=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_never_worse_than_the_plain_fit(
    name: str, data: st.DataObject, count: int, held: int, noise: float, fraction: float, seed: int
) -> None:
    blocks = name in ("btt", "kronecker")
    layer = data.draw(SQUARES if blocks else convolutions() if name == "spatial" else LAYERS_OF_ANY_KIND)
    method = get(name).specialise(layer)
    assume(not isinstance(method, Refusal))
    assert not isinstance(method, Refusal)
    ranks = method.fraction_ranks(layer, fraction)
    rows, wanted = asymmetric(layer, count + held, seed=seed, noise=noise)
    train = gathered(layer, rows[:, :count], wanted[:count])
    outside = gathered(layer, rows[:, count:], wanted[count:]) if held else None
    found = fit(method, layer, ranks, train, outside, sweeps=2)
    assert found.loss <= found.plain_loss
    assert (found.held_out is None) == (held == 0)
    if count + held == 1:
        return  # nothing varies
    plain = with_means(fitted(method, layer, ranks), layer, rows, wanted)
    # The loss has a little shrinkage in it, which keeps it a quadratic with one minimum.
    slack = 1e-4 + 1e-4 * found.plain_loss
    assert lost(found.chain, layer, rows, wanted) <= lost(plain, layer, rows, wanted) + slack
    assert found.loss == pytest.approx(lost(found.chain, layer, rows, wanted), abs=slack)
    assert found.plain_loss == pytest.approx(lost(plain, layer, rows, wanted), abs=slack)
    exact = bias_of(with_means(found.chain, layer, rows, wanted))
    np.testing.assert_allclose(bias_of(found.chain), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_worth_it(kind: str, centred: bool) -> None:
    layer = LAYERS[kind]
    rows, wanted = asymmetric(layer, 300)
    if not centred and layer.bias is not None:
        wanted = wanted - layer.bias
    method = specialised(get("tucker"), layer)
    ranks = method.fraction_ranks(layer, 0.5)
    found = fit(method, layer, ranks, gathered(layer, rows, wanted), centred=centred)
    assert found.loss < 0.7 * found.plain_loss
    if not centred:
        assert found.chain.bias is layer.bias
        bare = replace(found.chain, bias=None)
        energy = np.square(wanted - wanted.mean(0)).sum() / np.square(wanted).sum()
        assert found.loss == pytest.approx(lost(bare, layer, rows, wanted) * energy, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layer", [linear_layer(16, 120), conv_layer(16, 12, (3, 3))], ids=["linear", "conv"])
def test_few_rows_ask_for_much_shrinkage(layer: Layer, seed: int) -> None:
    """With fewer rows than features and a noisy prefix, rows that are learnt by heart mislead."""
    method = get("svd")
    rows, wanted = asymmetric(layer, 560, seed=seed, noise=5.0)
    train, outside = (gathered(layer, rows[:, part], wanted[part]) for part in (slice(40), slice(40, 60)))
    chosen = fit(method, layer, (8,), train, outside, shrinkages=(0.0, *SHRINKAGES, 1.0))
    none = fit(method, layer, (8,), train, outside, shrinkages=(0.0,))
    assert (chosen.shrinkage, none.shrinkage) == (1.0, 0.0)
    assert fit(method, layer, (8,), train, outside).shrinkage == max(SHRINKAGES)
    assert chosen.held_out is not None
    assert none.held_out is not None
    assert chosen.held_out < 0.95 * none.held_out
    # On its own rows it loses more, on rows that no fit has seen less.
    assert chosen.loss > none.loss
    new = rows[:, 60:], wanted[60:]
    assert lost(chosen.chain, layer, *new) < 0.9 * lost(none.chain, layer, *new)


def test_many_rows_ask_for_little_shrinkage() -> None:
    layer = linear_layer(8, 12)
    rows, wanted = asymmetric(layer, 4000, noise=1.0)
    train = gathered(layer, rows[:, :3000], wanted[:3000])
    outside = gathered(layer, rows[:, 3000:], wanted[3000:])
    found = fit(get("svd"), layer, (6,), train, outside, shrinkages=(1e-4, 1e2))
    assert found.shrinkage == 1e-4


def test_with_no_held_out_rows_the_first_strength_is_taken() -> None:
    layer = LAYERS["linear"]
    found = fit(get("svd"), layer, (4,), gathered(layer, correlated(layer, 50)), shrinkages=(0.5, 1e-3))
    assert (found.shrinkage, found.held_out) == (0.5, None)


@EACH
def test_twice_the_same(name: str) -> None:
    method, layer = get(name), taken_by(name)
    rows, wanted = asymmetric(layer, 60)
    ranks = method.fraction_ranks(layer, 0.5)
    results = []
    for _ in range(2):
        moments = gathered(layer, rows[:, :40], wanted[:40]), gathered(layer, rows[:, 40:], wanted[40:])
        found = fit(method, replace(layer, weight=layer.weight.copy()), ranks, *moments, seed=3)
        weighted = stored(found.chain, layer).weighted
        results.append((found.loss, [step.weight.tobytes() for step in weighted]))
    assert results[0] == results[1]


def test_at_full_rank_nothing_is_lost() -> None:
    for layer in LAYERS.values():
        method = specialised(get("tucker"), layer)
        found = fit(method, layer, method.full_ranks(layer), gathered(layer, correlated(layer, 300)))
        assert abs(found.loss) < 1e-6
        np.testing.assert_allclose(found.chain.dense(), layer.weight, atol=1e-3)
        if layer.bias is not None:
            np.testing.assert_allclose(bias_of(found.chain), layer.bias, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 100.1])
def test_rows_that_say_nothing_are_fitted_as_plainly(value: float) -> None:
    layer = LAYERS["linear"]
    rows = np.full((1, 200, 18), value)
    found = fit(get("svd"), layer, (4,), gathered(layer, rows))
    plain = fitted(get("svd"), layer, (4,)).dense()
    expected = np.square(plain - layer.weight).sum() / np.square(layer.weight).sum()
    assert found.plain_loss == pytest.approx(expected, rel=1e-2)
    assert found.loss == pytest.approx(expected, rel=1e-2)
    bias = bias_of(with_means(found.chain, layer, rows, outputs(layer, rows)))
    np.testing.assert_allclose(bias_of(found.chain), bias, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_weight(value: float) -> None:
    layer = linear_layer(6, 8)
    moments = gathered(layer, correlated(layer, 20))
    layer.weight[2, 3] = value
    with pytest.raises(ModelError, match="NaN or infinite"):
        fit(get("svd"), layer, (2,), moments)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@EACH
def test_stored_is_balanced_and_of_the_weights_type(name: str, dtype: type) -> None:
    method, layer = get(name), taken_by(name)
    layer = replace(layer, weight=layer.weight.astype(dtype))
    moments = gathered(layer, *asymmetric(layer, 60))
    found = fit(method, layer, method.fraction_ranks(layer, 0.5), moments, sweeps=1)
    first = found.chain.steps[0]
    kept = stored(found.chain, layer)
    weights = [step.weight for step in kept.weighted]
    assert {w.dtype for w in weights} == {np.dtype(dtype)}
    assert kept.bias is not None
    assert kept.bias.dtype == dtype
    norms = [np.linalg.norm(w) for w in weights]
    assert max(norms) == pytest.approx(min(norms), rel=1e-4)
    exact = found.chain.dense()
    np.testing.assert_allclose(kept.dense(), exact, atol=1e-5 * np.abs(exact).max())
    assert found.chain.steps[0] is first


def test_stored_with_a_factor_of_zeros() -> None:
    layer = replace(LAYERS["linear"], weight=np.zeros((12, 18), np.float32))
    chain = stored(fitted(get("svd"), layer, (3,)), layer)
    assert not chain.dense().any()
