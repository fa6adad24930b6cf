"""normalise: what it folds computes the same in ONNX Runtime, and what it must not fold stays."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxdecomp_passes.normalise import Normalise

from onnxdecomp.core.layer import Array
from tests.builders.graphs import model
from tests.builders.running import close, op_types, run

node = helper.make_node


def normalised(proto: onnx.ModelProto, **options: Any) -> tuple[ir.Model, bool]:
    subject = ir.from_proto(proto)
    result = Normalise(**options)(subject)
    assert result.model is subject
    onnx.checker.check_model(ir.to_proto(subject))
    return subject, result.modified


def weight(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def statistics(rng: np.random.Generator, channels: int) -> dict[str, Array]:
    return {
        "gamma": weight(rng, channels),
        "beta": weight(rng, channels),
        "mean": weight(rng, channels),
        "var": rng.uniform(0.2, 2.0, channels).astype(np.float32),
    }


def batch_normalization(source: str, target: str, **attributes: Any) -> onnx.NodeProto:
    operands = [source, "gamma", "beta", "mean", "var"]
    return node("BatchNormalization", operands, [target], name="bn", **attributes)


def conv_bn(rng: np.random.Generator, *, dtype: Any = np.float32, **more: Any) -> onnx.ModelProto:
    """Conv "conv" with weight "w" and bias "b", BatchNormalization, 3 to 4 channels, 8 x 8."""
    weights = {"w": weight(rng, 4, 3, 3, 3), "b": weight(rng, 4), **statistics(rng, 4)}
    nodes = [node("Conv", ["x", "w", "b"], ["c"], name="conv"), batch_normalization("c", "y")]
    weights = {name: array.astype(dtype) for name, array in weights.items()}
    return model(nodes, {"x": ["N", 3, 8, 8]}, ["y"], weights, **more)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[onnx.ModelProto, Array]:
    """A (transposed) convolution of any attributes, then BatchNormalization or constants."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    d = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups = draw(st.sampled_from([1, 2, 3]))
    out, into = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))

    def axes(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(d)]

    kernel, strides, dilations = axes(1, 3), axes(1, 2), axes(1, 2)
    attributes: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations}
    if draw(st.booleans()):
        attributes["pads"] = [draw(st.integers(0, k // 2)) for k in (*kernel, *kernel)]
    elif not transposed and dilations == [1] * d:
        attributes["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    if transposed and draw(st.booleans()):
        attributes["output_padding"] = [int(stride > 1) for stride in strides]
    shape = (into, out // groups, *kernel) if transposed else (out, into // groups, *kernel)
    weights: dict[str, Array] = {"w": weight(rng, *shape)}
    operands = ["x", "w"]
    if draw(st.booleans()):
        weights["b"] = weight(rng, out)
        operands.append("b")
    op_type = "ConvTranspose" if transposed else "Conv"
    nodes = [node(op_type, operands, ["c"], name="layer", **attributes)]
    follower = draw(st.sampled_from(["BatchNormalization", "Mul", "Add", "Sub", "Div"]))
    if follower == "BatchNormalization":
        weights |= statistics(rng, out)
        nodes.append(batch_normalization("c", "y", epsilon=draw(st.sampled_from([1e-5, 1e-2]))))
    else:
        lead = draw(st.sampled_from([(), (1,)]))
        weights["k"] = rng.uniform(0.5, 2.0, (*lead, out, *[1] * d)).astype(np.float32)
        flip = follower in ("Mul", "Add") and draw(st.booleans())
        nodes.append(node(follower, ["k", "c"] if flip else ["c", "k"], ["y"], name="after"))
    proto = model(nodes, {"x": ["N", into, *["S"] * d]}, ["y"], weights)
    return proto, weight(rng, 2, into, *[7] * d)


@given(convolutions())
@settings(max_examples=100)
def test_convolutions_absorb_what_follows(case: tuple[onnx.ModelProto, Array]) -> None:
    proto, x = case
    subject, modified = normalised(proto)
    assert modified
    assert [n.name for n in subject.graph] == ["layer"]
    assert close(run(subject, {"x": x}, optimize=False)[0], run(proto, {"x": x}, optimize=False)[0], 1e-5)


@st.composite
def linear_layers(draw: st.DrawFn) -> tuple[onnx.ModelProto, Array]:
    """A Gemm of any flags, or a MatMul with or without Add, then BatchNormalization, Mul or nothing."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    batch, into, out = 3, draw(st.integers(1, 5)), draw(st.integers(2, 5))
    op_type = draw(st.sampled_from(["Gemm", "MatMul"]))
    weights: dict[str, Array] = {}
    x = weight(rng, batch, into)
    shape: list[int | str] = ["N", into]
    nodes = []
    bias = draw(st.sampled_from([None, (out,), (1, out), (1,), ()]))
    if bias is not None:
        weights["b"] = weight(rng, *bias)
    if op_type == "Gemm":
        trans_a, trans_b = draw(st.booleans()), draw(st.booleans())
        weights["w"] = weight(rng, *((out, into) if trans_b else (into, out)))
        if trans_a:
            x, shape = x.T.copy(), [into, "N"]
        scales: dict[str, Any] = {
            "alpha": draw(st.sampled_from([1.0, 0.5])),
            "beta": draw(st.sampled_from([1.0, -2.0])),
        }
        operands = ["x", "w", "b"] if bias is not None else ["x", "w"]
        flags: dict[str, Any] = {"transA": int(trans_a), "transB": int(trans_b)}
        nodes.append(node("Gemm", operands, ["h"], name="layer", **flags, **scales))
    else:
        weights["w"] = weight(rng, into, out)
        nodes.append(node("MatMul", ["x", "w"], ["h"], name="layer"))
        if bias is not None:
            nodes.append(node("Add", ["h", "b"], ["i"], name="add"))
    follower = draw(st.sampled_from(["BatchNormalization", "Mul"]))
    source = nodes[-1].output[0]
    if follower == "BatchNormalization":
        weights |= statistics(rng, out)
        nodes.append(batch_normalization(source, "y"))
    else:
        weights["k"] = weight(rng, out)
        nodes.append(node("Mul", ["k", source], ["y"], name="after"))
    return model(nodes, {"x": shape}, ["y"], weights), x


@given(linear_layers())
@settings(max_examples=60)
def test_linear_layers_absorb_what_follows(case: tuple[onnx.ModelProto, Array]) -> None:
    proto, x = case
    subject, modified = normalised(proto)
    assert modified
    assert [(n.name, n.op_type) for n in subject.graph] == [("layer", "Gemm")]
    assert close(run(subject, {"x": x}, optimize=False)[0], run(proto, {"x": x}, optimize=False)[0], 1e-5)


def test_the_layer_keeps_its_names_and_takes_over_the_output() -> None:
    proto = conv_bn(np.random.default_rng(0))
    subject, _ = normalised(proto)
    (conv,) = subject.graph
    assert (conv.name, conv.outputs[0].name) == ("conv", "y")
    assert [v.name for v in conv.inputs if v is not None] == ["x", "w", "b"]
    assert set(subject.graph.initializers) == {"w", "b"}


@pytest.mark.parametrize(
    ("dtype", "code", "tolerance"),
    [
        (np.float16, TensorProto.FLOAT16, 5e-3),
        (ml_dtypes.bfloat16, TensorProto.BFLOAT16, 5e-2),
        (np.float64, TensorProto.DOUBLE, 1e-12),
    ],
)
def test_the_weight_keeps_its_type(dtype: Any, code: int, tolerance: float) -> None:
    rng = np.random.default_rng(1)
    weights = {"w": weight(rng, 4, 3, 3, 3), **statistics(rng, 4)}
    nodes = [node("Conv", ["x", "w"], ["c"], name="conv"), batch_normalization("c", "y")]
    stored = {name: array.astype(dtype) for name, array in weights.items()}
    proto = model(nodes, {"x": ["N", 3, 8, 8]}, ["y"], stored, dtype=code)
    subject, _ = normalised(proto)
    tensors = {name: value.const_value for name, value in subject.graph.initializers.items()}
    assert {t.dtype.value for t in tensors.values() if t is not None} == {code}
    scale = weights["gamma"] / np.sqrt(weights["var"] + 1e-5)
    expected = weights["w"] * scale[:, None, None, None]
    actual = subject.graph.initializers["w"].const_value
    assert actual is not None
    assert close(actual.numpy().astype(np.float64), expected, max(tolerance, 1e-6))


def test_matmul_of_rank_three_stays() -> None:
    rng = np.random.default_rng(2)
    nodes = [node("MatMul", ["x", "w"], ["h"], name="m"), node("Add", ["h", "b"], ["y"], name="a")]
    proto = model(nodes, {"x": ["N", "T", 3]}, ["y"], {"w": weight(rng, 3, 4), "b": weight(rng, 4)})
    subject, modified = normalised(proto)
    assert not modified
    assert op_types(subject) == {"MatMul": 1, "Add": 1}


def two_users(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [*nodes, node("Relu", ["c"], ["z"], name="relu")]


def shared_weight(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [*nodes, node("Conv", ["x", "w"], ["z"], name="other")]


@pytest.mark.parametrize(
    ("change", "outputs"),
    [(two_users, ["y", "z"]), (shared_weight, ["y", "z"]), (list, ["y", "c"])],
    ids=["second user", "shared weight", "graph output"],
)
def test_what_others_use_stays(change: Any, outputs: list[str]) -> None:
    rng = np.random.default_rng(3)
    weights = {"w": weight(rng, 4, 3, 3, 3), "b": weight(rng, 4), **statistics(rng, 4)}
    nodes = [node("Conv", ["x", "w", "b"], ["c"], name="conv"), batch_normalization("c", "y")]
    proto = model(change(nodes), {"x": ["N", 3, 8, 8]}, outputs, weights)
    before = proto.SerializeToString()
    subject, modified = normalised(proto)
    assert not modified
    assert op_types(subject)["BatchNormalization"] == 1
    assert proto.SerializeToString() == before


def test_training_mode_stays() -> None:
    rng = np.random.default_rng(4)
    weights = {"w": weight(rng, 4, 3, 3, 3), **statistics(rng, 4)}
    operands = ["c", "gamma", "beta", "mean", "var"]
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv"),
        node("BatchNormalization", operands, ["y", "m", "v"], name="bn", training_mode=1),
    ]
    _, modified = normalised(model(nodes, {"x": ["N", 3, 8, 8]}, ["y"], weights))
    assert not modified


def test_a_per_column_constant_is_not_a_bias() -> None:
    rng = np.random.default_rng(5)
    weights = {"w": weight(rng, 8, 3, 1, 1), "k": weight(rng, 8)}
    nodes = [node("Conv", ["x", "w"], ["c"], name="conv"), node("Add", ["c", "k"], ["y"], name="add")]
    _, modified = normalised(model(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights))
    assert not modified


def test_a_weight_that_would_overflow_stays() -> None:
    weights = {"w": np.full((1, 1, 1, 1), 6e4, np.float16), "k": np.full((1, 1, 1), 4, np.float16)}
    nodes = [node("Conv", ["x", "w"], ["c"], name="conv"), node("Mul", ["c", "k"], ["y"], name="mul")]
    proto = model(nodes, {"x": [1, 1, 2, 2]}, ["y"], weights, dtype=TensorProto.FLOAT16)
    _, modified = normalised(proto)
    assert not modified


def test_overridable_weights_fold_only_when_frozen() -> None:
    rng = np.random.default_rng(6)
    x = {"x": weight(rng, 2, 3, 8, 8)}
    proto = conv_bn(rng, listed=["w"])
    assert not normalised(proto)[1]
    subject, modified = normalised(proto, freeze_initializers=True)
    assert modified
    assert close(run(subject, x, optimize=False)[0], run(proto, x, optimize=False)[0], 1e-5)


def test_frozen_initializers_are_no_inputs_where_nothing_is_folded() -> None:
    """A session neither folds nor lays out anew what may be overridden."""
    rng = np.random.default_rng(8)
    nodes = [node("Conv", ["x", "w"], ["y"], name="conv")]
    weights = {"w": weight(rng, 4, 3, 3, 3)}
    x = {"x": weight(rng, 2, 3, 8, 8)}

    def inputs(ir_version: int, freeze: bool) -> list[str | None]:
        proto = model(
            nodes, {"x": [2, 3, 8, 8]}, ["y"], weights, opset=8, ir_version=ir_version, listed=["w"]
        )
        subject, _ = normalised(proto, freeze_initializers=freeze)
        assert close(run(subject, x)[0], run(proto, x)[0], 1e-5)
        return [value.name for value in subject.graph.inputs]

    assert inputs(4, False) == inputs(3, True) == ["x", "w"]
    assert inputs(4, True) == ["x"]


def test_before_ir_version_4_new_initializers_are_inputs() -> None:
    rng = np.random.default_rng(7)
    weights = {"w": weight(rng, 4, 3, 3, 3), **statistics(rng, 4)}
    nodes = [node("Conv", ["x", "w"], ["c"], name="conv"), batch_normalization("c", "y")]
    shape = {"x": [2, 3, 8, 8]}
    proto = model(nodes, shape, ["y"], weights, opset=8, ir_version=3, listed=list(weights))
    subject, modified = normalised(proto)
    assert modified
    assert {v.name for v in subject.graph.inputs} == {"x", *subject.graph.initializers}
    x = {"x": weight(rng, 2, 3, 8, 8)}
    assert close(run(subject, x, optimize=False)[0], run(proto, x, optimize=False)[0], 1e-5)


def test_quantized_weights_stay() -> None:
    rng = np.random.default_rng(8)
    weights: dict[str, Array] = {
        "q": rng.integers(-99, 99, (4, 3, 1, 1)).astype(np.int8),
        "scale": np.array(0.1, np.float32),
        "zero": np.zeros((), np.int8),
        **statistics(rng, 4),
    }
    nodes = [
        node("DequantizeLinear", ["q", "scale", "zero"], ["w"], name="dq"),
        node("Conv", ["x", "w"], ["c"], name="conv"),
        batch_normalization("c", "y"),
    ]
    assert not normalised(model(nodes, {"x": [1, 3, 4, 4]}, ["y"], weights))[1]


def test_subgraphs_and_captured_weights_fold() -> None:
    rng = np.random.default_rng(9)
    body = helper.make_graph(
        [node("Conv", ["x", "w"], ["c"], name="conv"), batch_normalization("c", "t")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [1, 4, 6, 6])],
    )
    other = helper.make_graph(
        [node("Conv", ["x", "v"], ["e"], name="conv2")],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, [1, 4, 6, 6])],
    )
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["flag"]),
        node("If", ["flag"], ["y"], name="if", then_branch=body, else_branch=other),
    ]
    weights: dict[str, Array] = {
        "w": weight(rng, 4, 3, 3, 3),
        "v": weight(rng, 4, 3, 3, 3),
        "zero": np.zeros((), np.float32),
    }
    proto = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights | statistics(rng, 4))
    subject, modified = normalised(proto)
    assert modified
    for sign in (1.0, -1.0):
        x = {"x": (np.abs(weight(rng, 1, 3, 8, 8)) * sign).astype(np.float32)}
        assert close(run(subject, x, optimize=False)[0], run(proto, x, optimize=False)[0], 1e-5)


def test_functions_fold() -> None:
    rng = np.random.default_rng(10)
    constants = {"w": weight(rng, 4, 3, 3, 3), **statistics(rng, 4)}
    body = [
        node("Constant", [], [name], value=onnx.numpy_helper.from_array(array, name))
        for name, array in constants.items()
    ]
    body += [node("Conv", ["u", "w"], ["c"], name="conv"), batch_normalization("c", "v")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "Block", ["u"], ["v"], body, imports[:1])
    proto = model(
        [node("Block", ["x"], ["y"], domain="local", name="call")],
        {"x": [1, 3, 8, 8]},
        ["y"],
        {},
        opset_imports=imports,
        functions=[function],
    )
    subject, modified = normalised(proto)
    assert modified
    (folded,) = subject.functions.values()
    assert "BatchNormalization" not in {n.op_type for n in folded}
    x = {"x": weight(rng, 1, 3, 8, 8)}
    assert close(run(subject, x, optimize=False)[0], run(proto, x, optimize=False)[0], 1e-5)
