"""Chains as values: what they stand for, cost and emit, step by step against NumPy and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, ConvSpec
from onnxdecomp.core.steps import (
    BlockMatMul,
    Convolve,
    LeftMatMul,
    MatMul,
    Pad,
    PermuteChannels,
    RegroupBatch,
    RegroupSpatial,
    Reshape,
    Slice,
    Transpose,
    pointwise,
)
from onnxdecomp.layers.find import find
from onnxdecomp.layers.lowering_check import check_lowering
from onnxdecomp.layers.replace import Rewriter
from tests.builders.cases import Case, case_of

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def lowers(case: Case, chain: Chain) -> None:
    """The chain's nodes, put in the place of the case's layer, do what its dense weight does."""
    model = ir.from_proto(case.model)
    matched, _ = find(model)
    rewritten = Rewriter(model).replace(matched[0], chain, {})
    (check,) = check_lowering([rewritten], opset=17, ir_version=8)
    assert check.rel_error is not None
    assert check.passed, check


def linear_case(inputs: int, outputs: int, lead: tuple[int, ...] = (3,), dynamic: bool = True) -> Case:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    return case_of([node], {"w": normal(inputs, outputs)}, {"x": normal(*lead, inputs)}, dynamic)


def conv_case(inputs: int, outputs: int, kernel: int = 1) -> Case:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer")
    weight = normal(outputs, inputs, kernel, kernel)
    return case_of([node], {"w": weight}, {"x": normal(2, inputs, 6, 5)}, True)


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_a_tensor_train_by_hand(lead: tuple[int, ...]) -> None:
    a, b = normal(4, 2 * 5), normal(3 * 2, 7)
    steps = (
        Reshape((12,), (3, 4)),
        MatMul(a),
        Reshape((3, 10), (3, 2, 5)),
        Transpose((2, 0, 1)),
        Reshape((5, 3, 2), (5, 6)),
        MatMul(b),
        Reshape((5, 7), (35,)),
    )
    chain = Chain(steps, None, 12)
    cores = a.reshape(4, 2, 5), b.reshape(3, 2, 7)
    expected = np.einsum("iro,jrp->opji", *cores).reshape(35, 12)
    np.testing.assert_allclose(chain.dense(), expected, rtol=1e-5, atol=1e-5)
    assert chain.macs((1, 12)) == 3 * 4 * 10 + 5 * 6 * 7
    assert chain.params == a.size + b.size
    lowers(linear_case(12, 35, lead), chain)


@pytest.mark.parametrize("lead", [(3,), (2, 3), (1, 2, 2)])
def test_a_block_diagonal_product(lead: tuple[int, ...]) -> None:
    weight = normal(3, 4, 5)
    chain = Chain((Reshape((12,), (3, 4)), BlockMatMul(weight), Reshape((3, 5), (15,))), None, 12)
    expected = np.zeros((15, 12), np.float32)
    for block in range(3):
        expected[5 * block : 5 * block + 5, 4 * block : 4 * block + 4] = weight[block].T
    np.testing.assert_allclose(chain.dense(), expected)
    assert chain.macs((2, 12)) == 2 * weight.size
    lowers(linear_case(12, 15, lead), chain)


def test_regrouped_and_permuted_channels() -> None:
    """(A kron B) on channels: B over the inner mode of every outer one, then A over the outer."""
    b, a = normal(5, 3), normal(2, 4)
    chain = Chain(
        (
            RegroupBatch(3),
            pointwise(b, 1, 2),
            RegroupBatch(20),
            PermuteChannels(tuple(outer * 5 + inner for inner in range(5) for outer in range(4))),
            RegroupBatch(4),
            pointwise(a, 1, 2),
            RegroupBatch(10),
            PermuteChannels(tuple(inner * 2 + outer for outer in range(2) for inner in range(5))),
        ),
        None,
        12,
    )
    np.testing.assert_allclose(chain.dense()[:, :, 0, 0], np.kron(a, b), rtol=1e-5, atol=1e-5)
    assert chain.macs((1, 12, 2, 2)) == 4 * (4 * b.size + 5 * a.size)
    lowers(conv_case(12, 10), chain)


def test_outer_modes_without_a_transpose() -> None:
    """A middle feature mode by a product from the left, an outermost channel mode with the rest in space."""
    a, b = normal(5, 3), normal(2, 4)
    steps = (
        Reshape((12,), (4, 3)),
        LeftMatMul(b),
        MatMul(a.T),
        Reshape((2, 5), (10,)),
    )
    linear = Chain(steps, None, 12)
    conv = Chain(
        (
            RegroupSpatial(4),
            pointwise(b, 1, 2),
            RegroupSpatial(6),
            RegroupBatch(3),
            pointwise(a, 1, 2),
            RegroupBatch(10),
        ),
        None,
        12,
    )
    for chain in (linear, conv):
        np.testing.assert_allclose(chain.dense().reshape(10, 12), np.kron(b, a), rtol=1e-5, atol=1e-5)
        assert chain.params == a.size + b.size
    assert linear.macs((7, 12)) == 7 * (3 * b.size + 2 * a.size)
    assert conv.macs((7, 12, 2, 2)) == 28 * (3 * b.size + 2 * a.size)
    lowers(linear_case(12, 10, (2, 3)), linear)
    lowers(conv_case(12, 10), conv)


@pytest.mark.parametrize("dynamic", [False, True])
def test_padded_and_cut(dynamic: bool) -> None:
    weight = normal(8, 6)
    linear = Chain((Pad(3, -1), MatMul(weight), Slice(4, -1)), None, 5)
    conv = Chain((Pad(3, 1), pointwise(weight.T, 1, 2), Slice(4, 1)), None, 5)
    for chain in (linear, conv):
        np.testing.assert_array_equal(chain.dense().reshape(4, 5), weight[:5, :4].T)
        assert chain.params == weight.size
    assert linear.output_shape((7, 5)) == (7, 4)
    assert conv.output_shape((7, 5, 2, 3)) == (7, 4, 2, 3)
    lowers(linear_case(5, 4, (2, 3), dynamic), linear)
    lowers(conv_case(5, 4), conv)


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_transposes_in_a_row_are_one(lead: tuple[int, ...]) -> None:
    """Two block-diagonal products bring their blocks to the front once, and identities are dropped."""
    first, second = normal(3, 4, 2), normal(3, 2, 5)
    steps = (
        Reshape((12,), (4, 3)),
        Transpose((1, 0)),
        BlockMatMul(first),
        Transpose((1, 0)),
        Transpose((1, 0)),
        BlockMatMul(second),
        Reshape((3, 5), (15,)),
    )
    case = linear_case(12, 15, lead)
    chain = Chain(steps, None, 12)
    model = ir.from_proto(case.model)
    matched, _ = find(model)
    rewritten = Rewriter(model).replace(matched[0], chain, {})
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["Reshape", "Transpose", "MatMul", "MatMul", "Transpose", "Reshape"]
    (check,) = check_lowering([rewritten], opset=17, ir_version=8)
    assert check.passed, check


def test_kernels_on_different_axes_combine() -> None:
    def along(axis: int, weight: Array) -> Convolve:
        shape = [1, 1]
        shape[axis] = 3
        spec = ConvSpec((1, 1), (1, 1), (0, 0, 0, 0))
        return Convolve(weight.reshape(*weight.shape[:2], *shape), spec)

    first, second = normal(4, 6, 3), normal(5, 4, 3)
    chain = Chain((along(0, first), along(1, second)), normal(5), 6)
    np.testing.assert_allclose(chain.dense(), np.einsum("msi,tmj->tsij", first, second), rtol=1e-5, atol=1e-5)
    lowers(conv_case(6, 5, 3), chain)


def test_kernels_on_one_axis_do_not_combine() -> None:
    spec = ConvSpec((1,), (1,), (0, 0))
    chain = Chain((Convolve(normal(2, 2, 3), spec), Convolve(normal(2, 2, 3), spec)), None, 2)
    with pytest.raises(ValueError, match="overlap"):
        chain.dense()


def test_strides_count_where_they_are() -> None:
    ones = ConvSpec((1, 1), (1, 1), (0, 0, 0, 0))
    strided = ConvSpec((2, 2), (1, 1), (1, 1, 1, 1))
    chain = Chain((Convolve(normal(4, 8, 1, 1), ones), Convolve(normal(6, 4, 3, 3), strided)), None, 8)
    assert chain.macs((1, 8, 8, 8)) == 64 * 32 + 16 * 4 * 6 * 9
    assert chain.traffic((1, 8, 8, 8)) == 4 * 64 + 6 * 16
    assert chain.output_shape((1, 8, 8, 8)) == (1, 6, 4, 4)
