"""MatMulNBits: read as ONNX Runtime reads it, its factors float or in blocks again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

from onnxdecomp.core.layer import Array
from onnxdecomp.layers.blocks import pack, unpack
from onnxdecomp.layers.find import find
from onnxdecomp.layers.lowering_check import check_lowering
from onnxdecomp.layers.shapes import infer_shapes
from tests.builders.cases import MICROSOFT, Case, case_of
from tests.builders.running import run
from tests.layers.test_more_layers_exact import assert_kept
from tests.layers.test_more_layers_graph import assert_same, reason, rewrite

RNG = np.random.default_rng(0)
SOME = settings(max_examples=max(5, settings().max_examples // 4))


def quantized(bits: int, block: int, symmetric: bool, k: int = 50, n: int = 20) -> Case:
    """A MatMul whose weight ONNX Runtime's own quantizer has stored in blocks."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    case = case_of([node], {"w": RNG.standard_normal((k, n))}, {"x": RNG.standard_normal((2, 3, k))}, True)
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=bits)
    quantizer = MatMulNBitsQuantizer(case.model, algo_config=config)
    quantizer.process()
    model = quantizer.model.model
    model.graph.node[0].name = "layer"
    return Case(model, case.feeds)


def stored(
    n: int = 12, k: int = 40, bits: int = 4, block: int = 16, points: str = "", dtype: str = "float32"
) -> dict[str, Array]:
    """B, scales and zero points of random bits."""
    count = -(-k // block)
    weights: dict[str, Array] = {
        "b": RNG.integers(0, 256, (n, count, block * bits // 8)).astype(np.uint8),
        "s": RNG.uniform(0.5, 2, (n, count)).astype(dtype) / 2**bits,
    }
    if points == "packed":
        weights["z"] = RNG.integers(0, 256, (n, -(-count * bits // 8))).astype(np.uint8)
    if points == "float":
        weights["z"] = RNG.uniform(0, 2**bits, (n, count)).astype(dtype)
    return weights


def layer(weights: dict[str, Array], feeds: dict[str, Array], dynamic: bool = True, **more: Any) -> Case:
    """A model of one MatMulNBits; its inputs are known by their names."""
    names = [name if name in weights or name in feeds else "" for name in ("x", "b", "s", "z", "g", "c")]
    while not names[-1]:
        names.pop()
    attributes = {"N": 12, "K": 40, "bits": 4, "block_size": 16, **more}
    node = helper.make_node("MatMulNBits", names, ["y"], name="layer", domain=MICROSOFT, **attributes)
    return case_of([node], weights, feeds, dynamic)


POINTS = {2: ("", "packed"), 4: ("", "packed", "float"), 8: ("", "packed")}
"""The zero points that ONNX Runtime's CPU kernels take of each number of bits."""


@st.composite
def layers(draw: st.DrawFn) -> Case:
    """A MatMulNBits with any of its inputs and attributes, of random bits."""
    bits, block = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([16, 32, 64]))
    n, k = draw(st.integers(2, 9)), draw(st.integers(2, 70))
    weights = stored(n, k, bits, block, draw(st.sampled_from(POINTS[bits])))
    if draw(st.booleans()):  # as older exporters have them
        weights["s"] = weights["s"].reshape(-1)
    bias = draw(st.sampled_from(["", "input", "Add"]))
    if bias == "input":
        weights["c"] = RNG.standard_normal(n).astype(np.float32)
    lead = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    x = RNG.standard_normal((*lead, k)) / np.sqrt(k)
    level = draw(st.sampled_from([{}, {"accuracy_level": 1}]))
    case = layer(weights, {"x": x}, draw(st.booleans()), N=n, K=k, bits=bits, block_size=block, **level)
    if bias == "Add":
        case.model.graph.node[0].output[0], case.model.graph.node[0].name = "h", "product"
        case.model.graph.node.append(helper.make_node("Add", ["h", "c"], ["y"], name="layer"))
        tensor = onnx.numpy_helper.from_array(RNG.standard_normal(n).astype(np.float32), "c")
        case.model.graph.initializer.append(tensor)
    return case


@SOME
@given(case=layers(), method=st.sampled_from(["svd", "svd", "tt", "btt", "kronecker"]))
def test_exact_at_full_rank(case: Case, method: str) -> None:
    assert_kept(case, method)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_the_quantizer_of_onnx_runtime_writes(bits: int, block: int, symmetric: bool) -> None:
    case = quantized(bits, block, symmetric)
    (match,), _ = find(ir.from_proto(case.model))
    expected = run(case.model, case.feeds)[0]
    np.testing.assert_allclose(case.feeds["x"] @ match.layer.weight.T, expected, atol=1e-4)
    model, result = rewrite(case)
    assert [node.op_type for node in model.graph] == ["MatMul", "MatMul"]
    assert set(model.graph.initializers) == {"layer/first.weight", "layer/last.weight"}
    assert "1 layer was quantized; its factors are floating point" in result.notes[0]
    assert_same(case, model)


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_requantized_factors(bits: int, symmetric: bool, level: int) -> None:
    case = quantized(bits, 64, symmetric)
    case.model.graph.node[0].attribute.append(helper.make_attribute("accuracy_level", level))
    model, result = rewrite(case, requantize=True)
    assert [node.op_type for node in model.graph] == ["MatMulNBits", "MatMulNBits"]
    for node in model.graph:
        assert node.attributes.get_int("bits") == bits
        assert node.attributes.get_int("accuracy_level", 0) == level
        assert (len(node.inputs) == 4) is not symmetric
    # The rank is 20: no block need hold more than 32 numbers.
    assert [node.attributes.get_int("block_size") for node in model.graph] == [64, 32]
    assert f"1 layer was quantized; its factors are int{bits}" in result.notes[0]
    (check,) = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert check.rel_error is not None
    assert check.passed, check
    expected, actual = run(case.model, case.feeds)[0], run(model, case.feeds)[0]
    error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
    assert 1e-5 < error < (0.3 if bits == 4 else 0.03)
    again, _ = find(model)
    assert [match.layer.weight.shape for match in again] == [(20, 50), (20, 20)]


def test_requantized_halves() -> None:
    """Half scales; int8 factors, of float32 layers only, would not do."""
    weights = stored(dtype="float16")
    case = layer(weights, {"x": RNG.standard_normal((3, 40))})
    for value in (*case.model.graph.input, *case.model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    scales = case.model.graph.initializer[1]
    scales.CopyFrom(onnx.numpy_helper.from_array(weights["s"], "s"))
    model, result = rewrite(case, requantize=True)
    assert [node.op_type for node in model.graph] == ["MatMulNBits", "MatMulNBits"]
    assert [match.layer.dtype for match in find(model)[0]] == ["float16", "float16"]
    (check,) = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert check.passed, check


def test_a_weight_of_zeros_is_stored_as_zeros() -> None:
    for points in ("", "packed"):
        weights = stored(points=points) | {"s": np.zeros((12, 3), np.float32)}
        case = layer(weights, {"x": RNG.standard_normal((3, 40))})
        model, _ = rewrite(case, requantize=True)
        assert not run(model, case.feeds)[0].any()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_packing(bits: int, count: int) -> None:
    numbers = RNG.integers(0, 2**bits, (3, count)).astype(np.uint8)
    packed = pack(numbers, bits)
    assert packed.shape == (3, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, count), numbers)


def test_numbers_are_counted_and_not_bytes() -> None:
    (match,), _ = find(ir.from_proto(quantized(4, 16, True, k=64).model))
    assert (match.layer.params, match.packed) == (20 * 64, 2)


def test_shapes_behind_it_are_known() -> None:
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "b", "s"], ["h"], domain=MICROSOFT, N=12, K=40, bits=4, block_size=16
        ),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    case = case_of(nodes, stored(), {"x": RNG.standard_normal((5, 3, 40))}, False)
    model = ir.from_proto(case.model)
    infer_shapes(model)
    assert tuple(model.graph[0].outputs[0].shape or ()) == (5, 3, 12)


@pytest.mark.parametrize(
    ("more", "attributes", "words"),
    [
        ({"g": np.zeros(48, np.int32)}, {}, "permuted by a g_idx"),
        ({}, {"weight_prepacked": 1}, "laid out for one kind of processor"),
        ({}, {"bits": 3}, "bits=3"),
        ({}, {"block_size": 24}, "block_size=24"),
        ({}, {"block_size": 32}, "do not have the sizes"),
        ({"z": np.zeros((12, 3), np.uint8)}, {}, "do not have the sizes"),
        ({"s": np.zeros((12, 4), np.float32)}, {}, "do not have the sizes"),
    ],
)
def test_reasons(more: dict[str, Array], attributes: dict[str, Any], words: str) -> None:
    assert words in reason(layer(stored() | more, {"x": RNG.standard_normal((3, 40))}, **attributes))


@pytest.mark.parametrize(("name", "words"), [("b", "it is an input"), ("s", "its scales: it is an input")])
def test_what_is_computed_is_not_read(name: str, words: str) -> None:
    weights = stored()
    feeds = {"x": RNG.standard_normal((3, 40)), name: weights.pop(name)}
    assert words in reason(layer(weights, feeds))


@pytest.mark.parametrize("bits", [4, 8])
def test_bytes_of_a_weight_that_is_kept(bits: int) -> None:
    (match,), _ = find(ir.from_proto(quantized(bits, 16, True, k=64).model))
    assert match.kept_bytes == bits / 8
