"""Shapes of activations by ONNX's shape inference, in subgraphs and in the bodies of functions too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from onnxdecomp.graph import maps
from onnxdecomp.graph.constants import Memo, resolve
from onnxdecomp.graph.external_data import reference
from onnxdecomp.graph.inferred import forget_inferred
from onnxdecomp.graph.stand_ins import UNKNOWN, StandIns, put_stand_in
from onnxdecomp.graph.traversal import node_graphs, places, slots
from onnxdecomp.runtime.fatal import impossible_slice
from onnxdecomp.runtime.process_state import quiet_logger

SMALL = 1024
"""Bytes up to which a tensor is shown to the inference: shapes and axes are, weights are not."""

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
    forget_inferred(model)
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


def declare_type(value: ir.Value, kind: ir.TypeProtocol | None = None) -> None:
    """Declare a value's type, where none is: `kind`, or by default what `infer_shapes` has found."""
    value.type = value.type or kind
    if _DECLARED in value.meta:
        shape, declared = value.meta[_DECLARED]
        value.meta[_DECLARED] = (shape, declared or value.type)


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
                put_stand_in(node, stand_ins, light)
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
