"""Hypothesis strategies of one-layer models over the whole space of attributes, and how to run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import assume
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.core.layer import Array

ELEMENT = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class Case:
    """A model with one layer, and an input for it."""

    model: onnx.ModelProto
    feeds: dict[str, Array]

    def __repr__(self) -> str:
        node = self.model.graph.node[0]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        shapes = {k: v.shape for k, v in self.feeds.items()}
        weights = {i.name: tuple(i.dims) for i in self.model.graph.initializer}
        return f"Case({[n.op_type for n in self.model.graph.node]}, {attributes}, {shapes}, {weights})"


def run(model: onnx.ModelProto | ir.Model, feeds: dict[str, Array]) -> list[Array]:
    """The outputs in ONNX Runtime, quantized weights as the numbers that they stand for."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # Else a MatMul after a DequantizeLinear rounds its activation to 8 bits.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def make(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    feeds: dict[str, Array],
    dynamic: bool,
    dtype: str = "float32",
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
) -> Case:
    """A model of these nodes from the inputs `feeds` to the outputs; floating-point arrays become `dtype`."""
    typed = {k: _as(v, dtype) for k, v in feeds.items()}

    def dims(name: str, array: Array) -> list[Any]:
        return [f"{name}_{axis}" for axis in range(array.ndim)] if dynamic else list(array.shape)

    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), dims(k, v))
        for k, v in typed.items()
    ]
    results = [helper.make_tensor_value_info(name, ELEMENT[dtype], None) for name in outputs]
    initializers = [numpy_helper.from_array(_as(v, dtype), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, results, initializers)
    domains = {"": opset, **{node.domain: 1 for node in nodes if node.domain}}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return Case(model, typed)


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
    return make([node], weights, {"x": x}, draw(st.booleans()), dtype)


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
    return make([node], weights, feeds, draw(st.booleans()))


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
    return make(nodes, weights, {"x": x}, draw(st.booleans()), dtype)
