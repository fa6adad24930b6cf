"""Small models for the tests of sessions, inputs and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]


def value(name: str, shape: Dims | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, NDArray[Any]] | None = None,
    ir_version: int = 8,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "small", list(inputs), list(outputs), initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version)
    if all(port.type.tensor_type.HasField("shape") for port in outputs):
        onnx.checker.check_model(made)
    return made


def linear(weight: NDArray[Any], batch: int | str | None = "N") -> onnx.ModelProto:
    """scores [batch, C] = x [batch, S] @ weight [S, C]."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["scores"], name="fc")]
    x, y = value("x", [batch, weight.shape[0]]), value("scores", [batch, weight.shape[1]])
    return model(nodes, [x], [y], {"w": weight.astype(np.float32)})


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
    outputs = [value("out", [1, 4]), value("next", [2, 1, 4])]
    weights: dict[str, NDArray[Any]] = {
        "axis": np.array([0], np.int64),
        "half": np.array(0.5, np.float32),
    }
    return model(nodes, inputs, outputs, weights)


def saved(made: onnx.ModelProto, path: Path) -> Path:
    onnx.save(made, path)
    return path
