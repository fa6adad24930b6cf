from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxdecomp.core.layer import Layer
from onnxdecomp.core.steps import Pad, PermuteChannels, Slice, Transpose
from onnxdecomp.decompositions.base import outline, refusal_of
from onnxdecomp.decompositions.tt import Tt
from onnxdecomp.decompositions.tucker import Tucker
from onnxdecomp.errors import UsageError
from tests.builders.cases import Case, case_of, convolutions, gemms, matmuls
from tests.builders.layers import conv_layer, error_of, fitted, linear_layer, specialised
from tests.builders.running import run
from tests.decompositions import properties
from tests.layers.test_rewrite_exact import decompose

MODAL = (Tt(form="tensor"), Tt(form="tensor", order=3))
"""Options under which every layer is a train of modes."""


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    outputs, inputs = draw(st.integers(2, 24)), draw(st.integers(2, 24))
    kernel = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    seed = draw(st.integers(0, 99))
    if not kernel:
        return linear_layer(2 * outputs, inputs, seed=seed)
    transposed, stride = draw(st.booleans()), draw(st.integers(1, 2))
    g = draw(st.sampled_from([1, 1, 2, 3]))
    return conv_layer(
        g * outputs, g * inputs, kernel, groups=g, transposed=transposed, stride=stride, seed=seed
    )


@pytest.mark.parametrize("tt", MODAL, ids=str)
@settings(max_examples=25, deadline=None)
@given(layer=layers(), fraction=st.floats(0.05, 1.0))
def test_promises_of_trains_of_modes(tt: Tt, layer: Layer, fraction: float) -> None:
    assume(refusal_of(tt, layer) is None)
    properties.check_full_rank(tt, layer)
    properties.check_outline(tt, layer, tt.fraction_ranks(layer, fraction))
    properties.check_error_bound(tt, layer, fraction)
    properties.check_spectra(tt, layer)


@pytest.mark.parametrize("tt", MODAL, ids=str)
@pytest.mark.parametrize("layer", [conv_layer(12, 26, (3, 3)), linear_layer(34, 24)], ids=["conv", "linear"])
def test_the_tensor_form_is_deterministic_balanced_and_refuses_nan(tt: Tt, layer: Layer) -> None:
    ranks = tt.fraction_ranks(layer, 0.5)
    properties.check_determinism(tt, layer, ranks)
    properties.check_balance(tt, layer, ranks)
    properties.check_nan(tt, layer)
    errors = [error_of(tt, layer, tt.fraction_ranks(layer, f)) for f in (0.1, 0.4, 0.7, 1.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 1


def exact(case: Case, options: dict[str, Any]) -> list[str]:
    """The nodes at full rank, whose outputs in ONNX Runtime are the original's; none where tt refuses."""
    expected = run(case.model, case.feeds)
    model, result = decompose(case, method="tt", rank="1.0", options={"tt": options})
    assert result.plan is not None
    choice = result.plan.choices[0]
    assert bool(result.rewritten) == (choice.method is not None) == (not choice.reason)
    (before,), (after,) = expected, run(model, case.feeds)
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    assert np.linalg.norm(after - before) <= 1e-4 * np.linalg.norm(before) + 1e-30
    return [node.op_type for node in model.graph] if result.rewritten else []


@pytest.mark.parametrize("order", [2, 3])
@settings(max_examples=30)
@given(case=st.one_of(convolutions(), convolutions(transposed=True)))
def test_tensor_form_in_onnxruntime(order: int, case: Case) -> None:
    exact(case, {"form": "tensor", "order": order})


@settings(max_examples=40)
@given(case=st.one_of(gemms(), matmuls()), order=st.integers(2, 4))
def test_matrix_in_onnxruntime(case: Case, order: int) -> None:
    exact(case, {"order": order})


@pytest.mark.parametrize("opset", [7, 10, 17])
@pytest.mark.parametrize("dynamic", [False, True])
def test_prime_sizes_are_padded(opset: int, dynamic: bool) -> None:
    rng = np.random.default_rng(0)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    x = rng.standard_normal((2, 3, 17))
    linear = case_of([node], {"w": rng.standard_normal((17, 11))}, {"x": x}, dynamic, opset=opset)
    nodes = exact(linear, {})
    assert nodes.count("Pad") == nodes.count("Slice") == 1
    conv = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="layer", pads=[1, 1, 0, 0], strides=[2, 1])
    weights = {"w": rng.standard_normal((13, 17, 3, 2)), "b": rng.standard_normal(13)}
    image = {"x": rng.standard_normal((2, 17, 9, 7))}
    nodes = exact(case_of([conv], weights, image, dynamic, opset=opset), {"form": "tensor"})
    assert nodes.count("Pad") == nodes.count("Slice") == 1


def test_padding_is_left_out_where_it_is_not_needed() -> None:
    tt = Tt(form="tensor")
    for outputs, inputs, kinds in (
        (16, 16, set()),
        (16, 17, {Pad}),
        (17, 16, {Slice}),
        (17, 17, {Pad, Slice}),
    ):
        for layer in (linear_layer(outputs, inputs), conv_layer(outputs, inputs, (3,))):
            chain = outline(tt, layer, tt.full_ranks(layer))
            assert {type(s) for s in chain.steps if isinstance(s, Pad | Slice)} == kinds
            assert chain.output_shape(layer.assumed_input_shape())[1 if layer.conv else -1] == outputs


def test_no_step_moves_data_about() -> None:
    for layer in (linear_layer(64, 48), conv_layer(24, 16, (3, 3))):
        tt = Tt(form="tensor", order=3)
        steps = outline(tt, layer, tt.fraction_ranks(layer, 0.5)).steps
        assert not any(isinstance(step, Transpose | PermuteChannels) for step in steps)


def test_groups_have_trains_of_their_own() -> None:
    tt = Tt(form="tensor", shape="4x3:2x4")
    layer = conv_layer(16, 24, (3, 3), groups=2)
    assert tt.shapes(layer, (3, 2)) == ((2, 1, 4, 2, 3), (2, 3, 3, 4, 2), (2, 2, 3, 3))
    chain = fitted(tt, layer, (3, 2))
    assert chain.params == 2 * (24 + 72 + 18) + 16
    for group in range(2):
        half = replace(layer, weight=layer.weight[8 * group : 8 * group + 8])
        assert layer.conv is not None
        alone = replace(half, conv=replace(layer.conv, groups=1), bias=None)
        expected = fitted(tt, alone, (3, 2)).dense()
        np.testing.assert_allclose(chain.dense()[8 * group : 8 * group + 8], expected, atol=1e-5)


def test_published_parameter_counts() -> None:
    """A 784 x 625 layer with the modes (4, 7, 4, 7) x (5, 5, 5, 5), as Novikov et al. 2015 count it."""
    tt = Tt(shape="4x7x4x7:5x5x5x5")
    layer = replace(linear_layer(625, 784), bias=np.zeros(625, np.float32))
    assert [outline(tt, layer, (rank,) * 3).params for rank in (2, 4, 16)] == [330 + 625, 1_725, 15_585]
    assert len(tt.shapes(layer, (2, 2, 2))) == 4
    assert tt.full_ranks(layer) == (20, 700, 35)


def test_published_compression_of_vgg() -> None:
    """Table 2 of Novikov et al. 2015: the 25088 x 4096 layer at the ranks 1, 2 and 4."""
    tt = Tt(shape="2x7x8x8x7x4:4x4x4x4x4x4")
    layer = replace(linear_layer(2, 2), weight=np.broadcast_to(np.float32(0), (4096, 25088)))
    params = [outline(tt, layer, (rank,) * 5).params for rank in (1, 2, 4)]
    assert [round(4096 * 25088 / count) for count in params] == [713_614, 194_622, 50_972]


def test_parameters_and_macs_of_the_tensor_form() -> None:
    tt = Tt(form="tensor", shape="4x4:2x8")
    layer = conv_layer(16, 16, (3, 3))  # images of 9 x 9, outputs of 8 x 8
    chain = outline(tt, layer, (3, 2))
    assert tt.shapes(layer, (3, 2)) == ((1, 4, 2, 3), (3, 4, 8, 2), (2, 3, 3))
    assert chain.params == 24 + 192 + 18 + 16
    # both modes on the larger images, one after the other, then the kernel for each output
    first, second, kernel = 81 * 4 * 4 * (2 * 3), 81 * 2 * (3 * 4) * (8 * 2), 64 * 16 * 2 * 9
    assert chain.macs((1, 16, 9, 9)) == first + second + kernel


def test_planted_train_is_found() -> None:
    for tt, layer, ranks in (
        (Tt(shape="4x5x3:3x4x5"), linear_layer(60, 60), (3, 4)),
        (Tt(form="tensor", shape="4x5:5x4"), conv_layer(20, 20, (3, 3)), (5, 2)),
    ):
        rng = np.random.default_rng(0)
        cores = tuple(rng.standard_normal(s).astype(np.float32) for s in tt.shapes(layer, ranks))
        planted = replace(layer, weight=tt.assemble(layer, cores).dense())
        assert tt.ranks_for_error(planted, 1e-4) == ranks
        assert error_of(tt, planted, ranks) < 1e-6


def test_one_bond_is_the_best_of_its_rank() -> None:
    """With two modes the TT-SVD is a truncated SVD of the rearranged matrix (Eckart and Young)."""
    tt = Tt(shape="6x5:4x6")
    layer = linear_layer(24, 30)
    rearranged = layer.weight.reshape(4, 6, 6, 5).transpose(2, 0, 3, 1).reshape(24, 30)
    values = np.linalg.svdvals(rearranged.astype(np.float64))
    for rank in (1, 7, 20):
        least = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
        assert error_of(tt, layer, (rank,)) == pytest.approx(least, rel=1e-5)


def test_fraction_counts_parameters() -> None:
    tt = Tt(order=3)
    layer = linear_layer(64, 64)
    (cap,) = set(tt.fraction_ranks(layer, 0.3))
    params = [sum(math.prod(s) for s in tt.shapes(layer, (c, c))) for c in (cap, cap + 1)]
    assert params[0] <= 0.3 * layer.weight.size < params[1]


def test_refusals() -> None:
    reason = refusal_of(Tt(shape="4x5:3x4"), linear_layer(13, 20))
    assert reason is not None
    assert "another size than 20:13" in reason
    assert refusal_of(Tt(shape="4x5:3x4"), linear_layer(12, 20)) is None
    assert refusal_of(Tt(shape="4x5:3x4"), linear_layer(11, 19)) is None  # padded
    assert refusal_of(Tt(), linear_layer(12, 20, (2,))) == "a stack of matrices: use svd"
    grouped = conv_layer(24, 40, (3,), groups=2)
    assert refusal_of(Tt(form="tensor", shape="4x5:3x4"), grouped) is None
    reason = refusal_of(Tt(form="tensor", shape="4x5:3x4"), conv_layer(22, 38, (3,), groups=2))
    assert reason is not None
    assert "another size than 19:11" in reason
    assert refusal_of(Tt(), grouped) is None
    pointwise = conv_layer(8, 8, (1, 1))
    assert refusal_of(Tt(), pointwise) == "on such a layer it is svd: use that"
    assert specialised(Tt(), pointwise).name == "svd"
    assert specialised(Tt(form="tensor"), pointwise).name == "tt"


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="order 1"):
        Tt(order=1)
    with pytest.raises(UsageError, match="tt: shape"):
        Tt(shape="4x7")
    with pytest.raises(UsageError, match="tt: form"):
        Tt(form="both")  # type: ignore[arg-type]


def test_channel_train_is_close_to_tucker() -> None:
    layer = conv_layer(16, 12, (3, 3))
    train, tucker = error_of(Tt(), layer, (6, 8)), error_of(Tucker(), layer, (8, 6))
    assert tucker <= train * 1.001
    assert train < tucker * 1.05


def test_unattainable_ranks_are_padded() -> None:
    layer = conv_layer(64, 8, (3,))
    chain = fitted(Tt(), layer, (1, 24))  # the second bond can be 3 at most
    assert chain.dense() == pytest.approx(fitted(Tt(), layer, (1, 3)).dense(), abs=1e-5)
