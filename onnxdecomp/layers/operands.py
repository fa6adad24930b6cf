"""The operands of a product of matrices: which one is the weight, and what is added."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array
from onnxdecomp.graph.constants import Constant
from onnxdecomp.layers.scope import Scope, Weight, working


@dataclass(frozen=True, eq=False)
class Operands:
    """The weight, the activation, and whether the weight is the left one."""

    source: Weight
    x: ir.Value
    left: bool


def operands(node: ir.Node, scope: Scope) -> Operands | str:
    """Which of the two operands is the weight."""
    a, b = node.inputs[:2]
    assert a is not None
    assert b is not None
    right, left = scope.constant(b), scope.constant(a)
    if isinstance(right, Constant) and isinstance(left, Constant):
        return "both operands are constant"
    if isinstance(right, str) and isinstance(left, str):
        return f"no operand is constant: {right}"
    is_left = isinstance(left, Constant)
    source = scope.weight(a if is_left else b)
    return source if isinstance(source, str) else Operands(source, b if is_left else a, is_left)


def gemm_bias(
    value: ir.Value | None, beta: float, outputs: int, left: bool, scope: Scope
) -> tuple[Array | None, ir.Value | None]:
    """C as a [T] bias (beta folded in) if it is one, else as a value that is added at the end."""
    if value is None or beta == 0.0:
        return None, None
    constant = scope.constant(value)
    if isinstance(constant, str) or left:
        return None, value
    vector = _feature_vector(constant.array, outputs)
    if vector is None:
        return None, value
    return working(vector) * working(vector).dtype.type(beta), None


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node of ONNX's own that alone reads a value, in its graph; None where it has another type."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, producer = uses[0].node, value.producer()
    if producer is None or node.graph is not producer.graph:
        return None
    return node if (node.domain, node.op_type) == ("", op_type) else None


def bias_after(node: ir.Node, outputs: int, scope: Scope) -> tuple[ir.Node, ir.Value, Array] | None:
    """The Add of a constant [T] that alone reads the node's output."""
    out = node.outputs[0]
    add = only_reader(out, "Add")
    if add is None:
        return None
    other = add.inputs[1 - add.inputs.index(out)]
    constant = scope.constant(other)
    rank = None if out.shape is None else len(out.shape)
    if other is None or isinstance(constant, str) or rank is None or constant.array.ndim > rank:
        return None
    vector = _feature_vector(constant.array, outputs)
    return None if vector is None else (add, other, vector)


def _feature_vector(array: Array, outputs: int) -> Array | None:
    """The array as [outputs] if it broadcasts along the features only."""
    if array.size == 1:
        return np.broadcast_to(array.reshape(()), (outputs,))
    if array.size == outputs and array.shape[-1] == outputs:
        return array.reshape(outputs)
    return None
