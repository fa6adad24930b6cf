"""Products of int8 weights with activations that are quantized as they come: read, decomposed, or refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic

from onnxdecomp.core.layer import Array
from onnxdecomp.layers.find import find
from onnxdecomp.layers.lowering_check import check_lowering
from tests.builders.cases import MICROSOFT, Case, case_of
from tests.builders.feeds import normal
from tests.builders.graphs import model as graph_model
from tests.builders.graphs import node as made
from tests.builders.running import run
from tests.layers.test_more_layers_graph import assert_same, reason, rewrite

SOME = settings(max_examples=max(4, settings().max_examples // 12))


@st.composite
def dynamic_products(draw: st.DrawFn, op_type: str) -> Case:
    """One product; its activation is of the whole numbers from 0 to 255, which are kept as they are."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    k, n = draw(st.integers(2, 9)), draw(st.integers(2, 7))
    x = rng.integers(0, 256, (*draw(st.lists(st.integers(1, 3), max_size=2)), 3, k)).astype(np.float32)
    x.reshape(-1)[:2] = 0, 255
    kind = draw(st.sampled_from([np.int8, np.uint8]))
    columns = draw(st.booleans())
    info = np.iinfo(kind)
    weights: dict[str, Array] = {
        "w": rng.integers(info.min, info.max + 1, (k, n)).astype(kind),
        "s": rng.uniform(0.5, 2, n if columns else ()).astype(np.float32) / 512,
    }
    if draw(st.booleans()):
        weights["z"] = np.asarray(rng.integers(0, 20, n if columns else ())).astype(kind)
    if biased := draw(st.booleans()):
        weights["b"] = rng.standard_normal(n).astype(np.float32)
    point, bias = "z" if "z" in weights else "", "b" if biased else ""
    first = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"])
    if op_type == "DynamicQuantizeMatMul":
        inputs = ["x", "w", "s", point, bias]
        nodes = [helper.make_node(op_type, inputs, ["y"], "layer", domain=MICROSOFT)]
    elif op_type == "MatMulIntegerToFloat":
        inputs = ["q", "w", "qs", "s", "qz", point, bias]
        nodes = [first, helper.make_node(op_type, inputs, ["y"], "layer", domain=MICROSOFT)]
    else:
        scales = ["s", "qs"] if draw(st.booleans()) else ["qs", "s"]
        nodes = [
            first,
            helper.make_node("MatMulInteger", ["q", "w", "qz", point] if point else ["q", "w", "qz"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", scales, ["m"]),
            helper.make_node("Mul", ["m", "f"], ["h" if biased else "y"], "scaled"),
            *([helper.make_node("Add", ["b", "h"], ["y"], "added")] if biased else []),
        ]
    return case_of(nodes, weights, {"x": x}, draw(st.booleans()))


@pytest.mark.parametrize("op_type", ["MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"])
@SOME
@given(data=st.data())
def test_factors_are_stored_as_int8_again(op_type: str, data: st.DataObject) -> None:
    """Eight bits of what is between the factors, and of these, are a hundredth each."""
    case = data.draw(dynamic_products(op_type))
    model, result = rewrite(case, requantize=True)
    (check,) = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert check.passed, check
    (before,), (after,) = run(case.model, case.feeds), run(model, case.feeds)
    assert after.shape == before.shape
    assert np.linalg.norm(after - before) < 0.06 * np.linalg.norm(before) + 1e-3
    counted = Counter(node.op_type for node in model.graph)
    assert counted["MatMulInteger"] == 2
    assert counted["DynamicQuantizeLinear"] == 2
    assert not counted[op_type if op_type != "MatMulInteger" else "MatMul"]


def siblings() -> onnx.ModelProto:
    """Three products of one activation, and one behind them: quantized, it is read three times."""
    nodes = [
        *(made("MatMul", f"x w{name}", name) for name in "abc"),
        made("Sum", "a b c", "s"),
        made("MatMul", "s wd", "d"),
        made("Add", "d bias", "y"),
    ]
    weights = {f"w{name}": normal(32, 32) for name in "abcd"} | {"bias": normal(32)}
    return graph_model(nodes, {"x": ["N", 32]}, {"y": ["N", 32]}, weights)


def quantized(folder: Path, level: ort.GraphOptimizationLevel | None = None) -> onnx.ModelProto:
    """What `quantize_dynamic` makes of them, and ONNX Runtime's optimizer of that."""
    onnx.save(siblings(), folder / "float.onnx")
    quantize_dynamic(
        folder / "float.onnx", folder / "int8.onnx", extra_options={"DisableShapeInference": True}
    )
    if level is None:
        return onnx.load(folder / "int8.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(folder / "int8.onnx", options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


@pytest.mark.parametrize("level", [None, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED])
def test_what_onnx_runtime_writes_is_read(tmp_path: Path, level: ort.GraphOptimizationLevel | None) -> None:
    proto = quantized(tmp_path, level)
    model = ir.from_proto(proto)
    matched, skips = find(model)
    assert len(matched) == 4
    assert not skips
    assert all(match.kept_bytes == 1 for match in matched)
    exact = {match.layer.name.removesuffix("_quant"): match.layer.weight for match in matched}
    for name, weight in exact.items():
        stored = next(w for w in siblings().graph.initializer if w.name == f"w{name}")
        original = onnx.numpy_helper.to_array(stored).T
        assert np.linalg.norm(weight - original) < 0.01 * np.linalg.norm(original)
    biased = matched[-1].layer.bias
    assert biased is not None
    case = Case(proto, {"x": normal(5, 32)})
    rewritten, result = rewrite(case)
    assert len(result.rewritten) == 4
    # Nothing quantizes an activation that nobody reads any more.
    assert not [node for node in rewritten.graph if node.op_type == "DynamicQuantizeLinear"]
    (before,), (after,) = run(proto, case.feeds), run(rewritten, case.feeds)
    assert np.linalg.norm(after - before) < 0.03 * np.linalg.norm(before)


@pytest.mark.parametrize("requantize", [False, True])
def test_an_int8_table_whose_rows_become_floats(requantize: bool) -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.integers(-128, 128, (300, 4)).astype(np.int8) @ rng.integers(0, 2, (4, 16)).astype(np.int8),
        **{"s": np.array(0.02, np.float32), "z": np.array(3, np.int8)},
    }
    nodes = [
        helper.make_node("Gather", ["w", "x"], ["q"], "rows"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "floats"),
    ]
    case = case_of(nodes, weights, {"x": np.array([[0, 7, -1], [299, 5, 4]])}, True)
    (match,), skips = find(ir.from_proto(case.model))
    assert not skips
    assert match.kept_bytes == 1
    np.testing.assert_allclose(
        match.layer.weight.T, (weights["w"] - np.float32(3)) * np.float32(0.02), rtol=1e-6
    )
    model, result = rewrite(case, rank="8", requantize=requantize)
    (check,) = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert check.passed, check
    (before,), (after,) = run(case.model, case.feeds), run(model, case.feeds)
    assert np.linalg.norm(after - before) < (0.03 if requantize else 1e-4) * np.linalg.norm(before)
    tables = [node.inputs[0] for node in model.graph if node.op_type == "Gather"]
    assert tables[0] is not None
    assert tables[0].dtype == (ir.DataType.INT8 if requantize else ir.DataType.FLOAT)


def dynamic(**changes: object) -> Case:
    """A MatMulInteger with something about it changed."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", str(changes.get("point", "qz"))], ["i"], "layer"),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["qs", str(changes.get("scales", "s"))], ["m"]),
        helper.make_node(str(changes.get("last", "Mul")), ["f", "m"], ["y"]),
    ]
    weights: dict[str, Array] = {
        "w": np.arange(64, dtype=np.int8).reshape(8, 8),
        **{"s": np.full(8, 0.01, np.float32), "other": np.array(0, np.uint8)},
    }
    feeds = {"x": normal(3, 8)} | ({"given": np.ones(8, np.float32)} if "scales" in changes else {})
    return case_of(nodes, weights, feeds, True)


def test_what_cannot_be_read_says_why() -> None:
    assert reason(dynamic(point="other")).startswith("its activation is not quantized as it comes")
    assert reason(dynamic(scales="given")) == "its scales: it is an input"
    assert "right behind it" in reason(dynamic(last="Add"))
    nothing, result = rewrite(dynamic())
    assert len(result.rewritten) == 1
    assert_same(dynamic(), nothing, tolerance=0.2)
