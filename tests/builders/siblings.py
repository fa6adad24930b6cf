"""Models in which several layers read one activation: hypothesis strategies over their kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from onnxdecomp.core.layer import Array
from tests.builders.cases import Case
from tests.builders.feeds import normal
from tests.builders.graphs import model, value

S = 6
"""Features or channels of the activation."""

LINEAR = ("MatMul", "MatMul + Add", "Gemm", "Gemm transB", "Gemm + C", "left")
CONVOLUTIONS = ("Conv", "Conv + bias", "strided", "auto_pad", "ConvTranspose")
RECURRENT = ("LSTM", "GRU", "MatMul")


@st.composite
def sibling_cases(draw: st.DrawFn) -> Case:
    """Two to four siblings of one family on Relu(x), perhaps through an Identity; every one is an output."""
    family = draw(st.sampled_from(("linear", "convolutions", "recurrent")))
    kinds = {"linear": LINEAR, "convolutions": CONVOLUTIONS, "recurrent": RECURRENT}[family]
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=4))
    if "left" in chosen:
        chosen = ["left"] * len(chosen)
    flat = any(kind.startswith("Gemm") for kind in chosen)
    axes = draw(st.integers(1, 2))
    shape = {
        "linear": (5, S) if flat else (2, S, 5) if "left" in chosen else (2, 5, S),
        "convolutions": (2, S, *(7, 6)[:axes]),
        "recurrent": (5, 2, S),
    }[family]
    nodes, weights = [helper.make_node("Relu", ["x"], ["h"])], dict[str, Array]()
    for index, kind in enumerate(chosen):
        x, t = "h", draw(st.integers(1, 7))
        if draw(st.booleans()):
            x = f"same{index}"
            nodes.append(helper.make_node("Identity", ["h"], [x]))
        nodes += _nodes(kind, f"l{index}", x, t, axes, weights)
    opset = draw(st.sampled_from((11, 13, 17, 21)))
    outputs = [value(f"l{index}.y", None) for index in range(len(chosen))]
    made = model(nodes, [value("x", shape)], outputs, weights, opset=opset, ir_version=7)
    return Case(made, {"x": normal(*shape)})


def _nodes(
    kind: str, name: str, x: str, t: int, axes: int, weights: dict[str, Array]
) -> list[onnx.NodeProto]:
    """The nodes of one sibling from x to name.y; their weights are put in."""

    def weight(what: str, *shape: int) -> str:
        seed = int(name[1:]) + 7 * len(weights)
        weights[f"{name}.{what}"] = normal(*shape, seed=seed) / np.float32(2)
        return f"{name}.{what}"

    y, of = f"{name}.y", {"name": name}
    if kind == "MatMul":
        return [helper.make_node("MatMul", [x, weight("w", S, t)], [y], **of)]
    if kind == "MatMul + Add":
        product = helper.make_node("MatMul", [x, weight("w", S, t)], [f"{name}.p"], **of)
        return [product, helper.make_node("Add", [f"{name}.p", weight("b", t)], [y])]
    if kind == "left":
        return [helper.make_node("MatMul", [weight("w", t, S), x], [y], **of)]
    if kind.startswith("Gemm"):
        turned = kind == "Gemm transB"
        operands = [x, weight("w", t, S) if turned else weight("w", S, t)]
        operands.append(weight("c", *((5, 1) if kind == "Gemm + C" else (t,))))
        return [helper.make_node("Gemm", operands, [y], transB=int(turned), alpha=0.5, beta=2.0, **of)]
    if kind in ("LSTM", "GRU"):
        gates, hidden = {"LSTM": 4, "GRU": 3}[kind], t
        given = [x, weight("w", 1, gates * hidden, S), weight("r", 1, gates * hidden, hidden)]
        return [helper.make_node(kind, given, [y], hidden_size=hidden, **of)]
    kernel = (3, 1)[t % 2]
    sizes = (kernel,) * axes
    if kind == "ConvTranspose":
        return [helper.make_node(kind, [x, weight("w", S, t, *sizes)], [y], strides=[2] * axes, **of)]
    operands = [x, weight("w", t, S, *sizes), *([weight("b", t)] if kind == "Conv + bias" else [])]
    more: dict[str, Any] = {"pads": [kernel // 2] * 2 * axes}
    if kind == "strided":
        more |= {"strides": [2] * axes}
    if kind == "auto_pad":
        more = {"auto_pad": "SAME_UPPER"}
    return [helper.make_node("Conv", operands, [y], **of, **more)]
