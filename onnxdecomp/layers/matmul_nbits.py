"""MatMulNBits (com.microsoft) as a layer: a MatMul whose weight is stored in 2, 4 or 8 bits, in blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Layer
from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.graph.constants import Constant
from onnxdecomp.graph.stand_ins import as_product
from onnxdecomp.layers.adapter import LayerMatch, ParameterRoles
from onnxdecomp.layers.blocks import SMALLEST_BLOCK, Blocks, dequantize
from onnxdecomp.layers.linear import Linear
from onnxdecomp.layers.operands import bias_after
from onnxdecomp.layers.scope import FLOATS, MICROSOFT, Scope, Weight, working

BITS = (2, 4, 8)

_B, _SCALES, _ZERO_POINTS, _G_IDX, _BIAS = 1, 2, 3, 4, 5


@dataclass(frozen=True, eq=False)
class MatMulNBits(Linear):
    """The adapter of products with a weight in blocks: once the weight is read, one like the others."""

    operators = ((MICROSOFT, "MatMulNBits"),)
    per_channel = frozenset()

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str:
        """The layer of a node, with its bias or the Add of one after it; or why it is none."""
        inputs = [*node.inputs, *[None] * (_BIAS + 1 - len(node.inputs))]
        x, value = inputs[0], inputs[_B]
        assert x is not None
        assert value is not None
        n, k, block = (int(attribute(node, name, 0)) for name in ("N", "K", "block_size"))
        bits = int(attribute(node, "bits", 4))
        if inputs[_G_IDX] is not None:
            return "its blocks are permuted by a g_idx"
        if attribute(node, "weight_prepacked", 0):
            return "its weight is laid out for one kind of processor"
        if bits not in BITS or block < SMALLEST_BLOCK or block & (block - 1) or n < 1 or k < 1:
            return f"its weight has N={n}, K={k}, bits={bits} and block_size={block}, which are not all read"
        found = _constants(inputs, scope)
        if isinstance(found, str):
            return found
        packed, scales, zero_points = found[_B], found[_SCALES], found.get(_ZERO_POINTS)
        count = -(-k // block)
        as_bytes = zero_points is not None and zero_points.dtype == "uint8"
        each = -(-count * bits // 8) if as_bytes else count
        if (
            packed.dtype != "uint8"
            or packed.array.size != n * count * block * bits // 8
            or scales.array.size != n * count
            or (zero_points is not None and zero_points.array.size != n * each)
        ):
            return "its inputs do not have the sizes that its attributes say"
        if scales.dtype not in FLOATS:
            return f"its scales have element type {scales.dtype}"
        points = None if zero_points is None else zero_points.array
        weight = dequantize(packed.array, scales.array, points, n, k, bits, block)
        after: tuple[ir.Node, ...] = ()
        bias, bias_value = None, inputs[_BIAS]
        if bias_value is not None:
            bias = working(found[_BIAS].array).reshape(n)
        elif behind := bias_after(node, n, scope):
            add, bias_value, vector = behind
            after, bias = (add,), working(vector)
        stored = ir.DataType.BFLOAT16.numpy() if scales.dtype == "bfloat16" else scales.dtype
        level = int(attribute(node, "accuracy_level", 0))
        return cls().layer_match(
            node,
            scope,
            x,
            Weight(value, replace(packed, dtype=scales.dtype)),
            weight,
            bias=bias,
            bias_value=bias_value,
            after=after,
            input_shape=dims(x),
            output_shape=dims((*after, node)[0].outputs[0]),
            packed=8 // bits,
            storage=Blocks(bits, block, zero_points is not None, np.dtype(stored), level),
        )

    @classmethod
    def timed(cls, layer: Layer) -> None:
        return None  # the dense layer would be timed as a MatMul

    @classmethod
    def stand_in(cls, node: ir.Node) -> None:
        as_product(node, int(attribute(node, "K", 0)), int(attribute(node, "N", 0)))

    @classmethod
    def parameter_roles(cls, op_type: str) -> ParameterRoles:
        return ParameterRoles()


def _constants(inputs: list[ir.Value | None], scope: Scope) -> dict[int, Constant] | str:
    """The operands but the activation, by position; or which of them is not constant."""
    found: dict[int, Constant] = {}
    names = {_B: "weight", _SCALES: "scales", _ZERO_POINTS: "zero points", _BIAS: "bias"}
    for position, name in names.items():
        value = inputs[position]
        if value is None and position not in (_B, _SCALES):
            continue
        constant = scope.constant(value)
        if isinstance(constant, str):
            return constant if position == _B else f"its {name}: {constant}"
        found[position] = constant
    return found
