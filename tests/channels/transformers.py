"""Attention and feed-forward blocks as exporters write them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from tests.builders import graphs
from tests.channels.sketch import Sketch

WIDTH, HEADS, SIZE = 12, 2, 6
IN_ONE_NODE = ("one node", "one node with bias", "one node of 3 axes", "one node of 4 axes")
FORMS = ("plain", "fused", "split", "rotary", "grouped", "crossed", "einsum", *IN_ONE_NODE)


class _Tokens(Sketch):
    """Layers over [N, T, D]."""

    def linear(self, x: str, d: int, to: int, name: str) -> str:
        weight, bias = self.floats(d, to), self.floats(to)
        self.nodes.append(helper.make_node("MatMul", [x, weight], [f"{name}.product"], name=name))
        return self.add("Add", [bias, f"{name}.product"])

    def target(self, x: str, *sizes: int) -> str:
        """A shape of two sizes of x and these, as numbers or computed."""
        if not self.free:
            return self.ints(0, 0, *sizes)
        shape = self.add("Shape", [x])
        parts = [
            self.add("Unsqueeze", [self.add("Gather", [shape, self.constant(np.array(k))]), self.ints(0)])
            for k in (0, 1)
        ]
        return self.add("Concat", [*parts, self.ints(*sizes)], axis=0)

    free = False

    def heads(self, x: str, source: str, count: int = HEADS, *, turned: bool = False) -> str:
        split = self.add("Reshape", [x, self.target(source, -1 if self.free else count, SIZE)])
        return self.add("Transpose", [split], perm=[0, 2, 3, 1] if turned else [0, 2, 1, 3])

    def rotated(self, x: str) -> str:
        half = SIZE // 2
        low = self.add("Slice", [x, self.ints(0), self.ints(half), self.ints(3)])
        high = self.add("Slice", [x, self.ints(half), self.ints(SIZE), self.ints(3)])
        other = self.add("Concat", [self.add("Neg", [high]), low], axis=3)
        turned = self.add("Mul", [other, self.floats(5, SIZE)])
        return self.add("Add", [self.add("Mul", [x, self.floats(5, SIZE)]), turned])


def attention(form: str, free: bool) -> onnx.ModelProto:
    """A block of attention over x [2, 5, 12], its sizes free or not."""
    s = _Tokens(np.random.default_rng(0), 23 if form in IN_ONE_NODE[2:] else 17)
    s.free = free
    x = s.add("Sigmoid", ["x"])
    if form in IN_ONE_NODE:
        return _in_one_node(s, x, form)
    if form == "fused":
        packed = s.linear(x, WIDTH, 3 * WIDTH, "qkv")
        whole = s.add("Reshape", [packed, s.target(x, 3, HEADS, SIZE)])
        moved = s.add("Transpose", [whole], perm=[2, 0, 3, 1, 4])
        q, k, v = (s.add("Gather", [moved, s.constant(np.array(at))], axis=0) for at in range(3))
        k = s.add("Transpose", [k], perm=[0, 1, 3, 2])
    else:
        if form == "split":
            packed = s.add("Split", [s.linear(x, WIDTH, 3 * WIDTH, "qkv")], 3, axis=-1)
            names = [packed, f"{packed}.1", f"{packed}.2"]
        else:
            narrow = SIZE if form == "grouped" else WIDTH
            widths = {"q": WIDTH, "k": narrow, "v": narrow}
            names = [s.linear(x, WIDTH, to, name) for name, to in widths.items()]
        others = 1 if form == "grouped" else HEADS
        q, v = s.heads(names[0], x), s.heads(names[2], x, others)
        if form == "rotary":
            q, k = s.rotated(q), s.rotated(s.heads(names[1], x))
            k = s.add("Transpose", [k], perm=[0, 1, 3, 2])
        else:
            k = s.heads(names[1], x, others, turned=True)
    if form == "einsum":
        k = s.add("Transpose", [k], perm=[0, 1, 3, 2])
        scores = s.add("Einsum", [q, k], equation="bhts,bhus->bhtu")
    else:
        scores = s.add("MatMul", [q, k])
    scaled = s.add("Div", [scores, s.constant(np.array(2.4, np.float32))])
    weights = s.add("Softmax", [s.add("Add", [scaled, s.floats(5, 5)])], axis=-1)
    if form == "einsum":
        mixed = s.add("Einsum", [weights, v], equation="bhtu,bhus->bhts")
    else:
        mixed = s.add("MatMul", [weights, v])
    back = s.add("Transpose", [mixed], perm=[0, 2, 1, 3])
    merged = s.add("Reshape", [back, s.target(x, -1)])
    y = s.linear(merged, WIDTH, WIDTH, "o")
    shape: graphs.Dims = ["N", "T", WIDTH] if free else [2, 5, WIDTH]
    return s.model({"x": shape}, y, shape)


def _in_one_node(s: _Tokens, x: str, form: str) -> onnx.ModelProto:
    """Attention of queries, keys and values by ONNX Runtime's operator or, from opset 23 on, ONNX's own."""
    operands = [s.linear(x, WIDTH, WIDTH, name) for name in "qkv"]
    if form in IN_ONE_NODE[:2]:
        operands += [s.floats(3 * WIDTH)] if form.endswith("bias") else []
        y = s.add("MultiHeadAttention", operands, domain="com.microsoft", num_heads=HEADS)
    elif form == IN_ONE_NODE[2]:
        y = s.add("Attention", operands, q_num_heads=HEADS, kv_num_heads=HEADS, is_causal=1)
    else:
        y = s.add("Attention", [s.heads(operand, x) for operand in operands], scale=0.3)
        y = s.add("Reshape", [s.add("Transpose", [y], perm=[0, 2, 1, 3]), s.target(x, -1)])
    shape: graphs.Dims = ["N", "T", WIDTH] if s.free else [2, 5, WIDTH]
    return s.model({"x": shape}, s.linear(y, WIDTH, WIDTH, "o"), shape)


def feed_forward(form: str) -> onnx.ModelProto:
    """A feed-forward block over x [2, 5, 12] of 16 hidden units."""
    s = _Tokens(np.random.default_rng(0), 20)
    if form == "swiglu":
        gate, up = s.linear("x", WIDTH, 16, "gate"), s.linear("x", WIDTH, 16, "up")
        hidden = s.add("Mul", [s.add("Mul", [gate, s.add("Sigmoid", [gate])]), up])
    elif form == "fused swiglu":
        both = s.add("Split", [s.linear("x", WIDTH, 32, "up")], 2, axis=-1, num_outputs=2)
        hidden = s.add("Mul", [s.add("Mul", [both, s.add("Sigmoid", [both])]), f"{both}.1"])
    elif form == "gelu":
        hidden = s.add("Gelu", [s.linear("x", WIDTH, 16, "up")])
    else:
        up = s.linear("x", WIDTH, 16, "up")
        erf = s.add("Erf", [s.add("Div", [up, s.constant(np.array(2**0.5, np.float32))])])
        half = s.add("Mul", [up, s.add("Add", [erf, s.constant(np.array([1], np.float32))])])
        hidden = s.add("Mul", [half, s.constant(np.array(0.5, np.float32))])
    return s.model({"x": [2, 5, WIDTH]}, s.linear(hidden, 16, WIDTH, "down"), [2, 5, WIDTH])
