"""Small ONNX models for the tests of onnxdecomp.graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from onnxdecomp.core.layer import Array

FLOAT = onnx.TensorProto.FLOAT


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def info(name: str, shape: Sequence[int | str | None] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array] | None = None,
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    opset: int = 17,
    ir_version: int = 9,
    **more: object,
) -> onnx.ModelProto:
    """A model of x [N, 4] to y, with these nodes and initializers."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        list(inputs) or [info("x", ["N", 4])],
        list(outputs) or [info("y", None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, **more)


def linear(size: int = 32, **more: int) -> onnx.ModelProto:
    """y = x W + b with W of 4 x size: 4 * size * 4 bytes."""
    weights = {
        "W": rng().standard_normal((4, size)).astype(np.float32),
        "b": rng().standard_normal(size).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], "mm"),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    return model(nodes, weights, outputs=[info("y", ["N", size])], **more)  # type: ignore[arg-type]


def write(proto: onnx.ModelProto, path: Path, data: str | None = None) -> Path:
    """Save with onnx itself; with `data`, every tensor goes to that file."""
    if data is None:
        onnx.save(proto, path)
    else:
        onnx.save(proto, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def session(source: Path | bytes, *, optimize: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    content = source if isinstance(source, bytes) else str(source)
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def outputs(source: Path | bytes, feeds: Mapping[str, Array] | None = None) -> list[Array]:
    """What ONNX Runtime makes of x = arange, or of these feeds."""
    given = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)} if feeds is None else dict(feeds)
    return list(session(source).run(None, given))


def nested(ir_version: int = 9) -> onnx.ModelProto:
    """An If whose branches capture W; in one of them a Loop, and in that W again."""
    step = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "W"], ["next"], "inner"),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            info("i", [], onnx.TensorProto.INT64),
            info("go", [], onnx.TensorProto.BOOL),
            info("state", ["N", 4]),
        ],
        [info("on", [], onnx.TensorProto.BOOL), info("next", ["N", 4])],
    )
    then = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "x"], ["t"], "loop", body=step)],
        "then",
        [],
        [info("t", None)],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["o"], "mm")], "else", [], [info("o", None)]
    )
    nodes = [
        helper.make_node("Identity", ["W0"], ["W"], "name"),
        helper.make_node("If", ["flag"], ["y"], "choose", then_branch=then, else_branch=other),
    ]
    weight: Array = rng().standard_normal((4, 4)).astype(np.float32)
    weights: dict[str, Array] = {"W0": weight, "times": np.asarray(3, np.int64)}
    inputs = [info("x", ["N", 4]), info("flag", [], onnx.TensorProto.BOOL)]
    return model(nodes, weights, inputs=inputs, outputs=[info("y", ["N", 4])], ir_version=ir_version)


def with_function(ir_version: int = 9) -> onnx.ModelProto:
    """A function Dense(a; alpha) = LeakyRelu(a C, alpha) C in a Constant, called twice."""
    weight = numpy_helper.from_array(rng().standard_normal((4, 4)).astype(np.float32), "C_value")
    leaky = helper.make_node("LeakyRelu", ["h"], ["r"], "leaky")
    leaky.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="alpha")
    body = [
        helper.make_node("Constant", [], ["C"], "weight", value=weight),
        helper.make_node("MatMul", ["a", "C"], ["h"], "mm"),
        leaky,
    ]
    function = helper.make_function(
        "local", "Dense", ["a"], ["r"], body, [helper.make_opsetid("", 17)], attributes=["alpha"]
    )
    nodes = [
        helper.make_node("Dense", ["x"], ["m"], "first", domain="local", alpha=0.1),
        helper.make_node("Dense", ["m"], ["y"], "second", domain="local", alpha=0.2),
    ]
    return model(nodes, ir_version=ir_version, functions=[function], outputs=[info("y", ["N", 4])])
