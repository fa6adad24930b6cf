"""The nodes of products and lookups whose weights are stored in fewer bits, in ways of their own."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.core.steps import Lookup, MatMul
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.storage import Integers, Storage, Stored

_ROUNDING = "DynamicQuantizeLinear"


def product(storage: Storage, step: MatMul, x: ir.Value, label: str, emit: Emitter) -> ir.Value:
    """x @ weight, of a storage."""
    found = storage.stored(step)
    if isinstance(found, Stored):
        return emit.operator(found, x, label)
    return _of_integers(found, x, label, emit)


def looked_up(storage: Storage, step: Lookup, x: ir.Value, label: str, emit: Emitter) -> ir.Value:
    """The rows of a table that x counts, of a storage."""
    found = storage.table(step)
    if isinstance(found, Stored):
        return emit.operator(found, x, label)
    table, scales = emit.part(found.table, label, ""), emit.part(found.scales, label, "_row_scale")
    read = _of(emit.add("Gather", [table, x], f"{label}.integers", axis=0), ir.DataType.INT8)
    read = emit.add("Cast", [read], f"{label}.rows", to=ir.DataType.FLOAT)
    scale = emit.add("Gather", [scales, x], f"{label}.scales", axis=0)
    return emit.add("Mul", [read, scale], label)


def _of_integers(found: Integers, x: ir.Value, label: str, emit: Emitter) -> ir.Value:
    """As ONNX Runtime's dynamic quantizer does it, so that its optimizer fuses it.

    The weight of a head that multiplies by the transpose of a table is that table's: ONNX Runtime transposes
    what is constant once, when it loads the model.
    """
    turned = emit.share is not None and emit.share.turned
    weight = emit.part(found.weight.T.copy() if turned else found.weight, label, "")
    if turned:
        weight = _of(emit.add("Transpose", [weight], f"{label}.turned", perm=(1, 0)), ir.DataType.INT8)
    scales = emit.part(found.scales, label, "_scale")
    q, scale, zero_point = _rounded(x, label, emit)
    y = _of(emit.add("MatMulInteger", [q, weight, zero_point], f"{label}.integers"), ir.DataType.INT32)
    y = emit.add("Cast", [y], f"{label}.floats", to=ir.DataType.FLOAT)
    scale = emit.add("Mul", [scale, scales], f"{label}.scales")
    return emit.add("Mul", [y, scale], label)


def _of(value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The value, of another element type than the layer's."""
    value.type = ir.TensorType(dtype)
    return value


def _rounded(x: ir.Value, label: str, emit: Emitter) -> tuple[ir.Value, ...]:
    """The activation as uint8, its scale and its zero point: those that another layer of the graph reads."""
    known = (node for node, _ in x.uses() if node.op_type == _ROUNDING and node.graph is emit.graph)
    node = next(known, None)
    if node is None:
        emit.add(_ROUNDING, [x], f"{label}.rounded", outputs=3)
        node = emit.nodes[-1]
        kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
        for value, kind, end in zip(node.outputs, kinds, ("", "_scale", "_zero_point"), strict=True):
            _of(value, kind)
            if not value.name:
                value.name = emit.unique(f"{node.outputs[0].name}{end}")
    return tuple(node.outputs)
