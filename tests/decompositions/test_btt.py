from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import Convolve, PermuteChannels, Transpose
from onnxdecomp.decompositions.base import outline, refusal_of
from onnxdecomp.decompositions.btt import Btt, _block_factors
from onnxdecomp.errors import UsageError
from onnxdecomp.tensor.linalg import two_factors
from tests.builders.cases import Case, case_of, gemms, matmuls
from tests.builders.layers import conv_layer, error_of, fitted, linear_layer
from tests.decompositions import properties

METHODS = (Btt(), Btt(layout="blocks"), Btt(blocks=3))
FEW = settings(max_examples=25, deadline=None)


@st.composite
def pointwise_convolutions(draw: st.DrawFn) -> Layer:
    groups = draw(st.integers(1, 3))
    return conv_layer(
        groups * draw(st.integers(2, 16)),
        groups * draw(st.integers(2, 16)),
        (1,) * draw(st.integers(1, 3)),
        groups=groups,
        transposed=draw(st.booleans()),
        stride=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def matrices(draw: st.DrawFn) -> Layer:
    return linear_layer(draw(st.integers(2, 48)), draw(st.integers(2, 48)), seed=draw(st.integers(0, 99)))


@pytest.mark.parametrize("method", METHODS, ids=str)
@FEW
@given(layer=st.one_of(pointwise_convolutions(), matrices()), fraction=st.floats(0.05, 1.0))
def test_promises(method: Btt, layer: Layer, fraction: float) -> None:
    assume(refusal_of(method, layer) is None)
    properties.check_full_rank(method, layer)
    properties.check_outline(method, layer, method.fraction_ranks(layer, fraction))
    properties.check_error_bound(method, layer, fraction)
    properties.check_spectra(method, layer)


@st.composite
def pointwise_cases(draw: st.DrawFn) -> Case:
    """A 1x1 Conv or ConvTranspose with enough channels for blocks, and any attributes."""
    d, groups, transposed = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.booleans())
    ins, outs = draw(st.integers(4, 12)), draw(st.integers(4, 12))
    strides = [draw(st.integers(1, 3)) for _ in range(d)]
    attributes: dict[str, Any] = {"group": groups, "strides": strides}
    if draw(st.booleans()):
        attributes["auto_pad"] = draw(st.sampled_from(["VALID", "SAME_UPPER", "SAME_LOWER"]))
    elif not transposed:
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * d)]
    else:
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = (ins * groups, outs) if transposed else (outs * groups, ins)
    weights = {"w": rng.standard_normal((*shape, *(1,) * d))}
    if draw(st.booleans()):
        weights["b"] = rng.standard_normal(outs * groups)
    x = rng.standard_normal((2, ins * groups, *(draw(st.integers(1, 6)) for _ in range(d))))
    op_type = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(op_type, ["x", *weights], ["y"], name="layer", **attributes)
    return case_of([node], weights, {"x": x}, draw(st.booleans()))


@pytest.mark.parametrize("method", METHODS, ids=str)
@FEW
@given(case=st.one_of(gemms(), matmuls(), pointwise_cases()))
def test_same_outputs_in_onnx_runtime(method: Btt, case: Case) -> None:
    outputs = properties.outputs_at_full_rank(method, case)
    assume(outputs is not None)
    assert outputs is not None
    before, after = outputs
    assert before.shape == after.shape
    assert np.linalg.norm(after - before) <= 1e-4 * np.linalg.norm(before) + 1e-30


def strided_blocks(w: Array, b: int, c: int) -> list[Array]:
    """For each c-th part of the outputs and every b-th input from k on: the part of W between them."""
    return [rows[:, k::b] for rows in np.split(w, c) for k in range(b)]


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_every_rank_is_best(groups: int) -> None:
    layer = conv_layer(12 * groups, 20 * groups, (1, 1), groups=groups) if groups else linear_layer(12, 20)
    method = Btt()
    b, q, c, p = method.sizes(layer)
    assert (b, q, c, p) == (4, 5, 3, 4)
    parts = layer.weight.reshape(-1, 12, 20)
    values = np.stack([scipy.linalg.svdvals(x) for w in parts for x in strided_blocks(w, b, c)])
    norm = np.linalg.norm(layer.weight)
    assert method.full_ranks(layer) == (4,)
    errors = [error_of(method, layer, (r,)) for r in range(1, 5)]
    tails = [np.linalg.norm(values[:, r:]) / norm for r in range(1, 5)]
    np.testing.assert_allclose(errors, tails, rtol=1e-4, atol=2e-6)
    assert all(x > y for x, y in itertools.pairwise(errors))


def test_neighbours_as_blocks() -> None:
    layer = linear_layer(12, 20)
    parts = [x for rows in np.split(layer.weight, 3) for x in np.split(rows, 4, axis=1)]
    values = np.stack([scipy.linalg.svdvals(x) for x in parts])
    expected = np.linalg.norm(values[:, 2:]) / np.linalg.norm(layer.weight)
    assert error_of(Btt(layout="blocks"), layer, (2,)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (36, 36)])
def test_planted_monarch_matrix_is_found(shape: tuple[int, int]) -> None:
    """L P R written out with block-diagonal matrices and an explicit permutation."""
    method, rng, r = Btt(), np.random.default_rng(0), 2
    layer = linear_layer(*shape)
    b, q, c, p = method.sizes(layer)
    right = scipy.linalg.block_diag(*rng.standard_normal((b, c * r, q)))
    left = scipy.linalg.block_diag(*rng.standard_normal((c, p, b * r)))
    middle = np.eye(b * c * r)[np.arange(b * c * r).reshape(b, c, r).swapaxes(0, 1).ravel()]
    strides = np.eye(b * q)[np.arange(b * q).reshape(q, b).T.ravel()]
    layer.weight[:] = left @ middle @ right @ strides
    assert method.ranks_for_error(layer, 1e-4) == (r,)
    assert error_of(method, layer, (r,)) < 1e-6
    assert error_of(method, layer, (r - 1,)) > 0.1


def test_kronecker_products_and_trains_are_of_rank_one_and_r() -> None:
    rng = np.random.default_rng(0)
    layer = linear_layer(24, 30)
    b, q, c, p = Btt().sizes(layer)
    layer.weight[:] = np.kron(rng.standard_normal((c, q)), rng.standard_normal((p, b)))
    assert Btt().ranks_for_error(layer, 1e-4) == (1,)
    layer.weight[:] += np.kron(rng.standard_normal((c, q)), rng.standard_normal((p, b)))
    assert Btt().ranks_for_error(layer, 1e-4) == (2,)
    assert Btt(layout="blocks").ranks_for_error(layer, 1e-4) > (2,)


def test_costs() -> None:
    layer = linear_layer(64, 96)
    b, q, c, p = Btt().sizes(layer)
    assert (b, q, c, p) == (8, 12, 8, 8)
    chain = outline(Btt(), layer, (3,))
    assert chain.params == 3 * (b * 64 + c * 96)
    assert chain.macs((5, 96)) == 5 * 3 * (b * 64 + c * 96)
    assert sum(isinstance(step, Transpose) for step in chain.steps) == 2
    assert sum(isinstance(s, Transpose) for s in outline(Btt(layout="blocks"), layer, (3,)).steps) == 1
    # As an SVD of b times the rank.
    assert chain.params == (b * 3) * (64 + 96)


def test_costs_of_convolutions() -> None:
    layer = conv_layer(2 * 12, 2 * 20, (1, 1), groups=2, stride=2)
    chain = outline(Btt(), layer, (2,))
    first, last = (step for step in chain.steps if isinstance(step, Convolve))
    assert (first.spec.strides, last.spec.strides) == ((2, 2), (1, 1))
    assert (first.spec.groups, last.spec.groups) == (2 * 4, 2 * 3)
    assert first.weight.shape == (2 * 4 * 3 * 2, 5, 1, 1)
    assert last.weight.shape == (2 * 12, 4 * 2, 1, 1)
    positions = math.prod(chain.output_shape((1, 40, 9, 9))[2:])
    assert chain.macs((1, 40, 9, 9)) == positions * 2 * 2 * (4 * 12 + 3 * 20)
    assert sum(isinstance(step, PermuteChannels) for step in chain.steps) == 2
    transposed = outline(Btt(), conv_layer(12, 20, (1, 1), stride=2, transposed=True), (2,))
    specs = [step.spec for step in transposed.steps if isinstance(step, Convolve)]
    assert [spec.strides for spec in specs] == [(1, 1), (2, 2)]
    assert [spec.transposed for spec in specs] == [False, True]


def test_block_counts() -> None:
    def sizes(method: Btt, outputs: int, inputs: int) -> tuple[int, int, int, int]:
        return method.sizes(Layer("layer", "MatMul", np.broadcast_to(np.float32(0), (outputs, inputs))))

    assert sizes(Btt(), 4096, 25088) == (128, 196, 64, 64)
    assert sizes(Btt(), 10, 512) == (16, 32, 2, 5)
    assert sizes(Btt(), 1021, 512) == (16, 32, 1, 1021)
    assert sizes(Btt(blocks=4), 10, 512) == (4, 128, 2, 5)


@pytest.mark.parametrize("shape", [(7, 5, 9), (7, 9, 5), (3, 6, 6)])
def test_blocks_are_factorised_as_single_matrices_are(shape: tuple[int, int, int]) -> None:
    parts = np.random.default_rng(0).standard_normal(shape)
    parts[1] = 0
    left, right = _block_factors(parts, 3)
    for x, a, b in zip(parts, left, right, strict=True):
        expected = np.matmul(*two_factors(x, 3))
        np.testing.assert_allclose(a @ b, expected, atol=1e-10)
        if x.any():
            np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1), rtol=1e-8)


def test_determinism_scale_and_nan() -> None:
    for layer in (linear_layer(24, 35), conv_layer(12, 20, (1, 1))):
        properties.check_determinism(Btt(), layer, (3,))
        properties.check_balance(Btt(), layer, (3,))
        properties.check_nan(Btt(), layer)


def test_leading_axes_stay() -> None:
    layer = linear_layer(24, 36)
    for method in METHODS:
        chain = fitted(method, layer, (2,))
        x = y = np.random.default_rng(1).standard_normal((2, 3, 5, 36)).astype(np.float32)
        for step in chain.steps:
            y = step.forward(y)
        np.testing.assert_allclose(y, x @ chain.dense().T, rtol=1e-4, atol=1e-4)


def test_refusals() -> None:
    def reason(layer: Layer, **options: int) -> str:
        return refusal_of(Btt(**options), layer) or ""  # type: ignore[arg-type]

    assert reason(linear_layer(6, 8, (2,))) == "a stack of matrices: use svd"
    assert reason(conv_layer(6, 8, (3, 1))) == "a kernel of several positions: use tucker"
    assert reason(conv_layer(8, 8, (1, 1), groups=8)).startswith("depthwise")
    assert reason(linear_layer(7, 13)) == "a 7 x 13 matrix has no blocks of equal size: use svd"
    assert reason(linear_layer(12, 12), blocks=1).endswith("use svd")
    assert reason(linear_layer(6, 8), blocks=100) == "a full rank of 1: nothing to reduce"
    with pytest.raises(UsageError, match="btt: -1 blocks"):
        Btt(blocks=-1)
