"""Products of int8 weights with activations that are quantized as they come, as a layer.

MatMulInteger behind DynamicQuantizeLinear and before Cast and Mul is what ONNX Runtime's `quantize_dynamic`
writes; its optimizer makes DynamicQuantizeMatMul of it, or MatMulIntegerToFloat where several products read
one quantized activation. All are y = (B - zero point) scale, times x rounded to eight bits by its own range.
Factors are stored as onnxdecomp.layers.dynamic_int8 does it, which the optimizer fuses likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.graph.attributes import dims
from onnxdecomp.graph.constants import Constant
from onnxdecomp.graph.stand_ins import as_product
from onnxdecomp.layers.adapter import FeatureAxes, LayerMatch, ParameterRoles
from onnxdecomp.layers.dynamic_int8 import DynamicInt8
from onnxdecomp.layers.linear import Linear
from onnxdecomp.layers.operands import bias_after, only_reader
from onnxdecomp.layers.scope import FLOATS, MICROSOFT, Scope, Snapshot, Weight, working

_B = 1

_ELSEWHERE = "its activation is not quantized as it comes, by a DynamicQuantizeLinear"


@dataclass(frozen=True, eq=False)
class _Form:
    """Where an operator has what, by position.

    Attributes:
        scale: Of the weight's scales; None: they come behind it.
        zero_point: Of the weight's zero points.
        activation: Of the activation's scale and zero point, as far as it reads them.
        bias: Of a bias.
    """

    scale: int | None
    zero_point: int
    activation: tuple[int, ...] = ()
    bias: int | None = None


_FORMS = {
    "MatMulInteger": _Form(None, 3, (2,)),
    "MatMulIntegerToFloat": _Form(3, 5, (2, 4), 6),
    "DynamicQuantizeMatMul": _Form(2, 3, (), 4),
}


@dataclass(frozen=True, eq=False)
class DynamicProduct(Linear):
    """The adapter of products with int8 weights: once the weight is read, one like the others."""

    operators = (
        ("", "MatMulInteger"),
        (MICROSOFT, "MatMulIntegerToFloat"),
        (MICROSOFT, "DynamicQuantizeMatMul"),
    )
    per_channel = frozenset()

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str:
        """The layer of a node with the scales and the bias that come behind it; or why it is none."""
        form = _FORMS[node.op_type]
        given = [*node.inputs, *[None] * (8 - len(node.inputs))]
        first, value = given[0], given[_B]
        assert first is not None
        assert value is not None
        quantized = _quantized(first, [given[at] for at in form.activation]) if form.activation else None
        if form.activation and quantized is None:
            return _ELSEWHERE
        x = first if quantized is None else quantized.inputs[0]
        assert x is not None
        numbers = scope.constant(value)
        if isinstance(numbers, str):
            return numbers
        if numbers.array.ndim != 2 or numbers.dtype not in ("int8", "uint8"):
            return f"its weight has {numbers.array.ndim} axes of type {numbers.dtype}"
        after: tuple[ir.Node, ...] = ()
        scale = None if form.scale is None else given[form.scale]
        if form.scale is None:
            assert quantized is not None
            behind = _scaled(node, quantized)
            if behind is None:
                return "its result is not multiplied by the scales of its operands right behind it"
            scale, after = behind
        weight = _weight(numbers, scale, given[form.zero_point], scope)
        if isinstance(weight, str):
            return weight
        outputs = weight.shape[1]
        bias, bias_value = None, None if form.bias is None else given[form.bias]
        if bias_value is not None:
            found = scope.constant(bias_value)
            if isinstance(found, str):
                return f"its bias: {found}"
            bias = working(found.array).reshape(outputs)
        elif added := bias_after((node, *after)[-1], outputs, scope):
            add, bias_value, vector = added
            after, bias = (*after, add), working(vector)
        return cls().layer_match(
            node,
            scope,
            x,
            Weight(value, replace(numbers, dtype="float32")),
            weight.T,
            bias=bias,
            bias_value=bias_value,
            after=after,
            input_shape=dims(x),
            output_shape=dims((node, *after)[-1].outputs[0]),
            storage=DynamicInt8(),
            through=None if quantized is None else first,
        )

    @classmethod
    def timed(cls, layer: Layer) -> None:
        return None  # the dense layer would be timed as a MatMul

    @classmethod
    def output_channels(cls, node: ir.Node, shape: tuple[int, ...]) -> None:
        return None

    def feature_axes(self, node: ir.Node) -> FeatureAxes | None:
        return None

    def probe_inputs(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        return {0: super().probe_inputs(layer, node, rng)[0]}

    @classmethod
    def stand_in(cls, node: ir.Node) -> None:
        value = node.inputs[_B]
        shape = None if value is None else dims(value)
        if node.op_type != "MatMulInteger" and shape is not None and len(shape) == 2:
            features, outputs = shape
            if isinstance(features, int) and isinstance(outputs, int):
                as_product(node, features, outputs)

    @classmethod
    def parameter_roles(cls, op_type: str) -> ParameterRoles:
        return ParameterRoles()


def _quantized(first: ir.Value, others: Sequence[ir.Value | None]) -> ir.Node | None:
    """The DynamicQuantizeLinear that makes the activation and these further operands of a product."""
    node = first.producer()
    if node is None or (node.domain, node.op_type) != ("", "DynamicQuantizeLinear"):
        return None
    expected = [node.outputs[2]] if len(others) == 1 else list(node.outputs[1:])
    return node if first is node.outputs[0] and list(others) == expected else None


def _scaled(node: ir.Node, quantized: ir.Node) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """The weight's scales, and what scales a MatMulInteger's result: None where that is not behind it."""
    cast = only_reader(node.outputs[0], "Cast")
    product = None if cast is None else only_reader(cast.outputs[0], "Mul")
    if cast is None or product is None:
        return None
    factor = next((value for value in product.inputs if value is not cast.outputs[0]), None)
    scales = None if factor is None else factor.producer()
    own = quantized.outputs[1]
    if scales is None or (scales.domain, scales.op_type) != ("", "Mul") or own not in scales.inputs:
        return None
    weight = next((value for value in scales.inputs if value is not own), None)
    alone = only_reader(scales.outputs[0], "Mul") is product
    return None if weight is None else (weight, (*([scales] if alone else []), cast, product))


def _weight(
    numbers: Constant, scale: ir.Value | None, zero_point: ir.Value | None, scope: Scope
) -> Array | str:
    """The weight [K, N] in float32, or why it cannot be read."""
    scales = scope.constant(scale)
    if isinstance(scales, str):
        return f"its scales: {scales}"
    if scales.dtype not in FLOATS:
        return f"its scales have element type {scales.dtype}"
    weight = numbers.array.astype(np.float32)
    outputs = weight.shape[1]
    if zero_point is not None:
        points = scope.constant(zero_point)
        if isinstance(points, str):
            return f"its zero points: {points}"
        if points.array.size not in (1, outputs):
            return "its zero points do not have the sizes that its weight says"
        weight -= points.array.astype(np.float32).reshape(-1)
    if scales.array.size not in (1, outputs):
        return "its scales do not have the sizes that its weight says"
    weight *= scales.array.astype(np.float32).reshape(-1)
    return weight
