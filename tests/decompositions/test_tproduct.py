from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxdecomp.core.layer import Array, Layer, relative_error
from onnxdecomp.decompositions.base import outline, refusal_of
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.decompositions.tproduct import Slicing, Tproduct, dct
from onnxdecomp.errors import UsageError
from tests.builders.cases import Case, case_of, convolutions, gemms, matmuls
from tests.builders.layers import conv_layer, error_of, fitted, linear_layer
from tests.builders.running import run
from tests.decompositions import properties
from tests.layers.test_rewrite_exact import decompose

METHODS = (Tproduct(), Tproduct(transform="data"), Tproduct(slices=3))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Linear layers and convolutions of any direction, with groups; channels that divide and primes."""
    outputs, inputs = draw(st.integers(1, 18)), draw(st.integers(2, 18))
    kernel = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    seed = draw(st.integers(0, 99))
    if not kernel:
        return linear_layer(2 * outputs, 2 * inputs, seed=seed)
    g = draw(st.integers(1, 3))
    transposed, stride = draw(st.booleans()), draw(st.integers(1, 2))
    shape = (g * outputs, g * inputs, kernel)
    return conv_layer(*shape, groups=g, transposed=transposed, stride=stride, seed=seed)


@pytest.mark.parametrize("method", METHODS, ids=str)
@settings(max_examples=25, deadline=None)
@given(layer=layers(), fraction=st.floats(0.05, 1.0))
def test_promises(method: Tproduct, layer: Layer, fraction: float) -> None:
    assume(refusal_of(method, layer) is None)
    properties.check_full_rank(method, layer)
    properties.check_outline(method, layer, method.fraction_ranks(layer, fraction))
    properties.check_error_bound(method, layer, fraction)
    properties.check_spectra(method, layer)


LAYERS = (
    linear_layer(24, 36),
    linear_layer(90, 20),
    conv_layer(12, 18, (3, 3)),
    conv_layer(36, 12, (3,), groups=2),
    conv_layer(6, 30, (2, 2), transposed=True, stride=2),
)
NAMES = ["wide", "tall", "conv", "grouped", "transposed"]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=NAMES)
def test_deterministic_finite_and_better_with_rank(method: Tproduct, layer: Layer) -> None:
    (full,) = method.full_ranks(layer)
    properties.check_determinism(method, layer, (max(1, full // 2),))
    properties.check_nan(method, layer)
    errors = [error_of(method, layer, (rank,)) for rank in range(1, full + 1)]
    assert errors == sorted(errors, reverse=True)
    zero = replace(layer, weight=np.zeros_like(layer.weight))
    assert not fitted(method, zero, (1,)).dense().any()


def slices_of(layer: Layer, cut: Slicing, transform: Array) -> Array:
    """The frontal slices by the definition: einsum over the tensor [m, n, …] or [n, m, …] of every group."""
    g, n, m = layer.groups, cut.count, cut.height
    weight = layer.weight.reshape(g, -1, *layer.weight.shape[-1 - len(layer.kernel) :]).astype(np.float64)
    if cut.side == "in":
        weight = weight.swapaxes(1, 2)
    if layer.conv is None:
        return np.asarray(np.einsum("kp,gmpw->gkmw", transform, weight.reshape(g, m, n, -1)))
    return np.asarray(np.einsum("kp,gpmw->gkmw", transform, weight.reshape(g, n, m, -1)))


@pytest.mark.parametrize("layer", LAYERS, ids=NAMES)
def test_best_of_its_tubal_rank(layer: Layer) -> None:
    """Kilmer et al. 2021: the error is the slices' tails, and no tensor of that rank is nearer."""
    method = Tproduct()
    cut = method.slicing(layer)
    slices = slices_of(layer, cut, dct(cut.count))
    values = np.linalg.svdvals(slices)
    assert np.linalg.norm(values) == pytest.approx(float(np.linalg.norm(layer.weight)))
    rng = np.random.default_rng(0)
    for rank in range(1, cut.full):
        least = np.linalg.norm(values[..., rank:]) / np.linalg.norm(values)
        factors = method.fit(layer, (rank,))
        assert error_of(method, layer, (rank,)) == pytest.approx(least, rel=1e-4)
        dense = method.assemble(layer, factors).dense()
        ranks = np.linalg.matrix_rank(slices_of(replace(layer, weight=dense), cut, dct(cut.count)), rtol=1e-4)
        assert ranks.max() == rank
        sides = ("in", "out")
        blocks, rest = (1, 2) if cut.side == sides[0] else (1, 0)
        for scale in (1e-3, 1e-2, 0.1):
            moved = list(factors)
            for index in (blocks, rest):
                moved[index] = factors[index] * (1 + scale * rng.standard_normal(factors[index].shape))
            other = method.assemble(layer, tuple(moved)).dense()
            assert relative_error(other, layer.weight) > least


def test_the_cosine_transform() -> None:
    for n in (1, 2, 5, 16):
        np.testing.assert_allclose(dct(n), scipy.fft.dct(np.eye(n), axis=0, norm="ortho"), atol=1e-14)
        np.testing.assert_allclose(dct(n) @ dct(n).T, np.eye(n), atol=1e-14)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_everything_is_real(method: Tproduct) -> None:
    for layer in LAYERS:
        chain = fitted(method, layer, (1,))
        assert {step.weight.dtype for step in chain.weighted} == {np.dtype(np.float32)}


def test_planted_tubal_rank_is_found() -> None:
    """Which neighbours there are matters: with its inputs in another order the weight has no such rank."""
    method = Tproduct(slices=8)
    layer = linear_layer(45, 64)
    planted = replace(layer, weight=fitted(method, layer, (3,)).dense())
    assert method.ranks_for_error(planted, 1e-4) == (3,)
    assert error_of(method, planted, (3,)) < 1e-6
    order = np.random.default_rng(0).permutation(64)
    shuffled = replace(planted, weight=planted.weight[:, order])
    assert error_of(method, shuffled, (3,)) > 0.1


def test_a_transform_learned_from_the_weight_finds_its_own() -> None:
    """A weight of tubal rank 3 under another transform than the cosines."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    scales = np.linspace(4, 1, 8)[:, None, None]
    slices = scales * (rng.standard_normal((8, 45, 3)) @ rng.standard_normal((8, 3, 8)))
    weight = np.einsum("kp,ktm->tmp", turn, slices).reshape(45, 64).astype(np.float32)
    layer = replace(linear_layer(45, 64), weight=weight)
    cosines, learned = Tproduct(slices=8), Tproduct(slices=8, transform="data")
    assert error_of(learned, layer, (3,)) < error_of(cosines, layer, (3,))


def test_parameters_and_macs() -> None:
    layer = linear_layer(40, 48)  # input_shape [3, 48]
    method = Tproduct(slices=6)
    assert method.slicing(layer) == Slicing("in", 6, 8, 40)  # 40 outputs do not make 6 slices
    chain = outline(method, layer, (5,))
    assert chain.params == 6 * 6 + 6 * 8 * 5 + 6 * 5 * 40
    assert chain.macs((3, 48)) == 3 * (48 * 6 + 48 * 5 + 6 * 5 * 40) == 3 * method.slicing(layer).macs(5)

    conv = conv_layer(24, 20, (3, 3), groups=2)  # 9 x 9 to 8 x 8
    method = Tproduct(slices=3)
    assert method.slicing(conv) == Slicing("out", 3, 4, 10 * 9)
    chain = outline(method, conv, (2,))
    assert chain.params == 2 * (10 * 9 * 6 + 12 * 2 + 3 * 3) + 24
    assert chain.macs((1, 20, 9, 9)) == 64 * 2 * (10 * 9 * 6 + 12 * 2 + 12 * 3)
    assert chain.macs((1, 20, 9, 9)) == 64 * 2 * method.slicing(conv).macs(2)


@settings(max_examples=40, deadline=None)
@given(layer=layers())
def test_the_cheapest_slicing_is_taken(layer: Layer) -> None:
    method = Tproduct()
    assume(refusal_of(method, layer) is None)
    cut = method.slicing(layer)
    per_group = {"in": layer.inputs, "out": layer.outputs}[cut.side] // layer.groups
    assert cut.count * cut.height == per_group
    for n in range(2, 17):
        if refusal_of((given := Tproduct(slices=n)), layer) is None:
            other = given.slicing(layer)
            assert cut.macs(cut.full / 2) <= other.macs(other.full / 2)


def test_slices_of_usual_layers() -> None:
    for layer, side, count in (
        (linear_layer(512, 512), "in", 16),
        (linear_layer(10, 64), "out", 2),
        (linear_layer(2053, 512), "in", 16),
        (linear_layer(7, 323), "in", 17),  # no divisor up to 16
        (conv_layer(64, 64, (3, 3)), "in", 4),
        (conv_layer(192, 64, (3, 3)), "in", 4),
        (conv_layer(64, 256, (1, 1)), "out", 4),
    ):
        cut = Tproduct().slicing(layer)
        assert (cut.side, cut.count) == (side, count)


def test_refusals() -> None:
    def reason(layer: Layer, method: Tproduct = Tproduct()) -> str:  # noqa: B008
        return refusal_of(method, layer) or ""

    assert (
        reason(linear_layer(13, 7))
        == "neither 7 inputs nor 13 outputs make slices of rank 2 or more: use svd"
    )
    assert reason(linear_layer(4, 3)) == ""
    assert reason(conv_layer(12, 9, (3,), groups=3)) == ""  # 4 outputs in a group
    assert reason(conv_layer(9, 9, (3,), groups=3)).startswith("neither 3 inputs nor 3 outputs")
    assert reason(linear_layer(12, 9), Tproduct(slices=5)) == (
        "neither 9 inputs nor 12 outputs make 5 slices of rank 2 or more"
    )
    assert reason(linear_layer(8, 8, (2,))) == "a stack of matrices: use svd"
    assert reason(conv_layer(8, 8, (3,), groups=8)).startswith("depthwise")
    assert refusal_of(Tproduct(), conv_layer(1, 16, (1, 1))) is not None  # one output: rank 1
    with pytest.raises(UsageError, match="slices 1"):
        Tproduct(slices=1)
    with pytest.raises(UsageError, match="transform"):
        Tproduct(transform="dft")  # type: ignore[arg-type]


def test_the_tail_is_the_slices_share_of_an_svd() -> None:
    """Of one slice more than there is, nothing is left but the SVD: n r ranks bound it from below."""
    for layer in LAYERS[:2]:
        method = Tproduct()
        n = method.slicing(layer).count
        assert error_of(method, layer, (1,)) >= error_of(Svd(), layer, (n,)) * (1 - 1e-6)


OPTIONS = [{}, {"slices": 2}, {"slices": 3, "transform": "data"}]


@pytest.mark.parametrize("options", OPTIONS, ids=["auto", "two", "three-data"])
@settings(max_examples=20)
@given(case=st.one_of(convolutions(), convolutions(transposed=True), gemms(), matmuls()))
def test_full_rank_in_onnxruntime(options: dict[str, object], case: Case) -> None:
    exact(case, options)


def exact(case: Case, options: dict[str, object]) -> list[str]:
    """The nodes at full rank, whose outputs in ONNX Runtime are the original's; none where it refuses."""
    (before,) = run(case.model, case.feeds)
    model, result = decompose(case, method="tproduct", rank="1.0", options={"tproduct": options})
    (after,) = run(model, case.feeds)
    assert after.shape == before.shape
    assert np.linalg.norm(after - before) <= 1e-4 * np.linalg.norm(before) + 1e-30
    return [node.op_type for node in model.graph] if result.rewritten else []


@pytest.mark.parametrize("lead", [(3,), (2, 3), (2, 2, 3)])
def test_one_transpose_on_each_side_of_the_slices(lead: tuple[int, ...]) -> None:
    """The block-diagonal product wants its blocks first; it shares the transposes with the slicing."""
    rng = np.random.default_rng(0)
    for inputs, outputs in ((36, 7), (7, 36)):
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
        weights, feeds = (
            {"w": rng.standard_normal((inputs, outputs))},
            {"x": rng.standard_normal((*lead, inputs))},
        )
        nodes = exact(case_of([node], weights, feeds, dynamic=True), {})
        assert nodes.count("MatMul") == 3
        assert nodes.count("Transpose") == 2
        assert len(nodes) == 7


def test_the_convolution_needs_no_transpose() -> None:
    rng = np.random.default_rng(0)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer")
    weights = {"w": rng.standard_normal((12, 8, 3, 3))}
    nodes = exact(case_of([node], weights, {"x": rng.standard_normal((2, 8, 6, 5))}, dynamic=True), {})
    assert sorted(nodes) == ["Conv"] * 3 + ["Reshape"] * 2


def test_large_norms_are_shared() -> None:
    """No factor of a weight near the largest half leaves its range."""
    weight = (np.random.default_rng(0).standard_normal((16, 16, 3, 3)) * 1e4).astype(np.float32)
    layer = conv_layer(16, 16, (3, 3), weight=weight)
    assert max(np.abs(f).max() for f in Tproduct().fit(layer, (2,))) < math.sqrt(1e4 * 1e4 * 16)
