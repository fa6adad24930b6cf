from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array, ConvSpec, Layer
from onnxdecomp.core.steps import Convolve
from onnxdecomp.decompositions.base import outline, refusal_of
from onnxdecomp.decompositions.spatial import Spatial
from tests.builders.cases import Case, convolutions
from tests.builders.layers import conv_layer, error_of, linear_layer
from tests.decompositions import properties

METHODS = (
    Spatial(),
    Spatial(order="forward"),
    Spatial(order="backward"),
    Spatial(steps=2),
    Spatial(order="forward", steps=2),
    Spatial(order="backward", steps=2),
)
FEW = settings(max_examples=20, deadline=None)


@st.composite
def split_kernels(draw: st.DrawFn) -> Layer:
    """Convolutions of two or three axes, at least two of them longer than 1."""
    kernel = tuple(draw(st.lists(st.integers(2, 4), min_size=2, max_size=3)))
    if len(kernel) == 3 and draw(st.booleans()):
        axis = draw(st.integers(0, 2))
        kernel = (*kernel[:axis], 1, *kernel[axis + 1 :])
    groups = draw(st.integers(1, 3))
    return conv_layer(
        groups * draw(st.integers(1, 7)),
        groups * draw(st.integers(2 if groups > 1 else 1, 6)),
        kernel,
        groups=groups,
        transposed=draw(st.booleans()),
        stride=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 99)),
    )


@pytest.mark.parametrize("method", METHODS, ids=str)
@FEW
@given(layer=split_kernels(), fraction=st.floats(0.05, 1.0))
def test_promises(method: Spatial, layer: Layer, fraction: float) -> None:
    assert refusal_of(method, layer) is None
    properties.check_full_rank(method, layer)
    properties.check_outline(method, layer, method.fraction_ranks(layer, fraction))
    properties.check_error_bound(method, layer, fraction)
    properties.check_spectra(method, layer)


@pytest.mark.parametrize("method", METHODS, ids=str)
@settings(max_examples=12, deadline=None)
@given(case=st.one_of(convolutions(), convolutions(transposed=True)))
def test_same_outputs_in_onnx_runtime(method: Spatial, case: Case) -> None:
    outputs = properties.outputs_at_full_rank(method, case)
    assume(outputs is not None)
    assert outputs is not None
    before, after = outputs
    assert before.shape == after.shape
    assert np.linalg.norm(after - before) <= 1e-4 * np.linalg.norm(before) + 1e-30


def rearranged(w: Array, axis: int) -> Array:
    """[(S k_axis), (T others)] of one group's [T, S, k1, k2], element by element."""
    t, s, *kernel = w.shape
    out = np.zeros((s * kernel[axis], t * kernel[1 - axis]))
    for i, j, a, b in np.ndindex(*w.shape):
        own, other = (a, b) if axis == 0 else (b, a)
        out[j * kernel[axis] + own, i * kernel[1 - axis] + other] = w[i, j, a, b]
    return out


@pytest.mark.parametrize(("order", "axis"), [("forward", 0), ("backward", 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_two_steps_are_best(order: Literal["forward", "backward"], axis: int, groups: int) -> None:
    layer = conv_layer(8, 6, (3, 4), groups=groups)
    method = Spatial(order=order)
    parts = layer.weight.reshape(groups, 8 // groups, 6 // groups, 3, 4)
    values = [scipy.linalg.svdvals(rearranged(w, axis)) for w in parts]
    (full,) = method.full_ranks(layer)
    assert full == len(values[0])
    norm = np.linalg.norm(layer.weight)
    errors = [error_of(method, layer, (r,)) for r in range(1, full + 1)]
    tails = [np.linalg.norm([v[r:] for v in values]) / norm for r in range(1, full + 1)]
    np.testing.assert_allclose(errors, tails, rtol=1e-4, atol=2e-6)
    assert all(a >= b for a, b in itertools.pairwise(errors[:-1]))


def test_three_steps_are_nearly_best() -> None:
    layer = conv_layer(6, 5, (3, 2, 4))
    method = Spatial(order="forward")
    first = scipy.linalg.svdvals(layer.weight.transpose(1, 2, 0, 3, 4).reshape(15, -1))
    last = scipy.linalg.svdvals(layer.weight.transpose(0, 4, 1, 2, 3).reshape(24, -1))
    assert method.full_ranks(layer) == (15, 24)
    norm = np.linalg.norm(layer.weight)
    previous = 1.0
    for ranks in ((1, 1), (2, 4), (5, 9), (9, 12), (12, 20), (15, 24)):
        tails = np.linalg.norm(first[ranks[0] :]) / norm, np.linalg.norm(last[ranks[1] :]) / norm
        error = error_of(method, layer, ranks)
        assert max(tails) - 1e-6 <= error <= np.hypot(*tails) + 1e-6
        assert error <= previous
        previous = error


def test_separable_filters_are_found() -> None:
    rng = np.random.default_rng(0)
    vertical, horizontal = rng.standard_normal((3, 6, 5)), rng.standard_normal((7, 3, 4))
    weight = np.einsum("rsa,trb->tsab", vertical, horizontal).astype(np.float32)
    layer = conv_layer(7, 6, (5, 4), weight=weight)
    method = Spatial(order="forward")
    assert method.ranks_for_error(layer, 1e-4) == (3,)
    assert error_of(method, layer, (3,)) < 1e-6
    assert error_of(method, layer, (2,)) > 0.1


def test_three_axes_are_found() -> None:
    rng = np.random.default_rng(0)
    cores = [rng.standard_normal(shape) for shape in ((4, 3, 2), (2, 3, 3), (3, 3, 5))]
    weight = np.einsum("sap,pbq,qct->tsabc", *cores).astype(np.float32)
    layer = conv_layer(5, 4, (3, 3, 3), weight=weight)
    assert Spatial(order="forward").ranks_for_error(layer, 1e-4) == (2, 3)
    assert error_of(Spatial(order="forward"), layer, (2, 3)) < 1e-6


def spec_layer(transposed: bool) -> Layer:
    """Every attribute different along the two axes."""
    weight = np.random.default_rng(0).standard_normal((12, 4, 3, 5)).astype(np.float32)
    extra = (1, 2) if transposed else ()
    spec = ConvSpec((2, 3), (1, 2), (1, 2, 0, 3), 2, transposed, extra)
    name = "ConvTranspose" if transposed else "Conv"
    return Layer("layer", name, weight, None, spec, input_shape=(1, 8, 17, 19))


def test_attributes_and_costs_by_axis() -> None:
    layer, method = spec_layer(False), Spatial(order="forward")
    chain = outline(method, layer, (4,))
    first, last = chain.steps
    assert isinstance(first, Convolve)
    assert isinstance(last, Convolve)
    assert first.spec == ConvSpec((2, 1), (1, 1), (1, 0, 0, 0), 2)
    assert last.spec == ConvSpec((1, 3), (1, 2), (0, 2, 0, 3), 2)
    assert chain.output_shape((1, 8, 17, 19)) == (1, 12, 8, 6)
    assert chain.params == 2 * 4 * 4 * 3 + 12 * 4 * 5
    # Rows are halved by the first step, columns by the second.
    assert chain.macs((1, 8, 17, 19)) == 8 * 19 * (2 * 4 * 4 * 3) + 8 * 6 * (12 * 4 * 5)
    transposed = outline(method, spec_layer(True), (4,))
    assert [s.spec.output_padding for s in transposed.steps if isinstance(s, Convolve)] == [(1, 0), (0, 2)]


def test_an_axis_of_length_one_goes_where_it_saves() -> None:
    method = Spatial(order="forward")
    for transposed, strides in ((False, [(2, 2, 1), (1, 1, 2)]), (True, [(1, 2, 1), (2, 1, 2)])):
        steps = outline(method, conv_layer(6, 4, (1, 3, 3), stride=2, transposed=transposed), (3,)).steps
        assert [s.spec.strides for s in steps if isinstance(s, Convolve)] == strides


def test_automatic_order_costs_least() -> None:
    layers = [
        conv_layer(4, 16, (3, 5)),
        conv_layer(16, 4, (3, 5)),
        spec_layer(False),
        spec_layer(True),
        conv_layer(6, 5, (2, 3, 4), stride=2),
        conv_layer(6, 5, (2, 3, 4), stride=2, transposed=True),
    ]
    for layer, steps in itertools.product(layers, (2, 3)):
        options: dict[str, Any] = {"steps": steps}
        auto, forward, backward = (
            outline(m, layer, m.full_ranks(layer)).macs(layer.assumed_input_shape())
            for m in (Spatial(order=o, **options) for o in ("auto", "forward", "backward"))
        )
        assert auto <= min(forward, backward)
    assert Spatial().split(conv_layer(8, 8, (3, 3))) == ((0,), (1,))
    spec = ConvSpec((1, 2), (1, 1), (1, 1, 1, 1))
    assert Spatial().split(replace(conv_layer(8, 8, (3, 3)), conv=spec)) == ((1,), (0,))  # the stride first


def test_two_steps_of_three_axes() -> None:
    layer = conv_layer(6, 5, (2, 3, 4))
    assert Spatial(order="forward", steps=2).split(layer) == ((0,), (1, 2))
    assert Spatial(order="backward", steps=2).split(layer) == ((1, 2), (0,))
    shapes = [f.shape for f in Spatial(order="backward", steps=2).fit(layer, (7,))]
    assert shapes == [(7, 5, 1, 3, 4), (6, 7, 2, 1, 1)]


def test_determinism_scale_and_nan() -> None:
    for layer, ranks in ((conv_layer(8, 6, (3, 3), groups=2), (3,)), (conv_layer(6, 5, (3, 2, 3)), (4, 5))):
        properties.check_determinism(Spatial(), layer, ranks)
        properties.check_balance(Spatial(), layer, ranks)
        properties.check_nan(Spatial(), layer)


def test_refusals() -> None:
    def reason(layer: Layer) -> str:
        return refusal_of(Spatial(), layer) or ""

    assert reason(linear_layer(6, 8)) == "no convolution: use svd"
    assert reason(conv_layer(6, 8, (1, 1))) == "a kernel of one position: use svd"
    assert reason(conv_layer(6, 8, (3,))) == "a kernel along one axis only: use svd"
    assert reason(conv_layer(6, 8, (1, 3))) == "a kernel along one axis only: use svd"
    assert reason(conv_layer(8, 8, (3, 3), groups=8)).startswith("depthwise")
    assert reason(conv_layer(6, 8, (2, 2, 2, 2))) == "a kernel along 4 axes: at most 3 are split"
