"""Models with one layer and an input: hypothesis strategies over the whole space of operators' attributes."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import assume
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxdecomp.core.layer import Array
from tests.builders.graphs import model, value
from tests.builders.running import run

ELEMENT = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}

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


@dataclass(frozen=True, eq=False)
class Case:
    """A model, mostly of one layer, and an input for it."""

    model: onnx.ModelProto
    feeds: dict[str, Array]

    def __repr__(self) -> str:
        node = self.model.graph.node[0]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        shapes = {k: v.shape for k, v in self.feeds.items()}
        weights = {i.name: tuple(i.dims) for i in self.model.graph.initializer}
        return f"Case({[n.op_type for n in self.model.graph.node]}, {attributes}, {shapes}, {weights})"


def case_of(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    feeds: Mapping[str, Array],
    dynamic: bool,
    dtype: str = "float32",
    *,
    batch: str | None = None,
    outputs: Sequence[str] = ("y",),
    **header: Any,
) -> Case:
    """A model of these nodes from the inputs `feeds` to the outputs, and the feeds; see `graphs.model`.

    Args:
        nodes, weights, feeds, outputs: What it is made of.
        dynamic: Whether every size of an input is free.
        batch: A name for the first axis of every input: it alone is free.
        dtype: What floating-point arrays become.
        header: The opset and the like.
    """
    typed = {name: _as(array, dtype) for name, array in feeds.items()}

    def dims(name: str, array: Array) -> list[int | str | None]:
        free = array.ndim if dynamic else 0
        fixed = [batch, *array.shape[1:]] if batch else array.shape[free:]
        return [*(f"{name}_{axis}" for axis in range(free)), *fixed]

    inputs = [
        value(name, dims(name, array), helper.np_dtype_to_tensor_dtype(array.dtype))
        for name, array in typed.items()
    ]
    stored = {name: _as(array, dtype) for name, array in weights.items()}
    unknown = [value(name, None, ELEMENT[dtype]) for name in outputs]
    return Case(model(nodes, inputs, unknown, stored, **header), typed)


def _as(array: Array, dtype: str) -> Array:
    return array.astype(dtype) if array.dtype.kind == "f" else array


@st.composite
def convolutions(draw: st.DrawFn, transposed: bool = False, dtype: str = "float32") -> Case:
    """A Conv or ConvTranspose that ONNX Runtime accepts."""
    d = draw(st.integers(1, 3))
    small = st.integers(1, 3)
    kernel = [draw(st.integers(1, 5 if d < 3 else 3)) for _ in range(d)]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    ins, outs = draw(st.integers(2, 6)), draw(st.integers(1, 6))
    attributes: dict[str, Any] = {"group": groups}
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    strides = [draw(small) for _ in range(d)]
    attributes["strides"] = strides
    padding = draw(st.sampled_from(["pads", "pads", "none", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    dilations = [draw(small) if not padding.startswith("SAME") else 1 for _ in range(d)]
    attributes["dilations"] = dilations
    pads = [0] * (2 * d)
    if padding == "pads":
        pads = [draw(st.integers(0, 2)) for _ in range(2 * d)]
        attributes["pads"] = pads
    elif padding != "none":
        attributes["auto_pad"] = padding
    spatial = []
    for k, dilation, stride in zip(kernel, dilations, strides, strict=True):
        # large enough for the whole kernel, whatever the padding is
        spatial.append(dilation * (k - 1) + 1 + draw(st.integers(0, 2 * stride)))
    if transposed:
        extra = [draw(st.integers(0, stride - 1)) for stride in strides]
        if padding in ("pads", "none") and draw(st.booleans()):
            attributes["output_padding"] = extra
        reached = []
        for axis in range(d):
            size = strides[axis] * (spatial[axis] - 1) + dilations[axis] * (kernel[axis] - 1) + 1
            assume(size - pads[axis] - pads[axis + d] >= 1)
            reached.append((max(1, size - 5), size + strides[axis] - 1))
        if draw(st.booleans()):
            attributes["output_shape"] = [draw(st.integers(*sizes)) for sizes in reached]
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = (ins * groups, outs, *kernel) if transposed else (outs * groups, ins, *kernel)
    weights = {"w": rng.standard_normal(shape)}
    if draw(st.booleans()):
        weights["b"] = rng.standard_normal(outs * groups)
    x = rng.standard_normal((draw(small), ins * groups, *spatial))
    node = helper.make_node(
        "ConvTranspose" if transposed else "Conv", ["x", *weights], ["y"], name="layer", **attributes
    )
    return case_of([node], weights, {"x": x}, draw(st.booleans()), dtype)


@st.composite
def gemms(draw: st.DrawFn) -> Case:
    """A Gemm with its weight on either side and any C."""
    m, k, n = draw(st.integers(1, 6)), draw(st.integers(2, 12)), draw(st.integers(2, 12))
    trans_a, trans_b = draw(st.integers(0, 1)), draw(st.integers(0, 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    left = draw(st.booleans())
    if left:
        m, n = n, m
    a = rng.standard_normal((k, m) if trans_a else (m, k))
    b = rng.standard_normal((n, k) if trans_b else (k, n))
    weights, feeds = ({"a": a}, {"b": b}) if left else ({"b": b}, {"a": a})
    attributes: dict[str, Any] = {"transA": trans_a, "transB": trans_b}
    if draw(st.booleans()):
        attributes["alpha"] = draw(st.sampled_from([0.5, 2.0]))
        attributes["beta"] = draw(st.sampled_from([0.0, 0.25, 3.0]))
    inputs = ["a", "b"]
    form = draw(st.sampled_from(["none", "n", "1n", "scalar", "m1", "mn", "11"]))
    shapes = {"n": (n,), "1n": (1, n), "scalar": (), "m1": (m, 1), "mn": (m, n), "11": (1, 1)}
    if form != "none":
        c = np.asarray(rng.standard_normal(shapes[form]))
        inputs.append("c")
        (feeds if draw(st.booleans()) else weights)["c"] = c
    node = helper.make_node("Gemm", inputs, ["y"], name="layer", **attributes)
    return case_of([node], weights, feeds, draw(st.booleans()))


@st.composite
def matmuls(draw: st.DrawFn, dtype: str = "float32") -> Case:
    """A MatMul, batched or not, its constant on either side, with or without a bias after it."""
    k, n = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    lead = draw(st.lists(st.integers(1, 3), min_size=0, max_size=2))
    rows = draw(st.integers(1, 5))
    stack = draw(st.sampled_from(["none", "none", "one", "stack"]))
    prefix = {"none": (), "one": (1,), "stack": tuple(lead[-1:])}[stack]
    left = draw(st.booleans())
    x = rng.standard_normal((*lead, k, rows) if left else (*lead, rows, k))
    w = rng.standard_normal((*prefix, n, k) if left else (*prefix, k, n))
    weights = {"w": w}
    nodes = [helper.make_node("MatMul", ["w", "x"] if left else ["x", "w"], ["h"], name="layer")]
    form = draw(st.sampled_from(["none", "n", "1n", "scalar", "full"]))
    if form != "none":
        last = rows if left else n
        shape = {"n": (last,), "1n": (1, last), "scalar": (), "full": (n if left else rows, last)}[form]
        weights["c"] = np.asarray(rng.standard_normal(shape))
        order = ["h", "c"] if draw(st.booleans()) else ["c", "h"]
        nodes.append(helper.make_node("Add", order, ["y"], name="bias"))
    else:
        nodes[0].output[0] = "y"
    return case_of(nodes, weights, {"x": x}, draw(st.booleans()), dtype)


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
    return case_of(
        [node], weights, feeds, draw(st.booleans()), dtype, outputs=[name for name in kept if name]
    )


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
    return case_of(
        [node], {"w": rng.standard_normal((rows, columns))}, {"ids": ids}, draw(st.booleans()), dtype
    )


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
    return case_of([node], {"w": w}, {"x": x}, draw(st.booleans()), dtype)


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
    return case_of([node], {"w": np.ascontiguousarray(operands[constant])}, feeds, draw(st.booleans()))


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
    drawn = draw(plain)
    proto = onnx.ModelProto()
    proto.CopyFrom(drawn.model)
    (node,) = proto.graph.node
    node.op_type, node.domain = f"Fused{node.op_type}", MICROSOFT
    proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    convolution = node.op_type == "FusedConv"
    chosen = draw(activations(convolution))
    node.attribute.extend(helper.make_attribute(name, value) for name, value in chosen.items())
    feeds = dict(drawn.feeds)
    if convolution and draw(st.booleans()):
        (y,) = run(drawn.model, drawn.feeds)
        while len(node.input) < 3:
            node.input.append("")
        node.input.append("z")
        feeds["z"] = np.random.default_rng(y.size).standard_normal(y.shape).astype(y.dtype)
        proto.graph.input.append(value("z", y.shape))
    return Case(proto, feeds)
