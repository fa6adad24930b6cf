"""Small models of many kinds with inputs for them: what exporters write, and what quantizers stumble over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxdecomp.core.layer import Array
from tests.builders.cases import Case, case_of
from tests.builders.feeds import normal, scalar
from tests.builders.graphs import node, value


def batched(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Array], feed: Mapping[str, Array], **header: Any
) -> Case:
    """A model whose batch is free, and a feed for it."""
    return case_of(nodes, weights, feed, False, batch="N", **header)


def scaled(*shape: int) -> Array:
    """Normal numbers, scaled by what a layer adds up."""
    scale = np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 1
    return normal(*shape) / np.float32(scale)


def image(channels: int = 16, size: int = 8) -> dict[str, Array]:
    return {"x": normal(1, channels, size, size)}


PADDED: dict[str, Any] = {"pads": [1, 1, 1, 1]}


def plain(**header: Any) -> Case:
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
        **{"w1": scaled(32, 16, 3, 3), "b1": scaled(32), "w2": scaled(32, 32, 3, 3), "b2": scaled(32)},
        **{"w3": scaled(16, 32), "b3": scaled(16)},
    }
    return batched(nodes, weights, image(), **header)


def residual() -> Case:
    """A residual block with a BatchNormalization after each Conv, and a branch that skips it."""
    nodes = []
    weights: dict[str, Array] = {}
    value = "x"
    for k in range(2):
        weights |= {f"w{k}": scaled(16, 16, 3, 3)}
        weights |= {f"{part}{k}": np.abs(scaled(16)) + 0.5 for part in ("scale", "shift", "mean", "var")}
        nodes += [
            node("Conv", f"{value} w{k}", f"c{k}", **PADDED),
            node("BatchNormalization", f"c{k} scale{k} shift{k} mean{k} var{k}", f"n{k}"),
            node("Relu", f"n{k}", f"r{k}"),
        ]
        value = f"r{k}"
    return batched([*nodes, node("Add", f"{value} x", "y")], weights, image())


def separable() -> Case:
    """1x1, depthwise and grouped convolutions, a Clip between."""
    nodes = [
        node("Conv", "x w1", "a"),
        node("Clip", "a low high", "b"),
        node("Conv", "b w2", "c", group=32, **PADDED),
        node("Conv", "c w3", "y", group=2, **PADDED),
    ]
    weights = {
        **{"w1": scaled(32, 16, 1, 1), "w2": scaled(32, 1, 3, 3), "w3": scaled(32, 16, 3, 3)},
        **{"low": scalar(0), "high": scalar(6)},
    }
    return batched(nodes, weights, image())


def upsampling(**header: Any) -> Case:
    """ConvTranspose with groups and a bias, then Resize to a size, then Conv."""
    nodes = [
        node("ConvTranspose", "x w1 b1", "a", group=2, strides=[2, 2]),
        node("Resize", "a roi scales sizes", "b", mode="nearest"),
        node("Conv", "b w2", "y", **PADDED),
    ]
    weights = {
        **{"w1": scaled(16, 8, 2, 2), "b1": scaled(16), "w2": scaled(16, 16, 3, 3)},
        **{"roi": np.zeros(0, np.float32), "scales": np.zeros(0, np.float32)},
        "sizes": np.array([1, 16, 24, 24]),
    }
    return case_of(nodes, weights, image(), False, **header)


def volume() -> Case:
    """3-D convolutions."""
    nodes = [node("Conv", "x w1", "a", pads=[1] * 6), node("Conv", "a w2", "y", pads=[1] * 6)]
    weights = {"w1": scaled(16, 16, 3, 3, 3), "w2": scaled(16, 16, 3, 3, 3)}
    return batched(nodes, weights, {"x": normal(1, 16, 4, 4, 4)})


def sequence() -> Case:
    """A GRU between two MatMuls with a bias."""
    nodes = [
        node("MatMul", "x w1", "a"),
        node("Add", "a b1", "b"),
        node("GRU", "b W R", "c", hidden_size=16),
        node("Squeeze", "c axis", "d"),
        node("MatMul", "d w2", "y"),
    ]
    weights = {
        **{"w1": scaled(24, 16), "b1": scaled(16), "w2": scaled(16, 24), "axis": np.array([1])},
        **{"W": scaled(1, 48, 16), "R": scaled(1, 48, 16)},
    }
    return batched(nodes, weights, {"x": normal(6, 1, 24)})


def attention() -> Case:
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
    weights = {f"w{name}": scaled(32, 32) for name in "qkvo"}
    weights |= {"scale": np.ones(32, np.float32), "shift": np.zeros(32, np.float32)}
    return batched(nodes, weights, {"x": normal(1, 5, 32)})


def shared() -> Case:
    """Two layers with one weight and one bias, whose copies would get the name of another value."""
    nodes = [
        node("Conv", "x w b", "a", **PADDED),
        node("Relu", "a", "b2"),
        node("Conv", "b2 w b", "y", **PADDED),
    ]
    return batched(nodes, {"w": scaled(16, 16, 3, 3), "b": scaled(16)}, image())


def constants() -> Case:
    """Weights in Constant nodes, one behind a Transpose."""
    first, second = scaled(16, 16, 3, 3), scaled(16, 32)
    nodes = [
        helper.make_node("Constant", [], ["w1"], "w1", value=numpy_helper.from_array(first)),
        helper.make_node("Constant", [], ["w2t"], "w2t", value=numpy_helper.from_array(second)),
        node("Transpose", "w2t", "w2", perm=[1, 0]),
        node("Conv", "x w1", "a", **PADDED),
        node("GlobalAveragePool", "a", "b"),
        node("Flatten", "b", "c"),
        node("Gemm", "c w2t", "y"),
    ]
    return batched(nodes, {}, image())


def _branches() -> tuple[onnx.GraphProto, onnx.GraphProto]:
    outputs = [value("z", None)]
    then = helper.make_graph([node("Conv", "a w", "z", **PADDED)], "then", [], outputs)
    other = helper.make_graph([node("Identity", "a", "z", name="same")], "else", [], outputs)
    return then, other


def branching() -> Case:
    """An If whose branch reads a weight of the main graph that a Conv there reads too."""
    then, other = _branches()
    nodes = [
        node("Conv", "x w", "a", **PADDED),
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "flag"),
        node("If", "flag", "h", then_branch=then, else_branch=other),
        node("Conv", "h w2", "y", **PADDED),
    ]
    weights = {"w": scaled(16, 16, 3, 3), "w2": scaled(16, 16, 3, 3), "zero": scalar(-1e9)}
    return batched(nodes, weights, image())


def with_function() -> Case:
    """A function of the model's own between two layers."""
    body = [node("Relu", "a", "b"), node("MatMul", "b w", "c")]
    function = helper.make_function("local", "Block", ["a", "w"], ["c"], body, [helper.make_opsetid("", 17)])
    nodes = [
        node("MatMul", "x w1", "h"),
        helper.make_node("Block", ["h", "w2"], ["k"], "block", domain="local"),
        node("MatMul", "k w3", "y"),
    ]
    weights = {f"w{k}": scaled(32, 32) for k in (1, 2, 3)}
    return batched(nodes, weights, {"x": scaled(1, 32)}, functions=[function], ir_version=9)


def tied() -> Case:
    """A weight that a MatMul, a Transpose and a Gather read, as of a table that is the head, too."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("Transpose", "w", "t", perm=[1, 0]),
        node("MatMul", "h t", "k"),
        node("Gather", "w rows", "g"),
        node("MatMul", "g t", "l"),
        node("Add", "k l", "y"),
    ]
    weights = {"w": scaled(32, 24) * np.linspace(0.5, 2, 24, dtype=np.float32), "rows": np.array([3])}
    return batched(nodes, weights, {"x": scaled(4, 32)})


KINDS: dict[str, Callable[[], Case]] = {
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
