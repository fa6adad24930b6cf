"""The lowering check: every rewritten layer, run alone in ONNX Runtime, does what its chain says.

It separates two kinds of difference. What a low rank loses is a choice and shows in the verification of the
whole model; what the *nodes* differ from the chain's own weight by is a defect, whatever the ranks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxdecomp.chain import WEIGHTED, Chain
from onnxdecomp.errors import ModelError
from onnxdecomp.layer import Array, ConvSpec, Layer
from onnxdecomp.sites.base import Site
from onnxdecomp.sites.conv import onnx_transposed
from onnxdecomp.sites.rewrite import Rewritten

TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}
"""Largest relative L2 difference per element type; the half types round after every step of a chain."""

_MOST_ROWS = 8
_MOST_SPATIAL = 16


@dataclass(frozen=True)
class LoweringCheck:
    """The check of one layer.

    Attributes:
        layer, graph: Which.
        rel_error: ||nodes(x) - dense(x)|| / ||dense(x)|| for seeded random x; None where it could not run.
        tolerance: What it may be at most.
        reason: Why it could not run: an element type that no CPU kernel takes, say.
    """

    layer: str
    graph: str
    rel_error: float | None
    tolerance: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.rel_error is None or self.rel_error <= self.tolerance


def check_lowering(
    rewritten: Sequence[Rewritten], *, opset: int, ir_version: int, seed: int = 0
) -> tuple[LoweringCheck, ...]:
    """Check every rewritten layer on the CPU provider."""
    return tuple(_check(r, opset, ir_version, seed) for r in rewritten)


def _check(rewritten: Rewritten, opset: int, ir_version: int, seed: int) -> LoweringCheck:
    layer = rewritten.site.layer
    tolerance = TOLERANCE[layer.dtype]
    rng = np.random.default_rng(seed)
    feeds = _feeds(rewritten, rng)
    try:
        actual = _run(_alone(rewritten, feeds, opset, ir_version), feeds)
    except ModelError as error:
        if layer.dtype == "float32":
            raise ModelError(
                f"{layer.name}: its rewritten nodes do not run ({error}); this is a bug in onnxdecomp"
            ) from error
        return LoweringCheck(layer.name, layer.graph, None, tolerance, str(error))
    expected = _reference(rewritten, feeds, opset, ir_version)
    norm = float(np.linalg.norm(expected))
    difference = float(np.linalg.norm(np.asarray(actual, np.float64) - expected))
    error_ = difference / norm if norm else difference
    return LoweringCheck(layer.name, layer.graph, error_, tolerance)


def _feeds(rewritten: Rewritten, rng: np.random.Generator) -> dict[str, Array]:
    site = rewritten.site
    dtype = np.dtype(ir.DataType.BFLOAT16.numpy() if site.layer.dtype == "bfloat16" else site.layer.dtype)
    shape = _small_shape(site)
    assert site.x.name is not None
    feeds: dict[str, Array] = {site.x.name: rng.standard_normal(shape).astype(dtype)}
    addend = site.linear.addend if site.linear is not None else None
    if addend is not None and addend.name is not None:
        rows = _features_last(np.empty(shape), site).shape[:-1]
        wide = np.empty((*rows, site.layer.outputs))
        assert site.linear is not None
        full = np.swapaxes(wide, -1, -2).shape if site.linear.left else wide.shape
        feeds[addend.name] = np.asarray(rng.standard_normal(full)).astype(dtype)
    return feeds


def _small_shape(site: Site) -> tuple[int, ...]:
    """A shape that the site's own activation could have, small enough to be quick."""
    layer = site.layer
    shape = list(layer.assumed_input_shape(batch=2))
    if layer.conv is not None:
        spec = layer.conv
        shape[0] = min(shape[0], 2)
        for axis, kernel in enumerate(layer.kernel):
            span = spec.dilations[axis] * (kernel - 1) + 1
            at_least = span + 2 * spec.strides[axis]
            shape[2 + axis] = max(min(shape[2 + axis], _MOST_SPATIAL), at_least)
        return tuple(shape)
    stack = layer.weight.ndim - 2
    for axis in range(len(shape) - 1):
        if axis < len(shape) - 2 - stack or axis == len(shape) - 2:
            shape[axis] = min(shape[axis], _MOST_ROWS)
    for axis in range(stack):  # a stack of matrices fixes these
        position = len(shape) - 2 - stack + axis
        if position >= 0:
            shape[position] = int(layer.weight.shape[axis])
    form = site.linear
    assert form is not None
    if form.left != form.swapped:
        shape[-1], shape[-2] = shape[-2], shape[-1]
    return tuple(shape)


def _features_last(x: Array, site: Site) -> Array:
    form = site.linear
    assert form is not None
    return x.swapaxes(-1, -2) if form.left != form.swapped else x


def _alone(rewritten: Rewritten, feeds: dict[str, Array], opset: int, ir_version: int) -> ir.Model:
    """A model of the layer's new nodes only, with their constants and the fed values as inputs."""
    mapped: dict[int, ir.Value] = {}
    inputs = []
    initializers = []
    for source in (rewritten.site.x, rewritten.site.linear.addend if rewritten.site.linear else None):
        if source is not None and id(source) not in mapped:
            assert source.name is not None
            value = _input(source.name, feeds[source.name])
            mapped[id(source)] = value
            inputs.append(value)
    nodes = []
    for node in rewritten.nodes:
        for operand in node.inputs:
            if operand is not None and id(operand) not in mapped:
                tensor = ir.convenience.get_const_tensor(operand) or _resolved(operand)
                constant = ir.Value(
                    name=operand.name,
                    const_value=tensor,
                    type=ir.TensorType(tensor.dtype),
                    shape=ir.Shape(list(tensor.shape)),  # type: ignore[arg-type]
                )
                mapped[id(operand)] = constant
                initializers.append(constant)
        copy = ir.node(
            node.op_type,
            [None if v is None else mapped[id(v)] for v in node.inputs],
            attributes={name: attr.value for name, attr in node.attributes.items()},
            name=node.name,
        )
        out = node.outputs[0]
        copy.outputs[0].name = out.name
        mapped[id(out)] = copy.outputs[0]
        nodes.append(copy)
    out = nodes[-1].outputs[0]
    out.type = ir.TensorType(inputs[0].dtype or ir.DataType.FLOAT)
    return _model(inputs, [out], nodes, initializers, opset, ir_version)


def _resolved(value: ir.Value) -> ir.TensorProtocol:
    """A constant bias that stands behind other nodes."""
    from onnxdecomp.graph.constants import Constant, resolve

    constant = resolve(value, ir_version=3)
    assert isinstance(constant, Constant)
    return ir.tensor(constant.array)


def _model(
    inputs: list[ir.Value],
    outputs: list[ir.Value],
    nodes: list[ir.Node],
    initializers: list[ir.Value],
    opset: int,
    ir_version: int,
) -> ir.Model:
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=initializers, opset_imports={"": opset}, name="layer"
    )
    return ir.Model(graph, ir_version=max(ir_version, 4))


def _run(model: ir.Model, feeds: dict[str, Array]) -> Array:
    from onnxdecomp.runtime.session import open_session, run

    session = open_session(ir.to_proto(model).SerializeToString(), low_memory=True)
    return run(session, feeds)[0]


def _reference(rewritten: Rewritten, feeds: dict[str, Array], opset: int, ir_version: int) -> Array:
    """What the chain's dense weight gives, with the factors rounded as they are stored."""
    site, layer = rewritten.site, rewritten.site.layer
    chain = _rounded(rewritten.chain, layer.dtype)
    assert site.x.name is not None
    x = feeds[site.x.name]
    if layer.conv is not None:
        return _dense_conv(chain, layer, layer.conv, x.astype(np.float32), opset, ir_version)
    assert site.linear is not None
    features = _features_last(x, site).astype(np.float64)
    y: Any = 0.0
    start = 0
    for block in chain.dense_blocks():
        width = block.shape[-1]
        y = y + features[..., start : start + width] @ block.swapaxes(-1, -2).astype(np.float64)
        start += width
    if chain.bias is not None:
        y = y + chain.bias
    if site.linear.left:
        y = np.swapaxes(y, -1, -2)
    if site.linear.addend is not None:
        assert site.linear.addend.name is not None
        y = y + site.linear.scale * feeds[site.linear.addend.name].astype(np.float64)
    return np.asarray(y)


def _dense_conv(chain: Chain, layer: Layer, spec: ConvSpec, x: Array, opset: int, ir_version: int) -> Array:
    dense = chain.dense().astype(np.float32)
    weight = onnx_transposed(dense, spec.groups) if spec.transposed else dense
    values = [_input("x", x), _initializer("w", weight)]
    if chain.bias is not None:
        values.append(_initializer("b", chain.bias.astype(np.float32)))
    attributes: dict[str, Any] = {
        "strides": list(spec.strides),
        "dilations": list(spec.dilations),
        "group": spec.groups,
    }
    attributes |= {"auto_pad": spec.pads} if isinstance(spec.pads, str) else {"pads": list(spec.pads)}
    if spec.output_padding:
        attributes["output_padding"] = list(spec.output_padding)
    node = ir.node(layer.op_type, values, attributes=attributes, name="dense")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model = _model(values[:1], list(node.outputs), [node], values[1:], opset, ir_version)
    return _run(model, {"x": x}).astype(np.float64)


def _rounded(chain: Chain, dtype: str) -> Chain:
    """The chain with its factors as the model stores them."""
    if dtype in ("float32", "float64"):
        return chain
    half = np.dtype(ir.DataType.BFLOAT16.numpy() if dtype == "bfloat16" else dtype)
    steps = tuple(
        replace(s, weight=s.weight.astype(half).astype(np.float32)) if isinstance(s, WEIGHTED) else s
        for s in chain.steps
    )
    return replace(chain, steps=steps)


def _input(name: str, array: Array) -> ir.Value:
    return ir.Value(
        name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape)
    )


def _initializer(name: str, array: Array) -> ir.Value:
    value = _input(name, array)
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
    return value
