"""Which initializers are trained: by what the operators that read them do with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from onnxdecomp.channels.new_numbers import CUT
from onnxdecomp.errors import UsageError
from onnxdecomp.layers.adapter import ParameterRoles
from onnxdecomp.layers.registry import adapter_of
from onnxdecomp.layers.replace import LAYER

_BIASES = {
    "Add": (0, 1),
    "PRelu": (1,),
    "BatchNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
}
"""Additive numbers of operators that are no layers, and those of the normalisation but its statistics."""

_VIEWS = frozenset(("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Cast"))
"""Operators through which an initializer reaches its reader unchanged."""

_FLOATS = frozenset((ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16))


@dataclass(frozen=True)
class Role:
    """An initializer that can be trained.

    Attributes:
        name: Its name.
        kind: "factor" (of a layer that was rewritten, or that a cut made smaller), "weight" (of another), or
            "bias" (also of the normalisation).
        layer: The rewritten layer that reads it, or "".
        matrix: Whether it multiplies vectors as a matrix does: not those of groups, stacks and tables.
    """

    name: str
    kind: str
    layer: str = ""
    matrix: bool = False


def roles(model: ir.Model) -> tuple[Role, ...]:
    """The initializers of the main graph that are weights or biases of its operators, in a stable order."""
    found: dict[str, Role] = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is None or value.const_value.dtype not in _FLOATS or value.is_graph_output():
            continue
        kinds = [role for role in _readers(value) if role is not None]
        if kinds:
            layer = next((layer for _, layer in kinds if layer), "")
            is_weight = any(kind == "weight" for kind, _ in kinds)
            kind = "factor" if layer and is_weight else "weight" if is_weight else "bias"
            found[name] = Role(name, kind, layer, kind != "bias" and _is_matrix(value))
    return tuple(found.values())


def _is_matrix(value: ir.Value) -> bool:
    shape = () if value.const_value is None else value.const_value.shape.numpy()
    if len(shape) < 2 or min(shape[:2]) < 2:
        return False
    readers = [(node, adapter_of(node)) for node, _ in value.uses()]
    return all(adapter is not None and adapter.is_matrix(node, shape) for node, adapter in readers)


def _readers(value: ir.Value) -> list[tuple[str, str] | None]:
    """What each operator behind a value does with it, and which rewritten layer that belongs to."""
    found: list[tuple[str, str] | None] = []
    todo = list(value.uses())
    for node, index in todo:  # grows
        layer, adapter = node.metadata_props.get(LAYER, ""), adapter_of(node)
        if not layer and CUT in node.metadata_props:
            layer = node.name or node.metadata_props[CUT]
        own = ParameterRoles() if adapter is None else adapter.parameter_roles(node.op_type)
        is_bias = index in own.biases or index in _BIASES.get(node.op_type, ())
        if index in own.weights:
            found.append(("weight", layer))
        elif is_bias and len(value.const_value.shape if value.const_value else (1,)):
            found.append(("bias", layer))
        elif node.op_type in _VIEWS and index == 0:
            todo += node.outputs[0].uses()
        else:
            found.append(None)
    return found


def chosen(found: Collection[Role], kinds: Collection[str]) -> tuple[Role, ...]:
    """Those to train.

    Raises:
        UsageError: There are none.
    """
    wanted = {"factors": ("factor",), "biases": ("bias",), "all": ("factor", "weight", "bias")}
    taken = {kind for name in kinds for kind in wanted[name]}
    picked = tuple(role for role in found if role.kind in taken)
    if not picked:
        hint = " (the model was not decomposed by onnxdecomp)" if "factors" in kinds else ""
        raise UsageError(f"there is nothing to train of: {', '.join(kinds)}{hint}; try all")
    return picked
