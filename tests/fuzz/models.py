"""Small whole models of many kinds, which the campaign damages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.builders import graphs, models

Array = NDArray[Any]

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


@dataclass(frozen=True)
class Base:
    """A model's files, by name ("m.onnx" first), and inputs for it."""

    name: str
    files: Mapping[str, bytes]
    inputs: Mapping[str, Array] = field(default_factory=dict)


def _weights(rng: np.random.Generator, **shapes: Sequence[int]) -> dict[str, Array]:
    return {
        name: np.asarray(rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])), np.float32)
        for name, shape in shapes.items()
    }


def _model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    x: Sequence[int | str],
    *,
    kind: int = FLOAT,
    listed: bool = False,
    **header: int,
) -> onnx.ModelProto:
    inputs, outputs = [graphs.value("x", x, kind)], [graphs.value("y", None)]
    also = weights if listed else ()
    return graphs.model(nodes, inputs, outputs, weights, listed=also, **header)  # type: ignore[arg-type]


def _convolutions(rng: np.random.Generator) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "c1", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], "r1"),
        helper.make_node(
            "Conv", ["b", "w2"], ["c"], "c2", group=2, kernel_shape=[3, 3], auto_pad="SAME_UPPER"
        ),
        helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["d"], "bn"),
        helper.make_node("ConvTranspose", ["d", "w3"], ["e"], "c3", strides=[2, 2], dilations=[1, 1]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], "pool"),
        helper.make_node("Flatten", ["f"], ["h"], "flat", axis=1),
        helper.make_node("Gemm", ["h", "w4", "b4"], ["y"], "fc", transB=1, alpha=0.5),
    ]
    weights = _weights(rng, w1=(16, 4, 3, 3), b1=(16,), w2=(16, 8, 3, 3), w3=(16, 12, 2, 2), w4=(10, 12))
    weights |= {name: np.full(16, 0.5, np.float32) for name in "stmv"} | _weights(rng, b4=(10,))
    return _model(nodes, weights, ["N", 4, 8, 8]), (4, 8, 8)


def _old(rng: np.random.Generator) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "c1", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["a", "shape"], ["b"], "r"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], "m"),
    ]
    weights = {**_weights(rng, w1=(16, 8, 3, 3), w2=(64, 24)), "shape": np.asarray([-1, 64], np.int64)}
    return _model(nodes, weights, [1, 8, 4, 4], opset=9, ir_version=3, listed=True), (8, 4, 4)


def _attention(rng: np.random.Generator) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"], "embed"),
        helper.make_node("MatMul", ["e", "wq"], ["q"], "query"),
        helper.make_node("MatMul", ["e", "wk"], ["k"], "key"),
        helper.make_node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], "scores"),
        helper.make_node("Softmax", ["s"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "e"], ["o"], "mix"),
        helper.make_node("Einsum", ["o", "we"], ["u"], "einsum", equation="bij,kj->bik"),
        helper.make_node("Shape", ["u"], ["dims"], "shape"),
        helper.make_node("Reshape", ["u", "dims"], ["y"], "reshape"),
    ]
    weights = _weights(rng, table=(50, 16), wq=(16, 16), wk=(16, 16), we=(24, 16))
    return _model(nodes, weights, ["N", 6], kind=INT64), (6,)


def _recurrent(rng: np.random.Generator) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["", "h"], "lstm", hidden_size=12),
        helper.make_node("GRU", ["x", "w2", "r2"], ["s"], "gru", hidden_size=8, direction="reverse"),
        helper.make_node("Squeeze", ["h", "axis"], ["y"], "squeeze"),
    ]
    weights = _weights(rng, w=(1, 48, 16), r=(1, 48, 12), b=(1, 96), w2=(1, 24, 16), r2=(1, 24, 8))
    return _model(nodes, {**weights, "axis": np.asarray([0], np.int64)}, [5, 1, 16]), (1, 16)


def _quantized(rng: np.random.Generator) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w"], "dq", axis=0),
        helper.make_node("Conv", ["x", "w"], ["a"], "c", kernel_shape=[1, 1]),
        helper.make_node("QuantizeLinear", ["a", "one", "null"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "one", "null"], ["y"], "dq2"),
    ]
    weights: dict[str, Array] = {
        "w8": rng.integers(-127, 127, (24, 16, 1, 1), dtype=np.int8),
        "scale": np.full(24, 0.01, np.float32),
        "zero": np.zeros(24, np.int8),
        "one": np.asarray(0.1, np.float32),
        "null": np.asarray(0, np.uint8),
    }
    return _model(nodes, weights, ["N", 16, 4, 4], opset=13), (16, 4, 4)


def _half(rng: np.random.Generator) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "to", to=HALF),
        helper.make_node("MatMul", ["h", "w1"], ["a"], "m1"),
        helper.make_node("Add", ["a", "b1"], ["b"], "add"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], "m2"),
        helper.make_node("Cast", ["c"], ["y"], "back", to=FLOAT),
    ]
    weights = _weights(rng, w1=(16, 24), b1=(24,), w2=(24, 16))
    return _model(nodes, {k: w.astype(np.float16) for k, w in weights.items()}, ["N", 16]), (16,)


_BUILT: dict[str, Callable[[np.random.Generator], tuple[onnx.ModelProto, tuple[int, ...]]]] = {
    "convolutions": _convolutions,
    "old": _old,
    "attention": _attention,
    "recurrent": _recurrent,
    "quantized": _quantized,
    "half": _half,
}


@cache
def bases() -> tuple[Base, ...]:
    """The models, always the same."""
    rng = np.random.default_rng(0)
    found = []
    for name, build in _BUILT.items():
        proto, shape = build(rng)
        rows = 5 if name == "recurrent" else 1
        whole = name == "attention"
        x = rng.integers(0, 50, (4, *shape)) if whole else rng.standard_normal((4, *shape), np.float32)
        if rows > 1:
            x = rng.standard_normal((rows, *shape), np.float32)
        found.append(Base(name, {"m.onnx": proto.SerializeToString()}, {"x": x}))
    found.append(Base("nested", {"m.onnx": models.nested().SerializeToString()}))
    found.append(Base("function", {"m.onnx": models.with_function().SerializeToString()}))
    with TemporaryDirectory() as folder:
        path = graphs.saved(models.linear(), Path(folder) / "m.onnx", "m.data")
        files = {file.name: file.read_bytes() for file in (path, path.with_name("m.data"))}
    found.append(Base("external", files, {"x": rng.standard_normal((6, 4), np.float32)}))
    return tuple(found)
