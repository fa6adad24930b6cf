"""Whole small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.core.layer import Array
from tests.builders.feeds import ints, normal, scalar
from tests.builders.graphs import Dims, conv, from_x, model, saved, value

X = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
"""An input of `linear` and `with_function`, and of `nested` beside a flag."""

PICTURE: Dims = ("N", 4, 6, 6)
"""A shape of inputs."""

MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
MATRICES = {"w": normal(5, 7), "c": normal(7)}
"""Weights of MATMUL and of a Gemm."""


def network(path: Path, *, channels: int = 16, spoil: float | None = None, **header: Any) -> Path:
    """x [N, 8, 8, 8] -> Conv c1 -> Relu -> Conv c2 -> y [N, channels, 8, 8]; seeded weights.

    Args:
        path: The file to write.
        channels: Of both convolutions.
        spoil: A value to put into the second weight.
        header: Other arguments of `model`.
    """
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((channels, 8, 3, 3), dtype=np.float32) / 8,
        "w2": rng.standard_normal((channels, channels, 3, 3), dtype=np.float32) / 12,
    }
    if spoil is not None:
        weights["w2"][1, 2, 0, 0] = spoil
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="r"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="c2", pads=[1, 1, 1, 1]),
    ]
    return write(path, nodes, weights, **header)


def write(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Any], **header: Any) -> Path:
    """The file of a model of x [N, 8, 8, 8] and y."""
    return saved(model(nodes, {"x": ["N", 8, 8, 8]}, {"y": ["N", None, 8, 8]}, weights, **header), path)


def thin_middle() -> onnx.ModelProto:
    """x [N, 8, 6, 6] -> one -> Relu -> two -> Relu -> mean -> fc -> y [N, 20].

    The layer two has little but a rank of 4.
    """
    rng = np.random.default_rng(1)
    thin = np.einsum("tr,rskl->tskl", rng.standard_normal((24, 4)), rng.standard_normal((4, 16, 3, 3)))
    weights = {
        "w1": rng.standard_normal((16, 8, 3, 3)) / 8,
        "w2": thin / 24 + 0.02 * rng.standard_normal(thin.shape),
        "w3": rng.standard_normal((24, 20)) / 5,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["y"], name="fc"),
    ]
    stored = {name: weight.astype(np.float32) for name, weight in weights.items()}
    return model(nodes, {"x": ["N", 8, 6, 6]}, {"y": ["N", 20]}, stored)


def two_convolutions() -> onnx.ModelProto:
    """x [N, 16, 8, 8] -> conv1 -> conv2 -> mean -> fc -> y [N, 36].

    Large enough for every method to save something.
    """
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w2"], ["b"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "w3"], ["y"], name="fc"),
    ]
    weights = {"w1": normal(16, 16, 3, 3), "w2": normal(36, 16, 3, 3), "w3": normal(36, 36)}
    return model(nodes, {"x": ["N", 16, 8, 8]}, {"y": ["N", 36]}, weights)


def scores(weight: NDArray[Any], batch: int | str | None = "N") -> onnx.ModelProto:
    """scores [batch, C] = x [batch, S] @ weight [S, C]."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["scores"], name="fc")]
    inputs, outputs = ([batch, size] for size in weight.shape)
    return model(nodes, {"x": inputs}, {"scores": outputs}, {"w": weight.astype(np.float32)})


def linear(size: int = 32, **header: int) -> onnx.ModelProto:
    """y = x W + b with x [N, 4] and W of 4 x size: 4 * size * 4 bytes."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], "mm"),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    weights = {"W": normal(4, size), "b": normal(size)}
    return model(nodes, {"x": ["N", 4]}, {"y": ["N", size]}, weights, **header)  # type: ignore[arg-type]


def stateful() -> onnx.ModelProto:
    """frame [1, 4] and state [2, 1, 4] to out [1, 4] and next [2, 1, 4]; a scalar gain."""
    nodes = [
        helper.make_node("ReduceSum", ["state", "axis"], ["past"], keepdims=0),
        helper.make_node("Cast", ["gain"], ["g"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["frame", "g"], ["loud"]),
        helper.make_node("Add", ["loud", "past"], ["out"]),
        helper.make_node("Mul", ["state", "half"], ["next"]),
    ]
    inputs = [value("frame", [1, 4]), value("state", [2, 1, 4]), value("gain", [], TensorProto.INT64)]
    outputs = {"out": [1, 4], "next": [2, 1, 4]}
    return model(nodes, inputs, outputs, {"axis": ints(0), "half": scalar(0.5)})


def residual(damaged: str = "", seed: int = 0) -> onnx.ModelProto:
    """y = relu(second(relu(first(s))) + s) with s = relu(stem(x)); one layer's weight may be damaged."""
    sizes = {"stem": (4, 3, 3, 3), "first": (6, 2, 3, 3), "second": (4, 6, 3, 3)}
    weights: dict[str, Array] = {}
    for index, (name, shape) in enumerate(sizes.items()):
        weights[f"{name}.w"] = normal(*shape, seed=seed + index) / np.float32(3)
        weights[f"{name}.b"] = normal(shape[0], seed=seed + index)
    if damaged:
        weights[f"{damaged}.w"] = weights[f"{damaged}.w"] + normal(*sizes[damaged], seed=9) / np.float32(5)
    nodes = [
        conv("stem", "x", "a", pads=[1, 1, 1, 1], strides=[2, 1]),
        helper.make_node("Relu", ["a"], ["s"]),
        conv("first", "s", "h", pads=[1, 1, 1, 1], group=2),
        helper.make_node("Relu", ["h"], ["r"]),
        conv("second", "r", "c", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "s"], ["t"], name="sum"),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    return model(nodes, {"x": ["N", 3, 8, 5]}, ["y"], weights)


def gru() -> ir.Model:
    """In both directions, over x [steps, N, 5], loaded."""
    node = helper.make_node(
        "GRU", ["x", "w", "r", "b"], ["y"], name="layer", hidden_size=3, direction="bidirectional"
    )
    weights = {"w": normal(2, 9, 5), "r": normal(2, 9, 3), "b": normal(2, 18)}
    return from_x([node], weights, ["steps", "N", 5])


def nested(ir_version: int = 8) -> onnx.ModelProto:
    """An If whose branches capture W; in one of them a Loop, and in that W again."""
    step = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "W"], ["next"], "inner"),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
            value("state", ["N", 4]),
        ],
        [value("on", [], TensorProto.BOOL), value("next", ["N", 4])],
    )
    then = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "x"], ["t"], "loop", body=step)],
        "then",
        [],
        [value("t", None)],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["o"], "mm")], "else", [], [value("o", None)]
    )
    nodes = [
        helper.make_node("Identity", ["W0"], ["W"], "name"),
        helper.make_node("If", ["flag"], ["y"], "choose", then_branch=then, else_branch=other),
    ]
    weights = {"W0": normal(4, 4), "times": np.asarray(3, np.int64)}
    inputs = [value("x", ["N", 4]), value("flag", [], TensorProto.BOOL)]
    return model(nodes, inputs, {"y": ["N", 4]}, weights, ir_version=ir_version)


def with_function(ir_version: int = 8) -> onnx.ModelProto:
    """A function Dense(a; alpha) = LeakyRelu(a C, alpha) C in a Constant, called twice."""
    weight = numpy_helper.from_array(normal(4, 4), "C_value")
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
    return model(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, ir_version=ir_version, functions=[function])
