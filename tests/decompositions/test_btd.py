from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array, Layer, relative_error
from onnxdecomp.core.steps import Convolve
from onnxdecomp.decompositions.base import Refusal, outline, refusal_of
from onnxdecomp.decompositions.btd import Btd
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.decompositions.tucker import Tucker
from tests.builders.cases import Case, convolutions
from tests.builders.layers import conv_layer, error_of, fitted, linear_layer
from tests.decompositions import properties


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Convolutions with more than one channel on both sides and a kernel."""
    groups = draw(st.integers(1, 2))
    return conv_layer(
        groups * draw(st.integers(2, 9)),
        groups * draw(st.integers(2, 9)),
        draw(st.sampled_from([(3,), (2, 3), (3, 1), (2, 2, 2)])),
        groups=groups,
        transposed=draw(st.booleans()),
        stride=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=20, deadline=None)
@given(layer=layers(), blocks=st.integers(2, 5), fraction=st.floats(0.05, 1.0))
def test_promises(layer: Layer, blocks: int, fraction: float) -> None:
    method = Btd(blocks)
    assert refusal_of(method, layer) is None
    properties.check_full_rank(method, layer)
    properties.check_outline(method, layer, method.fraction_ranks(layer, fraction))
    properties.check_error_bound(method, layer, fraction)
    properties.check_spectra(method, layer)
    properties.check_determinism(method, layer, method.fraction_ranks(layer, fraction))
    properties.check_nan(method, layer)


@settings(max_examples=25, deadline=None)
@given(case=convolutions())
def test_exact_in_onnx_runtime(case: Case) -> None:
    found = properties.outputs_at_full_rank(Btd(), case)
    if found is not None:
        assert relative_error(found[1], found[0]) < 1e-4


def planted(blocks: int, ranks: tuple[int, int], shape: tuple[int, ...], noise: float) -> Array:
    rng = np.random.default_rng(4)
    w = np.zeros(shape)
    for _ in range(blocks):
        core = rng.standard_normal((*ranks, *shape[2:]))
        a, b = (rng.standard_normal((n, r)) for n, r in zip(shape, ranks, strict=False))
        w += np.einsum("ta,abk,sb->tsk", a, core.reshape(*ranks, -1), b).reshape(shape)
    return np.asarray(w / np.std(w) + noise * rng.standard_normal(shape), np.float32)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_it_loses_less_than_tucker_of_as_many_multiplications(noise: float) -> None:
    layer = conv_layer(32, 32, (3, 3), weight=planted(4, (5, 5), (32, 32, 3, 3), noise))
    shape = layer.assumed_input_shape()
    cost = outline(Btd(4), layer, (5, 5)).macs(shape)
    of_tucker = [
        error_of(Tucker(), layer, ranks)
        for ranks in itertools.product(range(8, 25, 2), repeat=2)
        if outline(Tucker(), layer, ranks).macs(shape) <= cost
    ]
    assert len(of_tucker) > 5
    assert error_of(Btd(4), layer, (5, 5)) < min(of_tucker)


def test_passes_lose_no_more_than_the_first() -> None:
    layer = conv_layer(16, 12, (3, 3), weight=planted(4, (3, 2), (16, 12, 3, 3), 0.5))
    errors = [error_of(Btd(4, max_sweeps=n, tolerance=0.0), layer, (3, 2)) for n in (1, 2, 8)]
    assert errors[0] >= errors[1] - 1e-6
    assert errors[1] >= errors[2] - 1e-6
    assert errors[2] < 0.999 * errors[0]


def test_the_core_is_in_groups() -> None:
    layer = conv_layer(12, 8, (3, 3), groups=2, stride=2)
    steps = fitted(Btd(3), layer, (2, 1)).steps
    groups = [step.spec.groups for step in steps if isinstance(step, Convolve)]
    assert groups == [2, 6, 2]
    assert [step.label for step in steps] == ["first", "core", "last"]


def test_what_stands_in_for_it() -> None:
    assert isinstance(Btd().specialise(linear_layer(24, 36)), Svd)
    assert isinstance(Btd().specialise(conv_layer(24, 36, (1, 1))), Svd)
    assert isinstance(Btd(1).specialise(conv_layer(8, 8, (3, 3))), Tucker)
    assert isinstance(Btd().specialise(conv_layer(8, 1, (3, 3))), Tucker)
    with pytest.raises(ValueError, match="blocks=0"):
        Btd(0)
    depthwise = conv_layer(8, 8, (3, 3), groups=8)
    assert isinstance(Btd().specialise(depthwise), Refusal)


@pytest.mark.parametrize("error", [0.1, 0.5])
def test_a_zero_weight(error: float) -> None:
    layer = conv_layer(8, 8, (3, 3))
    zero = replace(layer, weight=np.zeros_like(layer.weight))
    assert Btd().ranks_for_error(zero, error) == (1, 1)
    assert not fitted(Btd(), zero, (2, 2)).dense().any()
