"""Small models of many kinds with inputs for them: what exporters write, and what quantizers stumble over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxdecomp.core.layer import Array

FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True, eq=False)
class Kind:
    """A model, and a feed for it; `weights` are its initializers."""

    model: onnx.ModelProto
    feed: dict[str, Array]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(*shape: int) -> Array:
    """Seeded normal numbers, scaled by what a layer adds up."""
    scale = float(np.sqrt(np.prod(shape[1:]))) if len(shape) > 1 else 1.0
    return (rng().standard_normal(shape) / scale).astype(np.float32)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node named by its first output; inputs and outputs are names with blanks between."""
    name = attributes.pop("name", outputs.split(maxsplit=1)[0])
    return helper.make_node(op_type, inputs.split(), outputs.split(), name=name, **attributes)


def kind(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    feed: Mapping[str, Array],
    *,
    opset: int = 17,
    ir_version: int = 8,
    listed: Sequence[str] = (),
    free: bool = True,
    functions: Sequence[onnx.FunctionProto] = (),
) -> Kind:
    """A model to the output "y".

    Args:
        nodes, weights, feed: What it is made of.
        opset, ir_version: Its header.
        listed: Initializers that are graph inputs too.
        free: Whether the first axis of the inputs is.
        functions: Of the domain "local".
    """
    inputs = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(array.dtype),
            ["N", *array.shape[1:]] if free else array.shape,
        )
        for name, array in feed.items()
    ]
    inputs += [helper.make_tensor_value_info(name, FLOAT, weights[name].shape) for name in listed]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", FLOAT, None)], stored)
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid("local", 1)] if functions else [])]
    made = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=functions)
    return Kind(made, dict(feed))


def image(channels: int = 16, size: int = 8) -> dict[str, Array]:
    return {"x": rng().standard_normal((1, channels, size, size)).astype(np.float32)}


PADDED: dict[str, Any] = {"pads": [1, 1, 1, 1]}


def plain(**header: Any) -> Kind:
    """Conv, Relu, Conv, Relu, pooling, Gemm: what compress mostly meets."""
    nodes = [
        node("Conv", "x w1 b1", "a", **PADDED),
        node("Relu", "a", "b"),
        node("Conv", "b w2 b2", "c", **PADDED),
        node("Relu", "c", "d"),
        node("GlobalAveragePool", "d", "e"),
        node("Flatten", "e", "f"),
        node("Gemm", "f w3 b3", "y", transB=1),
    ]
    weights = {
        **{"w1": normal(32, 16, 3, 3), "b1": normal(32), "w2": normal(32, 32, 3, 3), "b2": normal(32)},
        **{"w3": normal(16, 32), "b3": normal(16)},
    }
    return kind(nodes, weights, image(), **header)


def residual() -> Kind:
    """A residual block with a BatchNormalization after each Conv, and a branch that skips it."""
    nodes = []
    weights: dict[str, Array] = {}
    value = "x"
    for k in range(2):
        weights |= {f"w{k}": normal(16, 16, 3, 3)}
        weights |= {f"{part}{k}": np.abs(normal(16)) + 0.5 for part in ("scale", "shift", "mean", "var")}
        nodes += [
            node("Conv", f"{value} w{k}", f"c{k}", **PADDED),
            node("BatchNormalization", f"c{k} scale{k} shift{k} mean{k} var{k}", f"n{k}"),
            node("Relu", f"n{k}", f"r{k}"),
        ]
        value = f"r{k}"
    return kind([*nodes, node("Add", f"{value} x", "y")], weights, image())


def separable() -> Kind:
    """1x1, depthwise and grouped convolutions, a Clip between."""
    nodes = [
        node("Conv", "x w1", "a"),
        node("Clip", "a low high", "b"),
        node("Conv", "b w2", "c", group=32, **PADDED),
        node("Conv", "c w3", "y", group=2, **PADDED),
    ]
    weights = {
        **{"w1": normal(32, 16, 1, 1), "w2": normal(32, 1, 3, 3), "w3": normal(32, 16, 3, 3)},
        **{"low": np.array(0, np.float32), "high": np.array(6, np.float32)},
    }
    return kind(nodes, weights, image())


def upsampling(**header: Any) -> Kind:
    """ConvTranspose with groups and a bias, then Resize to a size, then Conv."""
    nodes = [
        node("ConvTranspose", "x w1 b1", "a", group=2, strides=[2, 2]),
        node("Resize", "a roi scales sizes", "b", mode="nearest"),
        node("Conv", "b w2", "y", **PADDED),
    ]
    weights = {
        **{"w1": normal(16, 8, 2, 2), "b1": normal(16), "w2": normal(16, 16, 3, 3)},
        **{"roi": np.zeros(0, np.float32), "scales": np.zeros(0, np.float32)},
        "sizes": np.array([1, 16, 24, 24]),
    }
    return kind(nodes, weights, image(), free=False, **header)


def volume() -> Kind:
    """3-D convolutions."""
    nodes = [node("Conv", "x w1", "a", pads=[1] * 6), node("Conv", "a w2", "y", pads=[1] * 6)]
    weights = {"w1": normal(16, 16, 3, 3, 3), "w2": normal(16, 16, 3, 3, 3)}
    return kind(nodes, weights, {"x": rng().standard_normal((1, 16, 4, 4, 4)).astype(np.float32)})


def sequence() -> Kind:
    """A GRU between two MatMuls with a bias."""
    nodes = [
        node("MatMul", "x w1", "a"),
        node("Add", "a b1", "b"),
        node("GRU", "b W R", "c", hidden_size=16),
        node("Squeeze", "c axis", "d"),
        node("MatMul", "d w2", "y"),
    ]
    weights = {
        **{"w1": normal(24, 16), "b1": normal(16), "w2": normal(16, 24), "axis": np.array([1])},
        **{"W": normal(1, 48, 16), "R": normal(1, 48, 16)},
    }
    return kind(nodes, weights, {"x": rng().standard_normal((6, 1, 24)).astype(np.float32)})


def attention() -> Kind:
    """Products of two activations, Softmax and LayerNormalization between MatMuls."""
    nodes = [
        *(node("MatMul", f"x w{name}", name) for name in "qkv"),
        node("Transpose", "k", "t", perm=[0, 2, 1]),
        node("MatMul", "q t", "s"),
        node("Softmax", "s", "p"),
        node("MatMul", "p v", "o"),
        node("LayerNormalization", "o scale shift", "n"),
        node("MatMul", "n wo", "y"),
    ]
    weights = {f"w{name}": normal(32, 32) for name in "qkvo"}
    weights |= {"scale": np.ones(32, np.float32), "shift": np.zeros(32, np.float32)}
    return kind(nodes, weights, {"x": rng().standard_normal((1, 5, 32)).astype(np.float32)})


def shared() -> Kind:
    """Two layers with one weight and one bias, whose copies would get the name of another value."""
    nodes = [
        node("Conv", "x w b", "a", **PADDED),
        node("Relu", "a", "b2"),
        node("Conv", "b2 w b", "y", **PADDED),
    ]
    return kind(nodes, {"w": normal(16, 16, 3, 3), "b": normal(16)}, image())


def constants() -> Kind:
    """Weights in Constant nodes, one behind a Transpose."""
    first, second = normal(16, 16, 3, 3), normal(16, 32)
    nodes = [
        helper.make_node("Constant", [], ["w1"], "w1", value=numpy_helper.from_array(first)),
        helper.make_node("Constant", [], ["w2t"], "w2t", value=numpy_helper.from_array(second)),
        node("Transpose", "w2t", "w2", perm=[1, 0]),
        node("Conv", "x w1", "a", **PADDED),
        node("GlobalAveragePool", "a", "b"),
        node("Flatten", "b", "c"),
        node("Gemm", "c w2t", "y"),
    ]
    return kind(nodes, {}, image())


def _branches() -> tuple[onnx.GraphProto, onnx.GraphProto]:
    outputs = [helper.make_tensor_value_info("z", FLOAT, None)]
    then = helper.make_graph([node("Conv", "a w", "z", **PADDED)], "then", [], outputs)
    other = helper.make_graph([node("Identity", "a", "z", name="same")], "else", [], outputs)
    return then, other


def branching() -> Kind:
    """An If whose branch reads a weight of the main graph that a Conv there reads too."""
    then, other = _branches()
    nodes = [
        node("Conv", "x w", "a", **PADDED),
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "flag"),
        node("If", "flag", "h", then_branch=then, else_branch=other),
        node("Conv", "h w2", "y", **PADDED),
    ]
    weights = {"w": normal(16, 16, 3, 3), "w2": normal(16, 16, 3, 3), "zero": np.array(-1e9, np.float32)}
    return kind(nodes, weights, image())


def with_function() -> Kind:
    """A function of the model's own between two layers."""
    body = [node("Relu", "a", "b"), node("MatMul", "b w", "c")]
    function = helper.make_function("local", "Block", ["a", "w"], ["c"], body, [helper.make_opsetid("", 17)])
    nodes = [
        node("MatMul", "x w1", "h"),
        helper.make_node("Block", ["h", "w2"], ["k"], "block", domain="local"),
        node("MatMul", "k w3", "y"),
    ]
    weights = {f"w{k}": normal(32, 32) for k in (1, 2, 3)}
    return kind(nodes, weights, {"x": normal(1, 32)}, functions=[function], ir_version=9)


def tied() -> Kind:
    """A weight that a MatMul, a Transpose and a Gather read, as of a table that is the head, too."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("Transpose", "w", "t", perm=[1, 0]),
        node("MatMul", "h t", "k"),
        node("Gather", "w rows", "g"),
        node("MatMul", "g t", "l"),
        node("Add", "k l", "y"),
    ]
    weights = {"w": normal(32, 24) * np.linspace(0.5, 2, 24, dtype=np.float32), "rows": np.array([3])}
    return kind(nodes, weights, {"x": normal(4, 32)})


KINDS: dict[str, Callable[[], Kind]] = {
    "plain": plain,
    "opset 9": lambda: plain(opset=9, ir_version=3, listed=("w1", "b1", "w2", "b2", "w3", "b3")),
    "opset 11": lambda: plain(opset=11, ir_version=6),
    "opset 21": lambda: plain(opset=21, ir_version=10),
    "overridable": lambda: plain(listed=("w1",)),
    "residual": residual,
    "separable": separable,
    "upsampling": upsampling,
    "upsampling, opset 11": lambda: upsampling(opset=11, ir_version=6),
    "volume": volume,
    "sequence": sequence,
    "attention": attention,
    "shared": shared,
    "constants": constants,
    "branching": branching,
    "function": with_function,
}
