"""A vision transformer with random weights as exporters write it: shapes are computed from shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxdecomp.core.layer import Array
from tests.builders.graphs import model


@dataclass(eq=False)
class _Writer:
    """Nodes and weights as they come; every value has a name of its own."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        out = f"/{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{out}_out"], out, **attributes))
        return f"{out}_out"

    def constant(self, value: object, dtype: type[np.generic] = np.int64) -> str:
        """Behind a Constant node each, as traced graphs have them."""
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        scale = 1 / math.sqrt(shape[0])
        self.weights[name] = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        return name

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        return self.op("Add", self.weight(outputs), self.op("MatMul", x, self.weight(inputs, outputs)))

    def size(self, x: str, axis: int) -> str:
        """One size of a value, as [1]."""
        found = self.op("Gather", self.op("Shape", x), self.constant(axis), axis=0)
        return self.op("Unsqueeze", found, self.constant([0]))

    def normalised(self, x: str, width: int) -> str:
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        square = self.op("Pow", centred, self.constant(2, np.float32))
        variance = self.op("ReduceMean", square, axes=[-1])
        root = self.op("Sqrt", self.op("Add", variance, self.constant(1e-5, np.float32)))
        scaled = self.op("Mul", self.op("Div", centred, root), self.weight(width))
        return self.op("Add", scaled, self.weight(width))

    def heads(self, x: str, width: int, heads: int, order: list[int]) -> str:
        """[N, L, width] to [N, heads, L, width / heads] or, for the keys, transposed."""
        parts = [self.size(x, 0), self.size(x, 1), self.constant([heads]), self.constant([width // heads])]
        apart = self.op("Reshape", x, self.op("Concat", *parts, axis=0))
        return self.op("Transpose", apart, perm=order)

    def attention(self, x: str, width: int, heads: int) -> str:
        query, key, value = (self.linear(x, width, width) for _ in range(3))
        scores = self.op(
            "MatMul",
            self.heads(query, width, heads, [0, 2, 1, 3]),
            self.heads(key, width, heads, [0, 2, 3, 1]),
        )
        scores = self.op("Div", scores, self.constant(math.sqrt(width / heads), np.float32))
        mixed = self.op(
            "MatMul", self.op("Softmax", scores, axis=-1), self.heads(value, width, heads, [0, 2, 1, 3])
        )
        back = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        shape = self.op("Concat", self.size(back, 0), self.size(back, 1), self.constant([width]), axis=0)
        return self.linear(self.op("Reshape", back, shape), width, width)

    def gelu(self, x: str) -> str:
        half = self.op("Erf", self.op("Div", x, self.constant(math.sqrt(2), np.float32)))
        one = self.op("Add", half, self.constant(1, np.float32))
        return self.op("Mul", self.op("Mul", x, one), self.constant(0.5, np.float32))


def vit(depth: int = 12, width: int = 32, heads: int = 4, *, seed: int = 0) -> onnx.ModelProto:
    """x [N, 3, 16, 16] to y [N, 10], in patches of 4 x 4 with a class token."""
    w = _Writer(np.random.default_rng(seed))
    w.weights["patch"] = w.rng.standard_normal((width, 3, 4, 4)).astype(np.float32) / 7
    patches = w.op("Conv", "x", "patch", w.weight(width), strides=[4, 4], kernel_shape=[4, 4])
    flat = w.op("Concat", w.size(patches, 0), w.size(patches, 1), w.constant([-1]), axis=0)
    tokens = w.op("Transpose", w.op("Reshape", patches, flat), perm=[0, 2, 1])
    # torch's expand: sizes of -1 are those that there are.
    wanted = w.op("Concat", w.size(tokens, 0), w.constant([-1]), w.constant([-1]), axis=0)
    ones = w.op("ConstantOfShape", w.op("Shape", wanted), value=helper.make_tensor("v", 7, [1], [1]))
    missing = w.op("Equal", wanted, w.op("Mul", ones, w.constant(-1)))
    first = w.op("Expand", w.weight(1, 1, width), w.op("Where", missing, ones, wanted))
    x = w.op("Add", w.op("Concat", first, tokens, axis=1), w.weight(1, 17, width))
    for _ in range(depth):
        x = w.op("Add", x, w.attention(w.normalised(x, width), width, heads))
        inner = w.gelu(w.linear(w.normalised(x, width), width, 2 * width))
        x = w.op("Add", x, w.linear(inner, 2 * width, width))
    token = w.op("Gather", w.normalised(x, width), w.constant(0), axis=1)
    y = w.op("Gemm", token, w.weight(width, 10), w.weight(10))
    w.nodes[-1].output[0] = "y"
    assert y
    return model(w.nodes, {"x": ["N", 3, 16, 16]}, {"y": ["N", 10]}, w.weights)
