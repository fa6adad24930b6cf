"""Resolving constants: compared with what ONNX Runtime computes for the same chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxdecomp.core.layer import Array
from onnxdecomp.graph import constants
from onnxdecomp.graph.constants import Constant, discard, resolve
from onnxdecomp.graph.load import load
from onnxdecomp.graph.traversal import places
from tests.builders import graphs, models, running

W = np.arange(24, dtype=np.float32).reshape(4, 6) - 7


def chain(nodes: Sequence[onnx.NodeProto], weights: dict[str, Array], **more: Any) -> onnx.ModelProto:
    """A model whose output is what the last node computes of constants alone."""
    return graphs.model(
        nodes,
        {"x": ["N", 4]},
        weights=weights,
        outputs=[graphs.value("y", None, more.pop("dtype", graphs.FLOAT))],
        **more,
    )


def find(proto: onnx.ModelProto, name: str = "y", **more: Any) -> Constant | str:
    model = ir.from_proto(proto)
    for place in places(model):
        for value in (*place.graph.inputs, *place.graph.initializers.values()):
            if value.name == name:
                return resolve(value, ir_version=proto.ir_version, **more)
        for node in place.graph:
            for value in node.outputs:
                if value.name == name:
                    return resolve(value, ir_version=proto.ir_version, **more)
    raise KeyError(name)


def constant(proto: onnx.ModelProto, name: str = "y", **more: Any) -> Constant:
    found = find(proto, name, **more)
    assert isinstance(found, Constant), found
    return found


def node(
    op_type: str, inputs: Sequence[str] = ("W",), output: str = "y", **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), [output], **attributes)


def scalar(value: float) -> Array:
    return np.asarray(value, np.float32)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], tuple[int, ...]]] = {
    "Identity": ([node("Identity")], {}, (9, 13, 17, 21)),
    "Dropout": ([node("Dropout")], {}, (9, 10, 12, 13, 17)),
    "Transpose": ([node("Transpose", perm=[1, 0])], {}, (7, 9, 13, 17, 21)),
    "Reshape": ([node("Reshape", ["W", "s"])], {"s": ints(2, 0, -1)}, (7, 9, 13, 17, 21)),
    "Flatten": ([node("Flatten", axis=0)], {}, (9, 13, 21)),
    "Unsqueeze, attribute": ([node("Unsqueeze", axes=[0, 3])], {}, (7, 9, 11)),
    "Unsqueeze": ([node("Unsqueeze", ["W", "s"])], {"s": ints(1)}, (13, 17, 21)),
    "Squeeze": (
        [node("Unsqueeze", ["W", "s"], "h"), node("Squeeze", ["h", "s"])],
        {"s": ints(0)},
        (13, 17, 21),
    ),
    "Cast": (
        [node("Cast", to=onnx.TensorProto.FLOAT16, output="h"), node("Cast", ["h"], to=1)],
        {},
        (9, 13, 19, 21),
    ),
    "CastLike": ([node("CastLike", ["W", "f"])], {"f": scalar(0)}, (15, 17, 19)),
    "Slice, attributes": ([node("Slice", axes=[0], starts=[1], ends=[-1])], {}, (7, 9)),
    "Slice": (
        [node("Slice", ["W", "a", "e", "k", "t"])],
        {"a": ints(-1), "e": ints(-99), "k": ints(1), "t": ints(-2)},
        (10, 11, 13, 17),
    ),
    "Concat": ([node("Concat", ["W", "W"], axis=1)], {}, (7, 11, 13)),
    "Gather": ([node("Gather", ["W", "i"], axis=1)], {"i": ints(3, 0)}, (7, 11, 13)),
    "Expand": ([node("Expand", ["W", "s"])], {"s": ints(2, 1, 1)}, (8, 13)),
    "Tile": ([node("Tile", ["W", "s"])], {"s": ints(2, 1)}, (7, 13)),
    "MatMul": ([node("MatMul", ["W", "V"])], {"V": W.T.copy()}, (7, 9, 13)),
    "Gemm": ([node("Gemm", ["W", "W"], transB=1, alpha=0.5)], {}, (11, 13)),
    "arithmetic": (
        [
            node("Mul", ["W", "v"], "h"),
            node("Add", ["h", "W"], "i"),
            node("Div", ["i", "v"], "j"),
            node("Sub", ["j", "W"]),
        ],
        {"v": np.full(6, 3, np.float32)},
        (7, 13, 14),
    ),
    "Sqrt": ([node("Abs", output="h"), node("Sqrt", ["h"])], {}, (7, 13)),
    "Clip, attributes": ([node("Clip", min=-2.0, max=3.0)], {}, (7, 9)),
    "Clip": ([node("Clip", ["W", "a", "z"])], {"a": scalar(-2), "z": scalar(3)}, (11, 12, 13)),
    "ReduceSum, attribute": ([node("ReduceSum", axes=[1])], {}, (7, 11)),
    "ReduceSum": ([node("ReduceSum", ["W", "k"])], {"k": ints(1)}, (13, 17)),
    "Split": ([helper.make_node("Split", ["W"], ["z", "y"], axis=1)], {}, (7, 11, 13)),
    "Where": (
        [node("Where", ["c", "W", "v"])],
        {"c": W > 0, "v": np.zeros((4, 1), np.float32)},
        (9, 16),
    ),
    "by Shape": (
        [
            node("Shape", output="s"),
            node("ConstantOfShape", ["s"], "o", value=helper.make_tensor("", 1, [1], [2.0])),
            node("Mul", ["o", "W"]),
        ],
        {},
        (9, 13, 15),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_as_onnx_runtime_computes_it(name: str) -> None:
    nodes, weights, opsets = CASES[name]
    for opset in opsets:
        proto = chain(nodes, {"W": W, **weights}, opset=opset, ir_version=8)
        found = constant(proto)
        (wanted,) = running.run(proto.SerializeToString(), models.X)
        np.testing.assert_allclose(found.array, wanted, rtol=1e-6, err_msg=f"opset {opset}")
        assert found.array.dtype == wanted.dtype
        assert found.root.name == "W"
        assert nodes[-1].op_type in found.via


def dequantize(
    values: Array, scale: Array, zero: Array | None, opset: int, **attributes: Any
) -> onnx.ModelProto:
    weights = {"W": values, "s": scale, **({} if zero is None else {"z": zero})}
    nodes = [node("DequantizeLinear", list(weights), **attributes)]
    return chain(nodes, weights, opset=opset, ir_version=10)


@pytest.mark.parametrize("opset", [10, 13, 19, 21])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
@pytest.mark.parametrize("zero", [False, True])
def test_dequantize_per_tensor(opset: int, dtype: type, zero: bool) -> None:
    values: Array = np.random.default_rng(0).integers(0, 100, (4, 6)).astype(dtype)
    point: Array | None = np.asarray(0 if dtype is np.int32 else 3, dtype) if zero else None
    proto = dequantize(values, scalar(0.1), point, opset)
    np.testing.assert_allclose(
        constant(proto).array, running.run(proto.SerializeToString(), models.X)[0], rtol=1e-6
    )


@pytest.mark.parametrize("opset", [13, 19, 21])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_dequantize_per_axis(opset: int, axis: int) -> None:
    values = np.random.default_rng(0).integers(-100, 100, (4, 6)).astype(np.int8)
    size = values.shape[axis]
    scale: Array = np.linspace(0.1, 1, size, dtype=np.float32)
    zero = np.arange(size, dtype=np.int8)
    proto = dequantize(values, scale, zero, opset, axis=axis)
    np.testing.assert_allclose(
        constant(proto).array, running.run(proto.SerializeToString(), models.X)[0], rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4])
def test_dequantize_in_blocks(dtype: type) -> None:
    values: Array = np.random.default_rng(0).integers(0, 7, (4, 6)).astype(dtype)
    scale = np.linspace(0.1, 1, 8, dtype=np.float32).reshape(4, 2)
    zero: Array = np.ones((4, 2)).astype(dtype)
    proto = dequantize(values, scale, zero, 21, axis=1, block_size=3)
    found = constant(proto)
    np.testing.assert_allclose(found.array, running.run(proto.SerializeToString(), models.X)[0], rtol=1e-6)
    assert found.via == {"DequantizeLinear"}


@pytest.mark.parametrize(
    ("dtype", "name", "plain"),
    [
        (np.float16, "float16", np.float16),
        (np.float64, "float64", np.float64),
        (ml_dtypes.bfloat16, "bfloat16", np.float32),
        (ml_dtypes.float8_e4m3fn, "float8_e4m3fn", np.float32),
        (ml_dtypes.int4, "int4", np.int8),
        (ml_dtypes.uint4, "uint4", np.uint8),
        (np.bool_, "bool", np.bool_),
    ],
)
def test_types(dtype: type, name: str, plain: type) -> None:
    values: Array = np.asarray([0, 1, 1, 0]).astype(dtype)
    found = constant(graphs.model([node("Identity", ["x"])], {"x": ["N", 4]}, weights={"V": values}), "V")
    assert found.dtype == name
    assert found.array.dtype == plain
    np.testing.assert_array_equal(found.array, values.astype(plain))
    assert found.via == frozenset()


def test_a_cast_gives_the_type_behind_it() -> None:
    proto = chain([node("Cast", to=onnx.TensorProto.BFLOAT16)], {"W": W}, dtype=onnx.TensorProto.BFLOAT16)
    assert constant(proto).dtype == "bfloat16"
    np.testing.assert_array_equal(constant(proto).array, W)


@pytest.mark.parametrize(
    ("attribute", "value", "wanted"),
    [
        ("value", numpy_helper.from_array(W), W),
        ("value_float", 1.5, np.float32(1.5)),
        ("value_floats", [1.5, 2.5], np.asarray([1.5, 2.5], np.float32)),
        ("value_int", 3, np.int64(3)),
        ("value_ints", [3, 4], ints(3, 4)),
    ],
)
def test_constant_nodes(attribute: str, value: object, wanted: Array) -> None:
    given: dict[str, Any] = {attribute: value}
    found = constant(chain([node("Constant", [], **given)], {}))
    np.testing.assert_array_equal(found.array, wanted)
    assert found.array.dtype == wanted.dtype
    assert (found.root.name, found.via) == ("y", frozenset())


def test_strings() -> None:
    text = numpy_helper.from_array(np.asarray(["a"], object))
    attributes: tuple[dict[str, Any], ...] = ({"value_strings": ["a"]}, {"value": text})
    for attribute in attributes:
        assert isinstance(find(chain([node("Constant", [], **attribute)], {})), str)


# What is not constant


def test_inputs_and_what_is_computed_of_them() -> None:
    proto = graphs.model(
        [node("Relu", ["x"], "h"), node("Add", ["h", "W"])], {"x": ["N", 4]}, weights={"W": W[:, :4]}
    )
    assert "input" in str(find(proto, "x"))
    assert "Relu" in str(find(proto, "h"))
    assert "Relu" in str(find(proto, "y"))


@pytest.mark.parametrize("op_type", ["RandomNormalLike", "Bernoulli", "NonZero"])
def test_random_and_unlisted_operators(op_type: str) -> None:
    assert op_type in str(find(chain([node(op_type)], {"W": W})))


def test_dropout_in_training() -> None:
    weights: dict[str, Array] = {"W": W, "r": scalar(0.5), "t": np.asarray(True)}
    assert "training" in str(find(chain([node("Dropout", ["W", "r", "t"])], weights)))


def test_other_domains() -> None:
    proto = chain([helper.make_node("Identity", ["W"], ["y"], domain="local")], {"W": W})
    assert isinstance(find(proto), str)


def test_control_flow() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["W"], ["t"])], "t", [], [graphs.value("t", None)]
    )
    nodes = [node("If", ["c"], then_branch=branch, else_branch=branch)]
    assert "If" in str(find(chain(nodes, {"W": W, "c": np.asarray(True)})))


@pytest.mark.parametrize("behind", [False, True])
def test_overridable_initializers(behind: bool) -> None:
    for ir_version, fixed in ((3, True), (4, False), (9, False)):
        proto = chain([node("Transpose")], {"W": W}, ir_version=ir_version, opset=8)
        proto.graph.input.append(graphs.value("W", W.shape))
        name = "y" if behind else "W"
        found = find(proto, name)
        assert isinstance(found, Constant) is fixed
        assert fixed or "--freeze-initializers" in str(found)
        assert isinstance(find(proto, name, freeze=True), Constant)


def test_a_function_s_parameters_are_not_constant(tmp_path: Path) -> None:
    proto = models.with_function()
    parameter = proto.functions[0].node.add(op_type="Constant", output=["p"], name="p")
    parameter.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, ref_attr_name="p")
    assert "parameter" in str(find(proto, "p"))
    assert isinstance(find(proto, "C"), Constant)
    assert isinstance(find(proto, "a"), str)


def test_captured_values_in_subgraphs() -> None:
    proto = models.nested()
    model = ir.from_proto(proto)
    inner = next(place for place in places(model) if place.path.endswith("loop/body"))
    found = resolve(inner.graph[0].inputs[1], ir_version=9, opset=17)  # type: ignore[arg-type]
    assert isinstance(found, Constant)
    assert found.root is model.graph.initializers["W0"]
    assert found.via == {"Identity"}
    state = resolve(inner.graph[0].inputs[0], ir_version=9)  # type: ignore[arg-type]
    assert isinstance(state, str)


def test_no_gigantic_results() -> None:
    large = {"n": ints(1 << 20, 1 << 12), "one": np.ones((1, 1), np.float32)}
    for nodes in (
        [node("ConstantOfShape", ["n"])],
        [node("Expand", ["one", "n"])],
        [node("Tile", ["one", "n"])],
    ):
        assert "GiB" in str(find(chain(nodes, large)))
    wide = {"a": np.ones((1 << 16, 1), np.float32), "b": np.ones((1, 1 << 16), np.float32)}
    for op_type in ("MatMul", "Gemm", "Mul"):
        assert "GiB" in str(find(chain([node(op_type, ["a", "b"])], wide)))


def test_nonsense_is_a_reason_and_not_an_exception() -> None:
    found = find(chain([node("Reshape", ["W", "s"])], {"W": W, "s": ints(5, 5)}))
    assert "Reshape" in str(found)
    assert "\n" not in str(found)


def test_memo() -> None:
    model = ir.from_proto(chain([node("Transpose", output="h"), node("Neg", ["h"])], {"W": W}))
    memo: dict[ir.Value, Constant | str] = {}
    first = resolve(model.graph.outputs[0], ir_version=9, memo=memo)
    assert {value.name for value in memo} == {"W", "h", "y"}
    second = resolve(model.graph.outputs[0], ir_version=9, memo=memo)
    assert isinstance(first, Constant)
    assert isinstance(second, Constant)
    assert first.array is second.array


def test_the_initializer_is_not_copied(tmp_path: Path) -> None:
    model = load(graphs.saved(models.linear(512), tmp_path / "m.onnx", "d"))
    value = model.graph.initializers["W"]
    found = resolve(value, ir_version=9)
    assert isinstance(found, Constant)
    assert value.const_value is not None
    assert np.shares_memory(found.array, value.const_value.numpy())


# discard


def weights_left(model: ir.Model) -> set[str]:
    return set(model.graph.initializers)


def detached(proto: onnx.ModelProto, index: int = -1) -> tuple[ir.Model, ir.Value]:
    """The model without its last node's use of its second operand."""
    model = ir.from_proto(proto)
    last = model.graph[index]
    value = last.inputs[1]
    assert value is not None
    last.replace_input_with(1, model.graph.inputs[0])
    return model, value


def test_discard_a_chain() -> None:
    nodes = [node("Transpose", ["W"], "h"), node("Mul", ["h", "s"], "i"), node("MatMul", ["x", "i"])]
    model, value = detached(graphs.model(nodes, {"x": ["N", 4]}, weights={"W": W, "s": scalar(2), "mine": W}))
    discard(value)
    assert [n.op_type for n in model.graph] == ["MatMul"]
    assert weights_left(model) == {"mine"}, "what was unused before is the user's own"


def test_discard_stops_at_what_is_used() -> None:
    nodes = [node("Transpose", ["W"], "h"), node("Neg", ["h"], "i"), node("MatMul", ["x", "i"], "z")]
    nodes.insert(1, node("Relu", ["h"], "y"))
    model, value = detached(graphs.model(nodes, {"x": ["N", 4]}, weights={"W": W}))
    discard(value)
    assert [n.op_type for n in model.graph] == ["Transpose", "Relu", "MatMul"]
    assert weights_left(model) == {"W"}


def test_discard_keeps_graph_outputs() -> None:
    nodes = [node("Transpose", ["W"], "h"), node("MatMul", ["x", "h"])]
    proto = graphs.model(
        nodes,
        {"x": ["N", 4]},
        weights={"W": W},
        outputs=[graphs.value("y", None), graphs.value("h", None), graphs.value("W", None)],
    )
    model, value = detached(proto)
    discard(value)
    assert len(model.graph) == 2
    discard(model.graph.initializers["W"])
    assert weights_left(model) == {"W"}


def test_discard_keeps_what_a_subgraph_captures() -> None:
    model = ir.from_proto(models.nested())
    identity = model.graph[0]
    discard(identity.outputs[0])
    assert len(model.graph) == 2
    for place in places(model):
        for inner in place.graph:
            if inner.op_type == "MatMul":
                inner.replace_input_with(1, model.graph.inputs[0])
    discard(identity.outputs[0])
    assert [n.op_type for n in model.graph] == ["If"]
    assert weights_left(model) == {"times"}


def test_discard_keeps_a_node_with_another_output_in_use() -> None:
    split = helper.make_node("Split", ["W"], ["a", "c"], axis=0)
    nodes = [split, node("MatMul", ["x", "a"], "h"), node("MatMul", ["x", "c"])]
    model, value = detached(graphs.model(nodes, {"x": ["N", 4]}, weights={"W": W}))
    discard(value)
    assert len(model.graph) == 3


def test_discard_in_a_function() -> None:
    model = ir.from_proto(models.with_function())
    function = next(iter(model.functions.values()))
    value = function[1].inputs[1]
    assert value is not None
    function[1].replace_input_with(1, function.inputs[0])
    discard(value)
    assert [n.op_type for n in function] == ["MatMul", "LeakyRelu"]


def test_discard_an_initializer_that_is_an_input() -> None:
    """Left among the inputs, it would become one that every caller must feed."""
    proto = graphs.model(
        [node("MatMul", ["x", "W"])], {"x": ["N", 4]}, weights={"W": W}, ir_version=3, opset=8
    )
    proto.graph.input.append(graphs.value("W", W.shape))
    model, value = detached(proto)
    discard(value)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert weights_left(model) == set()


def test_every_evaluated_operator_exists() -> None:
    assert all(onnx.defs.has(op_type) for op_type in constants.EVALUATED)
