"""Gemm, MatMul and MatMul + Add as layers, FusedGemm and FusedMatMul too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array, Dim, Layer
from onnxdecomp.graph.attributes import attribute, dims, node_name
from onnxdecomp.graph.constants import Constant
from onnxdecomp.layers.site import FLOATS, Linear, Scope, Site, working


def gemm_site(node: ir.Node, scope: Scope) -> Site | str:
    """The site of a Gemm or FusedGemm, alpha folded into the weight, beta into a [T] bias; or why not."""
    operand = _weight_operand(node, scope)
    if isinstance(operand, str):
        return operand
    alpha = float(attribute(node, "alpha", 1.0))
    beta = float(attribute(node, "beta", 1.0))
    trans = (bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0)))
    # y = A' B': with the weight on the right the canonical weight is B'T, on the left it is A'.
    flipped = trans[0] if operand.left else not trans[1]
    array = operand.constant.array
    weight = working(array.T if flipped else array)
    if alpha != 1.0:
        weight = weight * weight.dtype.type(alpha)
    swapped = trans[1] if operand.left else trans[0]
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias, addend = _gemm_bias(bias_value, beta, weight.shape[0], operand.left, scope)
    linear = Linear(left=operand.left, swapped=swapped, addend=addend, scale=beta, gemm=True)
    shape = dims(operand.x)
    if swapped != operand.left and shape is not None:
        shape = _swap(shape)
    layer = Layer(
        name=node_name(node),
        op_type=node.op_type,
        weight=weight,
        bias=bias,
        graph=scope.place.path,
        input_shape=shape or (None, int(weight.shape[1])),
        output_shape=dims(node.outputs[0]),
        dtype=operand.constant.dtype,
    )
    kept = bias_value if bias is not None and beta == 1.0 else None
    return Site(
        layer,
        scope.place,
        (node,),
        operand.x,
        operand.value,
        operand.constant.root,
        kept,
        linear,
        quantized="DequantizeLinear" in operand.constant.via,
    )


def matmul_site(node: ir.Node, scope: Scope) -> Site | str:
    """The site of a MatMul or FusedMatMul, with the Add of a constant bias after it where there is one.

    FusedMatMul's alpha is folded into the weight; what it transposes of the constant is transposed here.
    """
    operand = _weight_operand(node, scope)
    if isinstance(operand, str):
        return operand
    array = operand.constant.array
    alpha = float(attribute(node, "alpha", 1.0))
    trans, batch = (
        [bool(attribute(node, f"{what}{side}", 0)) for side in "AB"] for what in ("trans", "transBatch")
    )
    if array.ndim < 2:
        return "its weight is a vector: there is nothing to decompose"
    shape = dims(operand.x)
    if shape is not None and len(shape) < 2:
        return "its activation is a vector"
    at = 0 if operand.left else 1
    if batch[at] and array.ndim > 2:
        array = np.moveaxis(array, 0, -2)
    if trans[at]:
        array = array.swapaxes(-1, -2)
    rotated, swapped = batch[1 - at], trans[1 - at]
    if shape is not None and rotated:
        shape = (*shape[1:-1], shape[0], shape[-1])
    # Leading ones of the weight change nothing where the activation has as many dimensions.
    while array.ndim > 2 and array.shape[0] == 1 and shape is not None and len(shape) >= array.ndim:
        array = array[0]
    weight = working(array if operand.left else array.swapaxes(-1, -2))
    if alpha != 1.0:
        weight = weight * weight.dtype.type(alpha)
    if operand.left != swapped and shape is not None:
        shape = _swap(shape)
    nodes: tuple[ir.Node, ...] = (node,)
    bias, bias_value = None, None
    if not operand.left and (fused := bias_after(node, int(weight.shape[-2]), scope)):
        add, bias_value, vector = fused
        nodes, bias = (node, add), working(vector)
    layer = Layer(
        name=node_name(node),
        op_type=node.op_type,
        weight=weight,
        bias=bias,
        graph=scope.place.path,
        input_shape=shape,
        output_shape=dims(nodes[-1].outputs[0]),
        dtype=operand.constant.dtype,
    )
    return Site(
        layer,
        scope.place,
        nodes,
        operand.x,
        operand.value,
        operand.constant.root,
        bias_value,
        Linear(left=operand.left, swapped=swapped, rotated=rotated),
        quantized="DequantizeLinear" in operand.constant.via,
    )


@dataclass(frozen=True, eq=False)
class _Operand:
    constant: Constant
    value: ir.Value
    x: ir.Value
    left: bool


def _weight_operand(node: ir.Node, scope: Scope) -> _Operand | str:
    """Which of the two operands is the weight."""
    a, b = node.inputs[:2]
    assert a is not None
    assert b is not None
    right, left = scope.constant(b), scope.constant(a)
    if isinstance(right, Constant) and isinstance(left, Constant):
        return "both operands are constant"
    if isinstance(right, Constant):
        found = _Operand(right, b, a, left=False)
    elif isinstance(left, Constant):
        found = _Operand(left, a, b, left=True)
    else:
        return f"no operand is constant: {right}"
    if found.constant.dtype not in FLOATS:
        return f"its weight has element type {found.constant.dtype}"
    return found


def _gemm_bias(
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


def bias_after(node: ir.Node, outputs: int, scope: Scope) -> tuple[ir.Node, ir.Value, Array] | None:
    """The Add of a constant [T] that alone reads the node's output."""
    out = node.outputs[0]
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output():
        return None
    add = uses[0].node
    if add.op_type != "Add" or add.domain != "" or add.graph is not node.graph:
        return None
    other = add.inputs[1 - uses[0].idx]
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


def _swap(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return (*shape[:-2], shape[-1], shape[-2])
