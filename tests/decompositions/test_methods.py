"""What holds for every method on every layer that it takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Layer, relative_error
from onnxdecomp.core.steps import Convolve, MatMul
from onnxdecomp.decompositions.base import Decomposition, outline, refusal_of
from onnxdecomp.decompositions.registry import get, names
from onnxdecomp.errors import ModelError, UsageError
from tests.builders.layers import (
    conv_layer,
    convolutions,
    error_of,
    fitted,
    linear_layer,
    matrices,
    specialised,
    stacks,
)

METHODS = (
    get("svd"),
    get("svd", order="kernel-first"),
    get("svd", order="channel-first"),
    get("tucker"),
    get("tucker", sides="both"),
    get("tt"),
    get("tt", order=4),
    get("tr"),
    get("tr", order=2),
    get("ht"),
    get("ht", order=3),
    get("cp"),
    get("cp", split_kernel=True, max_sweeps=20, starts=1),
)
KINDS = (
    (conv_layer(12, 10, (3, 3)), convolutions()),
    (linear_layer(24, 36), matrices()),
    (linear_layer(8, 9, (2,)), stacks()),
)
"""A layer of each kind, and what draws others."""

pytestmark = pytest.mark.parametrize("method", METHODS, ids=str)
FEW = settings(max_examples=12, deadline=None)


def taken(data: st.DataObject, method: Decomposition) -> Layer:
    """A layer that the method takes, of the kinds that it takes."""
    kinds = [layers for layer, layers in KINDS if refusal_of(method, layer) is None]
    layer: Layer = data.draw(st.one_of(kinds).filter(lambda layer: refusal_of(method, layer) is None))
    return layer


@FEW
@given(data=st.data())
def test_full_rank_is_exact(method: Decomposition, data: st.DataObject) -> None:
    layer = taken(data, method)
    full = method.full_ranks(layer)
    assert method.fraction_ranks(layer, 1.0) == full
    chain = fitted(method, layer, full)
    assert chain.dense().shape == layer.weight.shape
    assert relative_error(chain.dense(), layer.weight) < 1e-5
    assert chain.dense().dtype == layer.weight.dtype
    assert chain.bias is layer.bias


@FEW
@given(data=st.data(), fraction=st.floats(0.05, 1.0))
def test_outline_knows_shapes_and_costs(method: Decomposition, data: st.DataObject, fraction: float) -> None:
    layer = taken(data, method)
    ranks = method.fraction_ranks(layer, fraction)
    assert all(1 <= r <= full for r, full in zip(ranks, method.full_ranks(layer), strict=True))
    factors = method.fit(layer, ranks)
    assert tuple(f.shape for f in factors) == method.shapes(layer, ranks)
    assert all(f.dtype == layer.weight.dtype and np.isfinite(f).all() for f in factors)
    chain, plan = method.assemble(layer, factors), outline(method, layer, ranks)
    shape = layer.assumed_input_shape()
    assert plan.params == chain.params
    assert plan.macs(shape) == chain.macs(shape)
    assert plan.output_shape(shape) == chain.output_shape(shape)
    expected = dense_output_shape(layer, shape)
    assert chain.output_shape(shape) == expected


def dense_output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The layer's own output shape, of the dense step."""
    if layer.conv is None:
        return MatMul(layer.weight.swapaxes(-1, -2)).output_shape(shape)
    return Convolve(layer.weight, layer.conv).output_shape(shape)


@settings(max_examples=6, deadline=None)
@given(data=st.data(), error=st.floats(0.02, 0.9))
def test_ranks_for_error_keep_the_error(method: Decomposition, data: st.DataObject, error: float) -> None:
    layer = taken(data, method)
    ranks = method.ranks_for_error(layer, error)
    assert all(1 <= r <= full for r, full in zip(ranks, method.full_ranks(layer), strict=True))
    assert error_of(method, layer, ranks) <= error * (1 + 1e-5)


@FEW
@given(data=st.data())
def test_spectra_hold_the_whole_norm(method: Decomposition, data: st.DataObject) -> None:
    layer = taken(data, method)
    spectra = method.spectra(layer)
    assert len(spectra) >= len(method.full_ranks(layer))
    for values in spectra:
        assert np.all(np.diff(values) <= 1e-6 * values[0])
        np.testing.assert_allclose(np.linalg.norm(values), np.linalg.norm(layer.weight), rtol=1e-5)


SOME = (
    conv_layer(12, 10, (3, 3)),
    conv_layer(12, 8, (3, 2), groups=2, stride=2),
    conv_layer(6, 9, (3,), transposed=True, stride=2),
    linear_layer(24, 36),
)


@pytest.mark.parametrize("layer", SOME, ids=["conv", "grouped", "transposed", "linear"])
def test_same_bytes_twice_and_error_falls(method: Decomposition, layer: Layer) -> None:
    if refusal_of(method, layer) is not None:
        assert refusal_of(specialised(method, layer), layer) is None
        return
    half = method.fraction_ranks(layer, 0.5)
    again = method.fit(replace(layer, weight=layer.weight.copy()), half)
    assert [f.tobytes() for f in method.fit(layer, half)] == [f.tobytes() for f in again]
    errors = [error_of(method, layer, method.fraction_ranks(layer, f)) for f in (0.1, 0.4, 0.7, 1.0)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[0] < 1


def test_nan_and_infinity_are_refused(method: Decomposition) -> None:
    for value in (np.nan, np.inf):
        layer = conv_layer(8, 6, (3, 3))
        layer.weight[2, 3, 1, 0] = value
        for action in (
            lambda layer=layer: method.fit(layer, method.full_ranks(layer)),
            lambda layer=layer: method.spectra(layer),
            lambda layer=layer: method.ranks_for_error(layer, 0.1),
        ):
            with pytest.raises(ModelError, match="layer: the weight holds NaN"):
                action()


def test_huge_finite_weights_are_not_infinite(method: Decomposition) -> None:
    layer = conv_layer(6, 6, (3,), weight=np.full((6, 6, 3), 3e37, np.float32))
    assert np.isfinite(fitted(method, layer, method.full_ranks(layer)).dense()).all()


def test_zero_weight(method: Decomposition) -> None:
    layer = conv_layer(6, 6, (3, 3), weight=np.zeros((6, 6, 3, 3), np.float32))
    assert not fitted(method, layer, method.fraction_ranks(layer, 0.5)).dense().any()
    assert all(r >= 1 for r in method.ranks_for_error(layer, 0.1))


def test_float64_stays_float64(method: Decomposition) -> None:
    layer = conv_layer(8, 6, (3, 3), weight=np.random.default_rng(0).standard_normal((8, 6, 3, 3)))
    chain = fitted(method, layer, method.full_ranks(layer))
    assert chain.dense().dtype == np.float64
    assert relative_error(chain.dense(), layer.weight) < 1e-13


def test_depthwise_is_refused(method: Decomposition) -> None:
    reason = refusal_of(method, conv_layer(8, 8, (3, 3), groups=8))
    assert reason is not None
    assert reason.startswith("depthwise")


def test_half_precision_stays_in_range(method: Decomposition) -> None:
    # Weights near the largest half: no factor may leave its range when it is cast.
    weight = (np.random.default_rng(0).standard_normal((16, 16, 3, 3)) * 1e4).astype(np.float32)
    layer = conv_layer(16, 16, (3, 3), weight=weight)
    factors = method.fit(layer, method.fraction_ranks(layer, 0.5))
    assert len(factors) >= 2
    for factor in factors:
        assert np.abs(factor).max() < 6e4 * 3


def test_classes_describe_themselves(method: Decomposition) -> None:
    assert isinstance(method, Decomposition)
    assert method.name in names()
    assert method.summary
    assert method.paper
    assert method.takes
    assert method.rank_names


def test_options_and_names_are_checked(method: Decomposition) -> None:
    with pytest.raises(UsageError, match="no option 'nonsense'"):
        get(method.name, nonsense=1)
    with pytest.raises(UsageError, match="unknown method 'x'"):
        get("x")
