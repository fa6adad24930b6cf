"""Siblings: which layers are, what they are together at any rank, and that their first factor stands once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from onnx import helper
from onnxdecomp_passes.decompose import Decompose
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

from onnxdecomp.layers.find import find
from onnxdecomp.layers.lowering_check import check_lowering
from onnxdecomp.layers.siblings import siblings, source
from onnxdecomp.layers.tied_weights import ties
from onnxdecomp.pipeline.base import PassResult
from tests.builders.cases import Case
from tests.builders.feeds import normal, scalar
from tests.builders.graphs import loaded, value
from tests.builders.graphs import model as make
from tests.builders.running import op_types, run
from tests.builders.siblings import S, sibling_cases

node = helper.make_node


def decomposed(case: Case, **options: Any) -> tuple[ir.Model, PassResult]:
    model = ir.from_proto(case.model)
    return model, Decompose(method="shared", must_save="none", skip_below=0, **options).call(model)


def readers(model: ir.Model) -> list[ir.Node]:
    """The nodes that read Relu(x), Identity looked through."""
    return [
        one
        for one in model.graph
        if one.op_type != "Identity"
        for read in one.inputs
        if read is not None and source(read).name == "h"
    ]


@settings(max_examples=25)
@given(case=sibling_cases())
def test_at_full_rank_they_are_what_they_were_and_one_node_reads_the_activation(case: Case) -> None:
    expected = run(case.model, case.feeds)
    model, result = decomposed(case, rank="1.0")
    assert len(result.rewritten) == len(expected)
    assert len(readers(model)) == 1
    for before, after in zip(expected, run(model, case.feeds), strict=True):
        assert after.shape == before.shape
        assert np.linalg.norm(after - before) <= 1e-4 * np.linalg.norm(before)
    assert [out.name for out in model.graph.outputs] == [out.name for out in case.model.graph.output]


@settings(max_examples=15)
@given(case=sibling_cases())
def test_below_full_rank_every_layer_does_what_its_chain_says(case: Case) -> None:
    model, result = decomposed(case, rank="2", requantize=True)
    checks = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert len(checks) == len(case.model.graph.output)
    assert [check for check in checks if not check.passed or check.rel_error is None] == []
    assert len(readers(model)) == 1


def places(
    nodes: Sequence[onnx.NodeProto], *shape: int | str, **weights: Any
) -> tuple[list[list[str]], dict[str, str]]:
    """The groups of a model from x of that shape, and why layers are in none, by their names."""
    outputs = [value(one.output[0], None) for one in nodes if one.name]
    model = loaded(make(nodes, [value("x", shape or ["N", 4, S])], outputs, weights))
    matched, _ = find(model)
    found = siblings(matched, ties(matched))
    names = [match.layer.name for match in matched]
    groups = [[names[place] for place in group] for group in found.groups]
    return groups, {names[place]: reason for place, reason in found.refusals.items()}


def test_a_tied_weight_a_turned_activation_and_a_stack_are_no_siblings() -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["ya"], name="a"),
        node("MatMul", ["x", "b"], ["yb"], name="b"),
        node("MatMul", ["x", "tied"], ["yc"], name="tied1"),
        node("Relu", ["x"], ["r"]),
        node("MatMul", ["r", "tied"], ["yd"], name="tied2"),
        node("MatMul", ["r", "d"], ["ye"], name="alone"),
        node("MatMul", ["x", "stack"], ["yf"], name="stack"),
        node("FusedMatMul", ["x", "turned"], ["yg"], name="turned", domain="com.microsoft", transA=1),
    ]
    weights = {name: normal(S, 5, seed=k) for k, name in enumerate(("a", "b", "tied", "d"))}
    weights |= {"stack": normal(3, S, 5), "turned": normal(4, 5)}
    groups, refusals = places(nodes, 3, 4, S, **weights)
    assert groups == [["a", "b"]]
    assert set(refusals) == {"tied1", "tied2", "alone", "stack", "turned"}
    assert "read elsewhere" in refusals["tied1"]
    assert "no other layer" in refusals["alone"]
    assert refusals["stack"] == "a stack of matrices"
    assert "order of axes" in refusals["turned"]


def test_grouped_convolutions_are_no_siblings_of_others() -> None:
    nodes = [
        node("Conv", ["x", "a"], ["ya"], name="a"),
        node("Conv", ["x", "g"], ["yg"], name="g", group=2),
        node("Conv", ["x", "b"], ["yb"], name="b", pads=[1, 1, 1, 1]),
        node("Conv", ["x", "c"], ["yc"], name="depthwise", group=S),
    ]
    weights = {"a": normal(4, S, 1, 1), "b": normal(5, S, 3, 3), "g": normal(4, S // 2, 1, 1)}
    groups, refusals = places(nodes, "N", S, 8, 8, **weights, c=normal(S, 1, 3, 3))
    assert groups == [["a", "b"]]
    assert "groups" in refusals["g"]
    assert "depthwise" in refusals["depthwise"]


@pytest.mark.parametrize("where", ["then", "else"])
def test_siblings_stand_in_one_graph(where: str) -> None:
    """Both layers of a branch are siblings; that of the other branch and those outside are none of them."""
    inner = [node("MatMul", ["x", name], [f"y{name}"], name=name) for name in ("p", "q")]
    inner.append(node("Add", ["yp", "yq"], ["o"]))
    outer = [node("MatMul", ["x", "r"], ["o"], name="r")]
    bodies = {"then": inner, "else": outer} if where == "then" else {"then": outer, "else": inner}
    graphs = {
        f"{name}_branch": helper.make_graph(body, name, [], [value("o", None)])
        for name, body in bodies.items()
    }
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Less", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], **graphs),
        node("MatMul", ["x", "t"], ["yt"], name="t"),
    ]
    weights = {name: normal(S, S, seed=k) for k, name in enumerate("pqrt")} | {"zero": scalar(0)}
    outputs = [value("y", None), value("yt", None)]
    proto = make(nodes, [value("x", ["N", S])], outputs, weights)
    feeds = {"x": normal(3, S)}
    model, result = decomposed(Case(proto, feeds), rank="1.0")
    assert {done.match.layer.name for done in result.rewritten} == {"p", "q"}
    for sign in (1, -1):
        feeds = {"x": sign * np.abs(normal(3, S))}
        for before, after in zip(run(proto, feeds), run(model, feeds), strict=True):
            np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def attention(dtype: str = "float32") -> onnx.ModelProto:
    nodes = [
        node("Relu", ["x"], ["h"]),
        *(node("MatMul", ["h", name], [f"{name}.y"], name=name) for name in "qkv"),
    ]
    weights = {
        name: (normal(32, size) / 6).astype(dtype) for name, size in zip("qkv", (32, 32, 16), strict=True)
    }
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return make(
        nodes, [value("x", [2, 3, 32], element)], [f"{name}.y" for name in "qkv"], weights, dtype=element
    )


@pytest.mark.parametrize(("requantize", "kind"), [(False, "MatMul"), (True, "MatMulNBits")])
def test_weights_in_blocks_have_their_first_factor_in_blocks(requantize: bool, kind: str) -> None:
    config = DefaultWeightOnlyQuantConfig(block_size=16, is_symmetric=False, bits=8)
    quantizer = MatMulNBitsQuantizer(attention(), algo_config=config)
    quantizer.process()
    proto, feeds = quantizer.model.model, {"x": normal(2, 3, 32)}
    model, result = decomposed(Case(proto, feeds), rank="1.0", requantize=requantize)
    assert op_types(model) == {"Relu": 1, kind: 4}
    for before, after in zip(run(proto, feeds), run(model, feeds), strict=True):
        assert np.linalg.norm(after - before) < (0.02 if requantize else 1e-5) * np.linalg.norm(before)
    assert all(check.passed for check in check_lowering(result.rewritten, opset=17, ir_version=8))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-2), ("float64", 1e-9)])
def test_other_element_types(dtype: str, tolerance: float) -> None:
    proto, feeds = attention(dtype), {"x": normal(2, 3, 32).astype(dtype)}
    model, result = decomposed(Case(proto, feeds), rank="1.0")
    assert len(result.rewritten) == 3
    for before, after in zip(run(proto, feeds), run(model, feeds), strict=True):
        assert after.dtype == before.dtype
        assert np.linalg.norm((after - before).astype(float)) < tolerance * np.linalg.norm(
            before.astype(float)
        )


def test_of_a_residual_network(corpus: Path) -> None:
    """A block's first convolution and its projection, both with a stride, after published training."""
    proto = onnx.load(corpus / "models" / "tiny" / "mlperf_resnet8.onnx")
    shape = [dim.dim_value or 2 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    case = Case(proto, {proto.graph.input[0].name: normal(*shape)})
    model, result = decomposed(case, rank="1.0")
    assert result.plan is not None
    assert [choice.group for choice in result.plan.decomposed] == [
        *["conv2d_3"] * 2,
        *["conv2d_6"] * 2,
    ]
    np.testing.assert_allclose(run(model, case.feeds)[0], run(proto, case.feeds)[0], atol=1e-4)
