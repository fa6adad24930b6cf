"""The lowering check: every rewritten layer, run alone in ONNX Runtime, does what its chain says.

It separates two kinds of difference. What a low rank loses is a choice and shows in the verification of the
whole model; what the *nodes* differ from the chain's own weight by is a defect, whatever the ranks are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.chain import WEIGHTED, Chain
from onnxdecomp.errors import ModelError
from onnxdecomp.layer import Array, ConvSpec, Layer
from onnxdecomp.sites.base import Site, as_attributes
from onnxdecomp.sites.conv import onnx_transposed
from onnxdecomp.sites.emit import MICROSOFT, activation
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
    fed = _fed(rewritten, rng)
    feeds = {value.name or "": array for value, array in fed}
    try:
        actual = _run(_alone(rewritten, fed, opset, ir_version), feeds)
    except ModelError as error:
        if layer.dtype == "float32" and _runs(rewritten, feeds, opset, ir_version):
            raise ModelError(
                f"{layer.name}: its rewritten nodes do not run ({error}); this is a bug in onnxdecomp"
            ) from error
        return LoweringCheck(layer.name, layer.graph, None, tolerance, str(error))
    expected = _reference(rewritten, feeds, opset, ir_version)
    norm = float(np.linalg.norm(expected))
    difference = float(np.linalg.norm(np.asarray(actual, np.float64) - expected))
    error_ = difference / norm if norm else difference
    return LoweringCheck(layer.name, layer.graph, error_, tolerance)


def _runs(rewritten: Rewritten, feeds: dict[str, Array], opset: int, ir_version: int) -> bool:
    """Whether the operator that was replaced runs: a kernel may lack an attribute, as layout is of LSTM's."""
    try:
        _reference(rewritten, feeds, opset, ir_version)
    except ModelError:
        return False
    return True


Fed: TypeAlias = tuple[tuple[ir.Value, Array], ...]
"""The values that a layer is given, each with numbers for it."""


def _fed(rewritten: Rewritten, rng: np.random.Generator) -> Fed:
    site = rewritten.site
    if site.form is not None:
        return _fed_by_form(rewritten, rng)
    shape = _small_shape(site)
    fed = {id(site.x): (site.x, rng.standard_normal(shape))}
    residual = site.fused.residual if site.fused is not None else None
    if residual is not None and id(residual) not in fed:
        fed[id(residual)] = (residual, rng.standard_normal(rewritten.chain.output_shape(shape)))
    addend = site.linear.addend if site.linear is not None else None
    if addend is not None and id(addend) not in fed:
        rows = _features_last(np.empty(shape), site).shape[:-1]
        wide = np.empty((*rows, site.layer.outputs))
        assert site.linear is not None
        full = np.swapaxes(wide, -1, -2).shape if site.linear.left else wide.shape
        fed[id(addend)] = (addend, np.asarray(rng.standard_normal(full)))
    return tuple((value, array.astype(_stored_type(site.layer))) for value, array in fed.values())


def _fed_by_form(rewritten: Rewritten, rng: np.random.Generator) -> Fed:
    """The activation, the inputs that follow its shape, and the others that are not constant."""
    site = rewritten.site
    assert site.form is not None
    numbers = site.form.feeds(site.layer, rewritten.before, rng)
    fed: dict[int, tuple[ir.Value, Array]] = {}
    for position, operand in enumerate(rewritten.before.inputs):
        if operand is None or position == site.form.weight_at or id(operand) in fed:
            continue
        if operand is site.x or position in site.form.follow or _constant(operand) is None:
            array = numbers[position]
            kind = _stored_type(site.layer) if array.dtype.kind == "f" else array.dtype
            fed[id(operand)] = (operand, array.astype(kind))
    return tuple(fed.values())


def _stored_type(layer: Layer) -> np.dtype[Any]:
    return np.dtype(ir.DataType.BFLOAT16.numpy() if layer.dtype == "bfloat16" else layer.dtype)


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
            if spec.transposed and not isinstance(spec.pads, str):
                # The padding is cut off the output, of which something must be left.
                at_least += spec.pads[axis] + spec.pads[axis + spec.spatial_rank]
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
    if form.rotated:
        shape = [shape[-2], *shape[:-2], shape[-1]]
    return tuple(shape)


def _features_last(x: Array, site: Site) -> Array:
    form = site.linear
    assert form is not None
    if form.rotated:
        x = np.moveaxis(x, 0, -2)
    return x.swapaxes(-1, -2) if form.left != form.swapped else x


def _alone(rewritten: Rewritten, fed: Fed, opset: int, ir_version: int) -> ir.Model:
    """A model of the layer's new nodes only, with their constants and the fed values as inputs."""
    inputs = [_input(source.name or "", array) for source, array in fed]
    mapped = {id(source): value for (source, _), value in zip(fed, inputs, strict=True)}
    initializers = []
    nodes = []
    for node in rewritten.nodes:
        for operand in node.inputs:
            if operand is not None and id(operand) not in mapped:
                tensor = _constant(operand)
                assert tensor is not None
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
            attributes=dict(node.attributes),
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for out, own in zip(node.outputs, copy.outputs, strict=True):
            own.name = out.name
            mapped[id(out)] = own
        nodes.append(copy)
    kind = ir.DataType.from_numpy(_stored_type(rewritten.site.layer))
    outputs = _typed(nodes[-1], kind)
    return _model(inputs, outputs, nodes, initializers, opset, ir_version)


def _typed(node: ir.Node, kind: ir.DataType) -> list[ir.Value]:
    """The node's outputs that are not left out, as a model's outputs."""
    outputs = [out for out in node.outputs if out.name]
    for out in outputs:
        out.type = ir.TensorType(kind)
    return outputs


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    """The numbers behind a value, also behind other nodes; None where it is computed."""
    from onnxdecomp.graph.constants import Constant, resolve

    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor
    constant = resolve(value, ir_version=3)
    return ir.tensor(constant.array) if isinstance(constant, Constant) else None


def _model(
    inputs: list[ir.Value],
    outputs: list[ir.Value],
    nodes: list[ir.Node],
    initializers: list[ir.Value],
    opset: int,
    ir_version: int,
) -> ir.Model:
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": opset, **{node.domain: 1 for node in nodes if node.domain}},
        name="layer",
    )
    return ir.Model(graph, ir_version=max(ir_version, 4))


def _run(model: ir.Model, feeds: dict[str, Array]) -> Array:
    from onnxdecomp.runtime.session import open_session, run

    session = open_session(ir.to_proto(model).SerializeToString(), low_memory=True, integers=False)
    outputs = run(session, feeds)
    return outputs[0] if len(outputs) == 1 else np.concatenate([np.ravel(out) for out in outputs])


def _reference(rewritten: Rewritten, feeds: dict[str, Array], opset: int, ir_version: int) -> Array:
    """What the chain's dense weight gives, with the factors rounded as they are stored."""
    site, layer = rewritten.site, rewritten.site.layer
    chain = _rounded(rewritten.chain, layer.dtype)
    if site.form is not None:
        return _dense_operator(rewritten, chain, feeds, opset, ir_version)
    assert site.x.name is not None
    x = feeds[site.x.name]
    if layer.conv is not None:
        return _dense_conv(chain, site, layer.conv, feeds, opset, ir_version)
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
    if site.fused is not None:
        op_type, attributes = activation(site.fused)
        kind = np.float64 if layer.dtype == "float64" else np.float32
        x = np.asarray(y).astype(kind)
        return _run_one("", op_type, attributes, [("x", x)], ("x",), ("y",), opset, ir_version)
    return np.asarray(y)


def _dense_operator(
    rewritten: Rewritten, chain: Chain, feeds: dict[str, Array], opset: int, ir_version: int
) -> Array:
    """What the operator itself gives with the chain's dense weight."""
    site, before = rewritten.site, rewritten.before
    assert site.form is not None
    kind = np.float64 if site.layer.dtype == "float64" else np.float32
    operands: list[tuple[str, Array] | None] = []
    for position, operand in enumerate(before.inputs):
        if operand is None:
            operands.append(None)
            continue
        name = operand.name or ""
        if position == site.form.weight_at:
            name, array = "dense weight", site.form.stored(chain.dense())
        elif name in feeds:
            array = feeds[name]
        else:
            tensor = _constant(operand)
            assert tensor is not None
            array = tensor.numpy()
        integers = array.dtype.kind in "iu"
        operands.append((name, array if integers else array.astype(kind)))
    return _run_one(
        before.domain,
        before.op_type,
        before.attributes,
        operands,
        feeds,
        tuple(f"out{k}" if name else "" for k, name in enumerate(before.outputs)),
        opset,
        ir_version,
    )


def _run_one(
    domain: str,
    op_type: str,
    attributes: Mapping[str, Any],
    operands: Sequence[tuple[str, Array] | None],
    given: Collection[str],
    outputs: Sequence[str],
    opset: int,
    ir_version: int,
) -> Array:
    """One operator in ONNX Runtime; the operands named in `given` are inputs, the others constants."""
    made = {
        name: _input(name, array) if name in given else _initializer(name, array)
        for name, array in filter(None, operands)
    }
    node = ir.node(
        op_type,
        [None if operand is None else made[operand[0]] for operand in operands],
        # An empty list has no type, and says as much as no attribute.
        attributes=as_attributes({name: value for name, value in attributes.items() if value != ()}),
        domain=domain,
        outputs=[ir.Value(name=name) for name in outputs],
        name="dense",
    )
    inputs = [value for name, value in made.items() if name in given]
    constants = [value for name, value in made.items() if name not in given]
    floats = next(array.dtype for _, array in filter(None, operands) if array.dtype.kind == "f")
    typed = _typed(node, ir.DataType.from_numpy(floats))
    model = _model(inputs, typed, [node], constants, opset, ir_version)
    feeds = {name: array for name, array in filter(None, operands) if name in given}
    return _run(model, feeds).astype(np.float64)


def _dense_conv(
    chain: Chain, site: Site, spec: ConvSpec, feeds: dict[str, Array], opset: int, ir_version: int
) -> Array:
    dense = chain.dense().astype(np.float32)
    weight = onnx_transposed(dense, spec.groups) if spec.transposed else dense
    given = {name: array.astype(np.float32) for name, array in feeds.items()}
    x, residual = site.x.name or "", site.fused.residual if site.fused is not None else None
    operands: list[tuple[str, Array] | None] = [(x, given[x]), ("dense weight", weight)]
    if chain.bias is not None:
        operands.append(("dense bias", chain.bias.astype(np.float32)))
    elif residual is not None:
        operands.append(None)
    if residual is not None:
        operands.append((residual.name or "", given[residual.name or ""]))
    attributes: dict[str, Any] = {
        "strides": list(spec.strides),
        "dilations": list(spec.dilations),
        "group": spec.groups,
    }
    attributes |= {"auto_pad": spec.pads} if isinstance(spec.pads, str) else {"pads": list(spec.pads)}
    if spec.output_padding:
        attributes["output_padding"] = list(spec.output_padding)
    if site.fused is not None:
        attributes |= site.fused.attributes
    op_type = "ConvTranspose" if spec.transposed else "Conv"
    domain, op_type = ("", op_type) if site.fused is None else (MICROSOFT, "FusedConv")
    return _run_one(domain, op_type, attributes, operands, given, ("y",), opset, ir_version)


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
