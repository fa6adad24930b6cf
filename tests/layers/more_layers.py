"""Hypothesis strategies of one-layer models beyond convolutions and products of matrices."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from onnxdecomp.core.layer import Array
from tests.layers.layers import ELEMENT, Case, make, run

MICROSOFT = "com.microsoft"

ACTIVATIONS: dict[str, tuple[float | None, float | None]] = {
    "Sigmoid": (None, None),
    "Tanh": (None, None),
    "Relu": (None, None),
    "Softsign": (None, None),
    "LeakyRelu": (0.1, None),
    "Elu": (0.7, None),
    "HardSigmoid": (0.3, 0.4),
    "ScaledTanh": (0.8, 0.5),
}
"""Activations of recurrent operators, with their alpha and beta."""

COUNTS = {"RNN": (1, 1), "GRU": (3, 2), "LSTM": (4, 3)}
"""Gates and activations of each operator, for one direction."""

FUSED: dict[str, dict[str, float]] = {
    "Relu": {},
    "Tanh": {},
    "Sigmoid": {},
    "LeakyRelu": {"alpha": 0.2},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
}
"""Activations that both FusedConv and FusedGemm take."""


@st.composite
def recurrent(draw: st.DrawFn, op_type: str, dtype: str = "float32", layout: int = 0) -> Case:
    """An LSTM, GRU or RNN with any of its inputs, outputs and attributes."""
    gates, functions = COUNTS[op_type]
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    d = 2 if direction == "bidirectional" else 1
    steps, batch = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    features, hidden = draw(st.integers(2, 9)), draw(st.integers(1, 5))
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if layout:
        attributes["layout"] = layout
    elif draw(st.booleans()):
        chosen = [draw(st.sampled_from(sorted(ACTIVATIONS))) for _ in range(functions * d)]
        attributes["activations"] = chosen
        for which, name in enumerate(("activation_alpha", "activation_beta")):
            values = [v for v in (ACTIVATIONS[function][which] for function in chosen) if v is not None]
            if values:
                attributes[name] = values
    if not layout and draw(st.booleans()):
        attributes["clip"] = 1.5
    if op_type == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if op_type == "LSTM" and not layout:
        attributes["input_forget"] = draw(st.integers(0, 1))
    scale = 1 / np.sqrt(hidden)
    weights: dict[str, Array] = {
        "w": rng.standard_normal((d, gates * hidden, features)) / np.sqrt(features),
    }
    feeds: dict[str, Array] = {"x": rng.standard_normal((steps, batch, features))}
    (feeds if draw(st.booleans()) else weights)["r"] = (
        rng.standard_normal((d, gates * hidden, hidden)) * scale
    )
    state = rng.standard_normal((d, batch, hidden))
    if layout:
        feeds["x"], state = feeds["x"].swapaxes(0, 1), state.swapaxes(0, 1)
    inputs = ["x", "w", "r"]

    def given(name: str, array: Array) -> None:
        if draw(st.booleans()):
            inputs.append("")
            return
        inputs.append(name)
        (feeds if draw(st.booleans()) else weights)[name] = array

    given("b", rng.standard_normal((d, 2 * gates * hidden)))
    given("lens", rng.integers(1, steps + 1, batch).astype(np.int32))
    given("h0", state)
    if op_type == "LSTM":
        given("c0", state[::-1].copy())
        given("p", rng.standard_normal((d, 3 * hidden)))
    while not inputs[-1]:
        inputs.pop()
    names = ["y", "yh", "yc"] if op_type == "LSTM" else ["y", "yh"]
    kept = [name if draw(st.booleans()) else "" for name in names]
    if not any(kept):
        kept[-1] = names[-1]
    while not kept[-1]:
        kept.pop()
    node = helper.make_node(op_type, inputs, kept, name="layer", **attributes)
    return make([node], weights, feeds, draw(st.booleans()), dtype, outputs=[name for name in kept if name])


@st.composite
def embeddings(draw: st.DrawFn, dtype: str = "float32") -> Case:
    """A Gather of rows of a table."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows, columns = draw(st.sampled_from([(256, 16), (128, 40), (40, 128)]))
    shape = draw(st.lists(st.integers(1, 3), max_size=3))
    kind = draw(st.sampled_from([np.int32, np.int64]))
    ids = np.asarray(rng.integers(-rows, rows, shape)).astype(kind)
    axis: dict[str, Any] = draw(st.sampled_from([{}, {"axis": 0}, {"axis": -2}]))
    node = helper.make_node("Gather", ["w", "ids"], ["y"], name="layer", **axis)
    return make([node], {"w": rng.standard_normal((rows, columns))}, {"ids": ids}, draw(st.booleans()), dtype)


@st.composite
def einsums(draw: st.DrawFn, dtype: str = "float32") -> Case:
    """A product of matrices written as an Einsum: any order of any number of indices of each kind."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    letters = list(draw(st.permutations(string.ascii_letters[:12])))

    def take(low: int, high: int) -> list[str]:
        return [letters.pop() for _ in range(draw(st.integers(low, high)))]

    contracted, outputs = take(1, 2), take(1, 2)
    lead = take(0, 2)
    stack = take(0, 1) if lead else []
    size = {i: draw(st.integers(2, 4)) for i in contracted + outputs + stack}
    size |= {i: draw(st.integers(1, 3)) for i in lead}
    a = list(draw(st.permutations(lead + stack + contracted)))
    c = list(draw(st.permutations(stack + outputs + contracted)))
    out = list(draw(st.permutations(lead + stack + outputs)))
    x = rng.standard_normal([size[i] for i in a])
    w = rng.standard_normal([size[i] for i in c])
    left, right, result = "".join(a), "".join(c), "".join(out)
    if draw(st.booleans()):  # an ellipsis, of any length
        at = draw(st.integers(0, len(left)))
        left, result = f"{left[:at]}...{left[at:]}", f"...{result}"
        for _ in range(draw(st.integers(0, 2))):
            x = np.repeat(np.expand_dims(x, at), draw(st.integers(1, 2)), at)
    order = [left, right] if draw(st.booleans()) else [right, left]
    arrow = "" if not stack and sorted(result) == list(result) and draw(st.booleans()) else f"->{result}"
    equation = ",".join(order) + arrow
    if draw(st.booleans()):
        equation = equation.replace(",", " , ")
    names = ["x", "w"] if order[0] == left else ["w", "x"]
    node = helper.make_node("Einsum", names, ["y"], name="layer", equation=equation)
    return make([node], {"w": w}, {"x": x}, draw(st.booleans()), dtype)


@st.composite
def fused_matmuls(draw: st.DrawFn) -> Case:
    """A FusedMatMul: either operand transposed in either way, an alpha, the constant on either side."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    s, t, rows = (draw(st.integers(low, 6)) for low in (2, 2, 1))
    rotate = [draw(st.booleans()), draw(st.booleans())]
    trans = [draw(st.booleans()), draw(st.booleans())]
    # ONNX Runtime wants as many axes of both operands where it moves the first axis of one.
    lead = tuple(draw(st.lists(st.integers(1, 3), min_size=1 if any(rotate) else 0, max_size=2)))
    stacked = any(rotate) or draw(st.booleans())
    constant = draw(st.integers(0, 1))
    operands = [
        rng.standard_normal((*(lead if stacked or constant != 0 else ()), rows if constant else t, s)),
        rng.standard_normal((*(lead if stacked or constant != 1 else ()), s, t if constant else rows)),
    ]
    for k in range(2):
        if trans[k]:
            operands[k] = operands[k].swapaxes(-1, -2)
        if rotate[k]:
            operands[k] = np.moveaxis(operands[k], -2, 0)
    attributes: dict[str, Any] = {"alpha": draw(st.sampled_from([1.0, 0.25]))}
    for side, turned, moved in zip("AB", trans, rotate, strict=True):
        attributes |= {f"trans{side}": int(turned), f"transBatch{side}": int(moved)}
    names = ["w", "x"] if constant == 0 else ["x", "w"]
    node = helper.make_node("FusedMatMul", names, ["y"], name="layer", domain=MICROSOFT, **attributes)
    feeds = {"x": np.ascontiguousarray(operands[1 - constant])}
    return make([node], {"w": np.ascontiguousarray(operands[constant])}, feeds, draw(st.booleans()))


@st.composite
def activations(draw: st.DrawFn, as_list: bool) -> dict[str, Any]:
    """The attributes of a fused activation, its parameters as a list or by name."""
    name = draw(st.sampled_from(sorted(FUSED)))
    parameters = FUSED[name]
    if as_list:
        listed = {"activation_params": list(parameters.values())} if parameters else {}
        return {"activation": name, **listed}
    return {"activation": name, **{f"activation_{key}": value for key, value in parameters.items()}}


@st.composite
def fused(draw: st.DrawFn, plain: st.SearchStrategy[Case]) -> Case:
    """A FusedConv or FusedGemm made of a layer of one Conv or Gemm."""
    case = draw(plain)
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    (node,) = model.graph.node
    node.op_type, node.domain = f"Fused{node.op_type}", MICROSOFT
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    convolution = node.op_type == "FusedConv"
    chosen = draw(activations(convolution))
    node.attribute.extend(helper.make_attribute(name, value) for name, value in chosen.items())
    feeds = dict(case.feeds)
    if convolution and draw(st.booleans()):
        (y,) = run(case.model, case.feeds)
        while len(node.input) < 3:
            node.input.append("")
        node.input.append("z")
        feeds["z"] = np.random.default_rng(y.size).standard_normal(y.shape).astype(y.dtype)
        model.graph.input.append(helper.make_tensor_value_info("z", ELEMENT["float32"], y.shape))
    return Case(model, feeds)
