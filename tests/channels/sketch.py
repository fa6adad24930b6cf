"""Sketch: random small graphs with channels, put together operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxdecomp.core.layer import Array
from tests.builders import graphs

SPACE = 6


@dataclass
class Sketch:
    """A graph that grows at its end.

    Attributes:
        rng: Of weights and choices.
        opset: Of the model.
        groups: Whether convolutions in the middle may have groups.
    """

    rng: np.random.Generator
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)

    def add(self, op_type: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        """A node; the name of its first output, behind which others have .1, .2, …"""
        name = f"{op_type.lower()}{len(self.nodes)}"
        names = [name, *(f"{name}.{k}" for k in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=name, **attributes))
        return name

    def floats(self, *shape: int) -> str:
        return self.constant((self.rng.standard_normal(shape) * 0.5 + 0.1).astype(np.float32))

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def constant(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def by_axes(self, op_type: str, x: str, axes: Sequence[int], since: int, **attributes: Any) -> str:
        """A node whose axes are an operand from an opset on."""
        if self.opset >= since:
            return self.add(op_type, [x, self.ints(*axes)], **attributes)
        return self.add(op_type, [x], axes=list(axes), **attributes)

    def model(self, inputs: Mapping[str, graphs.Dims], y: str, shape: graphs.Dims) -> onnx.ModelProto:
        return graphs.model(self.nodes, inputs, {y: shape}, self.weights, opset=self.opset)

    # Layers over [N, C, H, W].

    def conv(self, x: str, c: int, to: int, kernel: int = 1, groups: int = 1, **attributes: Any) -> str:
        weight = self.floats(to, c // groups, kernel, kernel)
        pads = [kernel // 2] * 4
        given = [x, weight, self.floats(to)] if self.pick(True, False) else [x, weight]
        return self.add("Conv", given, group=groups, pads=pads, **attributes)

    def transposed(self, x: str, c: int, to: int, groups: int = 1) -> str:
        weight = self.floats(c, to // groups, 3, 3)
        return self.add("ConvTranspose", [x, weight, self.floats(to)], group=groups, pads=[1, 1, 1, 1])


Step = Callable[[Sketch, str, int], tuple[str, int]]
"""Adds to a graph that ends in so many channels [N, C, 6, 6]; its new end and how many they are."""


def unary(s: Sketch, x: str, c: int) -> tuple[str, int]:
    op_type = s.pick("Relu", "Sigmoid", "Tanh", "Erf", "Elu", "Softplus", "Neg", "Identity", "Exp")
    return s.add(op_type, [x]), c


def silu(s: Sketch, x: str, c: int) -> tuple[str, int]:
    return s.add("Mul", [x, s.add("Sigmoid", [x])]), c


def clip(s: Sketch, x: str, c: int) -> tuple[str, int]:
    return s.add("Clip", [x, s.constant(np.array(-1, np.float32)), s.constant(np.array(1, np.float32))]), c


def by_channel(s: Sketch, x: str, c: int) -> tuple[str, int]:
    shape = s.pick((c, 1, 1), (1, c, 1, 1), (1,), ())
    operands = [x, s.floats(*shape)] if s.pick(True, False) else [s.floats(*shape), x]
    return s.add(s.pick("Add", "Mul", "Sub", "PRelu" if operands[0] == x else "Add"), operands), c


def batch_norm(s: Sketch, x: str, c: int) -> tuple[str, int]:
    variance = s.constant(s.rng.uniform(0.5, 2, c).astype(np.float32))
    return s.add("BatchNormalization", [x, s.floats(c), s.floats(c), s.floats(c), variance]), c


def instance_norm(s: Sketch, x: str, c: int) -> tuple[str, int]:
    return s.add("InstanceNormalization", [x, s.floats(c), s.floats(c)]), c


def group_norm(s: Sketch, x: str, c: int) -> tuple[str, int]:
    if s.opset < 21:
        return unary(s, x, c)
    return s.add("GroupNormalization", [x, s.floats(c), s.floats(c)], num_groups=c // 2), c


def pool(s: Sketch, x: str, c: int) -> tuple[str, int]:
    return s.add(s.pick("MaxPool", "AveragePool"), [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), c


def pad(s: Sketch, x: str, c: int) -> tuple[str, int]:
    padded = s.add("Pad", [x, s.ints(0, 0, 1, 1, 0, 0, 1, 1)], mode=s.pick("constant", "reflect"))
    return s.add("Slice", [padded, s.ints(0, 1), s.ints(SPACE, 7), s.ints(2, 3)]), c


def resize(s: Sketch, x: str, c: int) -> tuple[str, int]:
    scales = s.constant(np.array([1, 1, 2, 2], np.float32))
    roi = "" if s.opset >= 13 else s.floats(0)
    larger = s.add("Resize", [x, roi, scales], mode=s.pick("nearest", "linear"))
    if s.pick(True, False):
        return s.add("Resize", [larger, roi, "" if roi == "" else s.floats(0), s.ints(2, c, SPACE, SPACE)]), c
    return s.add("MaxPool", [larger], kernel_shape=[2, 2], strides=[2, 2]), c


def depthwise(s: Sketch, x: str, c: int) -> tuple[str, int]:
    times = s.pick(1, 1, 2) if c <= 12 else 1
    return s.conv(x, c, c * times, 3, groups=c), c * times


def squeeze_excite(s: Sketch, x: str, c: int) -> tuple[str, int]:
    mean = s.add("GlobalAveragePool", [x])
    if s.pick(True, False):
        mean = s.by_axes("ReduceMean", x, [2, 3], 18, keepdims=1)
    gate = s.conv(s.add("Relu", [s.conv(mean, c, 4)]), 4, c)
    return s.add("Mul", [x, s.add("Sigmoid", [gate])]), c


def residual(s: Sketch, x: str, c: int) -> tuple[str, int]:
    return s.add("Add", [x, s.conv(s.add("Relu", [x]), c, c, 3)]), c


def wider(s: Sketch, x: str, c: int) -> tuple[str, int]:
    """A shortcut with zeros for the further channels."""
    zeros = s.add("Pad", [x, s.ints(0, 2, 0, 0, 0, 2, 0, 0)])
    return s.add("Add", [zeros, s.conv(x, c, c + 4)]), c + 4


def branches(s: Sketch, x: str, c: int) -> tuple[str, int]:
    parts = [s.conv(x, c, 4), x, s.add("Relu", [s.conv(x, c, 3, 3)])]
    return s.add("Concat", parts, axis=1), c + 7


def parts(s: Sketch, x: str, c: int) -> tuple[str, int]:
    first = c // 2
    if s.opset < 13:
        halves = s.add("Split", [x], 2, axis=1, split=[first, c - first])
    elif c % 2 == 0 and s.pick(True, False):
        halves = s.add("Split", [x], 2, axis=1, **({"num_outputs": 2} if s.opset >= 18 else {}))
    else:
        halves = s.add("Split", [x, s.ints(first, c - first)], 2, axis=1)
    return s.add("Concat", [s.add("Tanh", [f"{halves}.1"]), halves], axis=1), c


def gated(s: Sketch, x: str, c: int) -> tuple[str, int]:
    if c % 2 or c < 8:
        return unary(s, x, c)
    low = s.add("Slice", [x, s.ints(0), s.ints(c // 2), s.ints(1)])
    high = s.add("Slice", [x, s.ints(c // 2), s.ints(2**31), s.ints(-3)])
    return s.add("Mul", [low, s.add("Sigmoid", [high])]), c // 2


def picked(s: Sketch, x: str, c: int) -> tuple[str, int]:
    order = s.rng.permutation(c)[: max(4, c - 2)]
    return s.add("Gather", [x, s.ints(*order)], axis=1), len(order)


def last(s: Sketch, x: str, c: int) -> tuple[str, int]:
    turned = s.add("Transpose", [x], perm=[0, 2, 3, 1])
    scaled = s.add("Mul", [turned, s.floats(c)])
    return s.add("Transpose", [scaled], perm=[0, 3, 1, 2]), c


def flat(s: Sketch, x: str, c: int) -> tuple[str, int]:
    merged = s.add("Reshape", [x, s.ints(0, c, s.pick(-1, SPACE * SPACE))])
    inner = s.by_axes("Unsqueeze", merged, [1], 13)
    outer = s.by_axes("Squeeze", s.add("Tanh", [inner]), [1], 13)
    return s.add("Reshape", [outer, s.ints(0, s.pick(c, 0), SPACE, SPACE)]), c


def shuffle(s: Sketch, x: str, c: int) -> tuple[str, int]:
    if c % 2:
        return unary(s, x, c)
    split = s.add("Reshape", [x, s.ints(0, 2, c // 2, SPACE, SPACE)])
    turned = s.add("Transpose", [split], perm=[0, 2, 1, 3, 4])
    return s.add("Reshape", [turned, s.ints(0, c, SPACE, SPACE)]), c


def grouped(s: Sketch, x: str, c: int) -> tuple[str, int]:
    if c % 2:
        return unary(s, x, c)
    return s.conv(x, c, s.pick(8, 12), s.pick(1, 3), groups=2), s.weights[f"w{len(s.weights) - 1}"].shape[0]


def up_grouped(s: Sketch, x: str, c: int) -> tuple[str, int]:
    groups = s.pick(1, 2) if c % 2 == 0 else 1
    return s.transposed(x, c, 8, groups), 8


def deep(s: Sketch, x: str, c: int) -> tuple[str, int]:
    """To space and back, in either order of the channels."""
    if c % 4:
        return unary(s, x, c)
    wide = s.add("DepthToSpace", [x], blocksize=2, mode=s.pick("DCR", "CRD"))
    return s.add("MaxPool", [wide], kernel_shape=[2, 2], strides=[2, 2]), c // 4


def softmax(s: Sketch, x: str, c: int) -> tuple[str, int]:
    return s.add("Softmax", [x], axis=3), c


STEPS: tuple[Step, ...] = (
    unary,
    silu,
    clip,
    by_channel,
    batch_norm,
    instance_norm,
    group_norm,
    pool,
    pad,
    resize,
    depthwise,
    squeeze_excite,
    residual,
    wider,
    branches,
    parts,
    gated,
    picked,
    last,
    flat,
    shuffle,
    grouped,
    up_grouped,
    deep,
    softmax,
)


def end(s: Sketch, x: str, c: int) -> tuple[str, list[int]]:
    """A layer that reads all channels, and the shape of its output."""
    match s.pick("conv", "transposed", "flatten", "pooled", "left"):
        case "conv":
            return s.conv(x, c, 3, s.pick(1, 3)), [2, 3, SPACE, SPACE]
        case "transposed":
            return s.transposed(x, c, 3), [2, 3, SPACE, SPACE]
        case "flatten":
            transposed = s.pick(0, 1)
            size = c * SPACE * SPACE
            weight = s.floats(3, size) if transposed else s.floats(size, 3)
            flattened = s.add("Flatten", [x])
            return s.add("Gemm", [flattened, weight, s.floats(3)], transB=transposed, alpha=0.5), [2, 3]
        case "pooled":
            mean = s.by_axes("ReduceMean", x, [2, 3], 18, keepdims=0)
            return s.add("MatMul", [mean, s.floats(c, 3)]), [2, 3]
    merged = s.add("Reshape", [x, s.ints(2, c, SPACE * SPACE)])
    return s.add("MatMul", [s.floats(3, c), merged]), [2, 3, SPACE * SPACE]
