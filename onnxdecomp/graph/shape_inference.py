"""Shapes of activations by ONNX's shape inference, in subgraphs and in the bodies of functions too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxdecomp.graph import maps
from onnxdecomp.graph.constants import Memo, resolve
from onnxdecomp.graph.external_data import reference
from onnxdecomp.graph.traversal import node_graphs, places, slots
from onnxdecomp.runtime.fatal import impossible_slice
from onnxdecomp.runtime.process_state import quiet_logger

_log = logging.getLogger(__name__)

SMALL = 1024
"""Bytes up to which a tensor is shown to the inference: shapes and axes are, weights are not."""

SHAPE_KEEPING = frozenset(
    [
        ("", "Affine"),
        ("", "ImageScaler"),
        ("", "ParametricSoftplus"),
        ("", "ScaledTanh"),
        ("com.microsoft", "BiasGelu"),
        ("com.microsoft", "FastGelu"),
        ("com.microsoft", "Gelu"),
        ("com.microsoft", "QuickGelu"),
        ("com.microsoft", "SkipLayerNormalization"),
        ("com.microsoft", "SkipSimplifiedLayerNormalization"),
    ]
)
"""Operators that ONNX Runtime has and ONNX's inference does not: the output is as the first input."""

EMBEDDINGS = frozenset([("com.microsoft", "EmbedLayerNormalization")])
"""Operators of token indices and a table, their third input: the output has a row of it for each index."""

ATTENTION = ("com.microsoft", "MultiHeadAttention")

StandIns: TypeAlias = Mapping[tuple[str, str], Callable[[ir.Node], None]]
"""By domain and type: what makes a node of an operator that the inference does not know one with the same
shapes, in place. `unfuse` and `as_product` help."""

UNKNOWN = "onnxdecomp.unknown"
"""The domain of operators that inference is kept from understanding."""

_DECLARED = "onnxdecomp.declared"


def infer_shapes(model: ir.Model, stand_ins: StandIns) -> None:
    """Fill in the shapes and types of values, in place, as far as they can be inferred.

    What the model declares stays: the inputs and outputs of the main graph altogether, and of the other
    values every known size and symbolic name. A function's body gets what holds for all of its calls.
    Names that the inference makes up become unknown sizes. Where it fails, values stay without a shape.
    `as_declared` takes it all back, which `save` does in the file.

    Args:
        model: The model.
        stand_ins: For operators that the inference does not know.
    """
    symbols = _symbols(model)
    # The interface is a promise to whoever runs the model.
    interface = {*model.graph.inputs, *model.graph.outputs}
    with quiet_logger("onnx_ir"):
        _merge_graphs(model.graph, _inferred(model, stand_ins), symbols, interface)
        for function in _callers_first(model):
            typed = _typed_body(model, function)
            if typed is not None:
                _merge_graphs(function.graph, _inferred(typed, stand_ins), symbols, set())


def as_declared(model: ir.Model) -> None:
    """Give every value the shape and type again that it had before `infer_shapes`, in place.

    A saved model so declares what the original did: an inference that is wrong does no harm there.
    """
    for place in places(model):
        for value in _values(place.graph):
            if _DECLARED in value.meta:
                value.shape, value.type = value.meta.pop(_DECLARED)


def set_sizes(value: ir.Value, sizes: Mapping[int, int]) -> None:
    """Set sizes of a value along axes, also in what the model declared of it before `infer_shapes`."""
    value.shape = _with_sizes(value.shape, sizes)
    if _DECLARED in value.meta:
        shape, kind = value.meta[_DECLARED]
        value.meta[_DECLARED] = (_with_sizes(shape, sizes), kind)


def _with_sizes(shape: ir.Shape | None, sizes: Mapping[int, int]) -> ir.Shape | None:
    """The shape with other sizes along axes where it has any."""
    if shape is None or max(sizes) >= len(shape):
        return shape
    return ir.Shape([sizes.get(axis, dim) if isinstance(dim, int) else dim for axis, dim in enumerate(shape)])


def _inferred(model: ir.Model, stand_ins: StandIns) -> ir.Graph | None:
    """The main graph of `model` as ONNX's inference returns it; None where that fails."""
    try:
        light = model.clone()
        light.opset_imports[UNKNOWN] = 1
        for place in places(light):
            for value in _values(place.graph):
                _free_nonsense(value)
        _fold(light)
        for slot in slots(light):
            if slot.tensor.dtype != ir.DataType.STRING and slot.tensor.nbytes > SMALL:
                slot.put(reference(slot.tensor, "left-out"))
        for graph in _graphs(light.graph):
            for node in tuple(graph):
                _with_stand_in(node, stand_ins, light)
        proto = ir.to_proto(light)
        if impossible_slice(proto) is not None:
            return None
        proto = onnx.shape_inference.infer_shapes(proto, check_type=False, data_prop=True)
        maps.take_out(proto)
        return ir.from_proto(proto).graph
    except Exception:  # inference is a help; what it trips over is judged elsewhere
        return None


def _fold(model: ir.Model) -> None:
    """Put small integers that are computed from constants in as constants, in place.

    Pads, sizes and axes are such: the inference looks at numbers that are stored, and computes few.
    """
    memo: Memo = {}
    for place in places(model):
        opset = place.graph.opset_imports if place.function is None else place.function.opset_imports
        version = int(opset.get("", model.opset_imports.get("", 1)) or 1)
        for value in _values(place.graph):
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is not None and tensor.nbytes > SMALL:
                memo[value] = "it is large"
        memo.update({v: "it is large" for v in place.graph.initializers.values() if _is_large(v)})
        for node in tuple(place.graph):
            if node.op_type in ("Constant", "DequantizeLinear"):
                continue
            for value in node.outputs:
                if not value.uses():
                    continue
                found = resolve(value, ir_version=model.ir_version, opset=version, memo=memo)
                if (
                    isinstance(found, str)
                    or found.array.dtype.kind not in "iub"
                    or found.array.nbytes > SMALL
                ):
                    continue
                constant = ir.node("Constant", [], attributes={"value": ir.tensor(found.array)})
                place.graph.insert_before(node, constant)
                value.replace_all_uses_with(constant.outputs[0], replace_graph_outputs=False)


def _is_large(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes > SMALL


def _with_stand_in(node: ir.Node, stand_ins: StandIns, model: ir.Model) -> None:
    """Make a node that the inference does not know one that it does."""
    if (node.domain, node.op_type) in SHAPE_KEEPING:
        _as_identity(node)
    elif (node.domain, node.op_type) in EMBEDDINGS:
        _as_lookup(node)
    elif stand_in := stand_ins.get((node.domain, node.op_type)):
        _stand_in(node, stand_in, model)
    elif (node.domain, node.op_type) == ATTENTION:
        _as_weighted_sum(node)
    elif node.domain == "" and node.op_type == "Crop" and "border" in node.attributes:
        _uncrop(node)


def _stand_in(node: ir.Node, make: Callable[[ir.Node], None], model: ir.Model) -> None:
    """Let another node stand in; where that fails, which may be another package's fault, none does."""
    try:
        make(node)
    except Exception as error:
        _log.info("no shapes behind the node %r", node.name, exc_info=error)
        node.domain, model.opset_imports[UNKNOWN] = UNKNOWN, 1


def unfuse(node: ir.Node, op_type: str, *, attributes: bool = True) -> None:
    """Make a node that is an operator of ONNX and more, which changes no shape, that operator.

    Args:
        node: The node.
        op_type: The operator.
        attributes: Whether it has the node's attributes, but for those of an activation.
    """
    node.domain, node.op_type = "", op_type
    for name in tuple(node.attributes):
        if not attributes or name.startswith("activation"):
            del node.attributes[name]
    node.resize_inputs(min(len(node.inputs), 3))


def _as_identity(node: ir.Node) -> None:
    """Make a node an Identity for each of its outputs, but for those that hold means and deviations."""
    _further(node, dict.fromkeys(range(3, len(node.outputs)), node.inputs[0]))
    node.domain, node.op_type = "", "Identity"
    node.attributes.clear()
    node.resize_inputs(1)


def _as_lookup(node: ir.Node) -> None:
    """Make a node that looks rows of a table up a Gather; its third output is the sum before it is scaled."""
    table = node.inputs[2]
    _further(node, {2: node.outputs[0]})
    node.domain, node.op_type = "", "Gather"
    node.attributes.clear()
    node.replace_input_with(1, node.inputs[0])
    node.replace_input_with(0, table)
    node.resize_inputs(2)


def _further(node: ir.Node, same: Mapping[int, ir.Value | None]) -> None:
    """Leave a node its first output; those at `same` become copies of a value, others unknown."""
    if len(node.outputs) == 1:
        return
    assert node.graph is not None
    for at, output in enumerate(node.outputs[1:], 1):
        if not output.name:
            continue
        source = same.get(at)
        domain = "" if source is not None else UNKNOWN
        other = ir.node("Identity", [node.inputs[0] if source is None else source], domain=domain)
        node.graph.insert_after(node, other)
        output.replace_all_uses_with(other.outputs[0], replace_graph_outputs=True)
        other.outputs[0].name, output.name = output.name, f"{output.name}/before"
    node.resize_outputs(1)


def _as_weighted_sum(node: ir.Node) -> None:
    """Make attention a sum that has its shapes: as many rows as queries, as many columns as values."""
    if len(node.inputs) < 3 or None in node.inputs[:3] or any(output.name for output in node.outputs[1:]):
        return
    node.domain, node.op_type = "", "Einsum"
    node.attributes.clear()
    node.attributes["equation"] = ir.AttrString("equation", "bnd,bme->bne")
    node.replace_input_with(1, node.inputs[2])
    node.resize_inputs(2)


def as_product(node: ir.Node, features: int, outputs: int) -> None:
    """Make a node whose output has its first input's shape, but for the features, a product by a matrix."""
    if node.graph is None or any(output.name for output in node.outputs[1:]):
        return
    stand_in = ir.Tensor(np.broadcast_to(np.float32(0), (features, outputs)), name="matrix")
    matrix = ir.node("Constant", [], attributes={"value": reference(stand_in, "left-out")})
    node.graph.insert_before(node, matrix)
    node.domain, node.op_type = "", "MatMul"
    node.attributes.clear()
    node.resize_inputs(2)
    node.resize_outputs(1)
    node.replace_input_with(1, matrix.outputs[0])


def _uncrop(node: ir.Node) -> None:
    """Make a Crop of [N, C, H, W], which ONNX has no longer, a Pad by less than nothing (before opset 11)."""
    left, top, right, bottom = node.attributes["border"].as_ints()
    if "scale" in node.attributes:
        return
    node.op_type = "Pad"
    node.attributes.clear()
    node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, -top, -left, 0, 0, -bottom, -right])


def _merge_graphs(
    graph: ir.Graph, inferred: ir.Graph | None, symbols: set[str], fixed: set[ir.Value]
) -> None:
    if inferred is None:
        return
    for mine, other in zip(_graphs(graph), _graphs(inferred), strict=True):
        found = {value.name: value for value in _values(other)}
        for value in _values(mine):
            if value not in fixed and value.name in found:
                _merge(value, found[value.name], symbols)


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for _, inner in node_graphs(node):
            yield from _graphs(inner)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _merge(value: ir.Value, found: ir.Value, symbols: set[str]) -> None:
    """Take over what `found` knows more."""
    value.meta.setdefault(_DECLARED, (value.shape, value.type))
    if value.type is None:
        value.type = found.type
    if found.shape is None or (value.shape is not None and len(value.shape) != len(found.shape)):
        return
    known = value.shape if value.shape is not None else [None] * len(found.shape)
    value.shape = ir.Shape(
        [
            new if _unknown(old) and not _made_up(new, symbols) else old
            for old, new in zip(known, found.shape, strict=True)
        ]
    )


def _free_nonsense(value: ir.Value) -> None:
    """Make sizes below 1 unknown: some exporters write -1, and the inference would compute with it."""
    if value.shape is not None and any(_unknown(dim) for dim in value.shape):
        value.shape = ir.Shape([None if _unknown(dim) else dim for dim in value.shape])


def _unknown(dim: object) -> bool:
    if isinstance(dim, ir.SymbolicDim):
        return dim.value is None
    return dim is None or (isinstance(dim, int) and dim < 1)


def _made_up(dim: object, symbols: set[str]) -> bool:
    """Whether a size is a name that ONNX's inference invented: unk__0, unk__1, …"""
    name = dim.value if isinstance(dim, ir.SymbolicDim) else None
    return isinstance(name, str) and name.startswith("unk__") and name not in symbols


def _symbols(model: ir.Model) -> set[str]:
    """The names of sizes that the model itself uses."""
    return {
        dim.value
        for place in places(model)
        for value in _values(place.graph)
        for dim in value.shape or ()
        if isinstance(dim, ir.SymbolicDim) and isinstance(dim.value, str)
    }


def _calls(model: ir.Model, function: ir.Function) -> list[ir.Node]:
    return [
        node
        for place in places(model)
        for node in place.graph
        if node.op_identifier() == function.identifier()
    ]


def _callers_first(model: ir.Model) -> list[ir.Function]:
    """The functions, each after those that call it (they cannot call each other in a circle)."""
    called = {
        function: [
            model.functions[node.op_identifier()]
            for node in function.all_nodes()
            if node.op_identifier() in model.functions
        ]
        for function in model.functions.values()
    }
    order: dict[ir.Function, None] = {}
    opened = set[ir.Function]()
    todo = list(called)
    while todo:
        function = todo[-1]
        missing = [other for other in called[function] if other not in order and other not in opened]
        if missing and function not in opened:
            opened.add(function)
            todo += missing
        else:
            order.setdefault(todo.pop())
    return list(order)[::-1]


def _typed_body(model: ir.Model, function: ir.Function) -> ir.Model | None:
    """A function's body as a model, its inputs typed as all calls agree; None if there is no call."""
    calls = _calls(model, function)
    if not calls:
        return None
    copy = function.clone()
    for index, value in enumerate(copy.inputs):
        given = [call.inputs[index] if index < len(call.inputs) else None for call in calls]
        _agree(value, [operand for operand in given if operand is not None])
    for graph in _graphs(copy.graph):
        for node in graph:
            _bind(node, function, calls)
    copy.graph.opset_imports[UNKNOWN] = 1
    return ir.Model(
        copy.graph, ir_version=max(10, model.ir_version), functions=list(model.functions.values())
    )


def _agree(value: ir.Value, operands: Sequence[ir.Value]) -> None:
    """Give a parameter the type and the sizes that all its arguments have."""
    if not operands or any(operand.type != operands[0].type for operand in operands):
        return
    value.type = operands[0].type
    shapes = [operand.shape for operand in operands]
    if any(shape is None or len(shape) != len(shapes[0] or ()) for shape in shapes):
        return
    columns = zip(*(shape for shape in shapes if shape is not None), strict=True)
    value.shape = ir.Shape(
        [sizes[0] if all(size == sizes[0] for size in sizes) else None for sizes in columns]
    )


def _bind(node: ir.Node, function: ir.Function, calls: Sequence[ir.Node]) -> None:
    """Replace references to the function's attributes by the value that all calls give.

    Where they differ, the node becomes one that inference knows nothing of.
    """
    for key, attr in tuple(node.attributes.items()):
        if not attr.is_ref():
            continue
        name = attr.ref_attr_name or ""
        default = function.attributes.get(name)
        given = [call.attributes.get(name, default) for call in calls]
        first = given[0]
        # No shape depends on a number with a fraction, as a slope or an epsilon.
        differs = any(other != first for other in given) and attr.type != ir.AttributeType.FLOAT
        if differs or (first is not None and first.is_ref()):
            node.domain = UNKNOWN
        elif first is None or first.value is None:
            node.attributes.pop(key)
        else:
            node.attributes[key] = ir.Attr(key, first.type, first.value)
