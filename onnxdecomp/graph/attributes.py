"""Reading nodes and values: names, attributes, shapes as far as they are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from onnxdecomp.core.layer import Dim


def node_name(node: ir.Node) -> str:
    """The node's name, or one made from its output where it has none."""
    return node.name or f"{node.op_type}_{named_output(node).name}"


def named_output(node: ir.Node) -> ir.Value:
    """The node's first output that is not left out."""
    return next((output for output in node.outputs if output.name), node.outputs[0])


def dims(value: ir.Value) -> tuple[Dim, ...] | None:
    """The value's shape as far as it is known; sizes below 1 say nothing."""
    if value.shape is None:
        return None
    known: list[Dim] = []
    for dim in value.shape:
        if isinstance(dim, int):
            known.append(dim if dim > 0 else None)
        else:
            known.append(dim.value if isinstance(dim, ir.SymbolicDim) else str(dim))
    return tuple(known)


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's Python value, or the default where it is absent."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def as_attributes(attributes: Mapping[str, Any]) -> dict[str, ir.Attr]:
    """Attributes of a node as onnx_ir keeps them; finding their types out itself takes it far longer."""
    return {name: _as_attribute(name, value) for name, value in attributes.items()}


def _as_attribute(name: str, value: Any) -> ir.Attr:
    if isinstance(value, int):
        return ir.AttrInt64(name, int(value))
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    if isinstance(value, str):
        return ir.AttrString(name, value)
    if isinstance(value, tuple | list) and value and all(isinstance(item, int) for item in value):
        return ir.AttrInt64s(name, value)
    return ir.convenience.convert_attribute(name, value)
