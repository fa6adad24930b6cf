"""Gemm, MatMul and MatMul + Add as layers, FusedGemm and FusedMatMul too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Dim, Layer
from onnxdecomp.core.steps import LeftMatMul, MatMul, Step
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.graph.inherit import inherit_node, inherit_value
from onnxdecomp.graph.stand_ins import unfuse
from onnxdecomp.layers.adapter import (
    FeatureAxes,
    LayerAdapter,
    LayerMatch,
    Operator,
    OutputChannels,
    ParameterRoles,
)
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.fused import Fused
from onnxdecomp.layers.lower import labels, lower, own_bias
from onnxdecomp.layers.lowering_check.submodel import run_one
from onnxdecomp.layers.operands import bias_after, gemm_bias, operands
from onnxdecomp.layers.scope import MICROSOFT, Scope, Snapshot, working

_GEMMS = ("Gemm", "FusedGemm")
_ADDEND = 2
"""The position of a Gemm's C."""

_MOST_ROWS = 8
_LARGEST_DENSE = 2**23
"""Elements from which a dense weight is not formed: it would take longer than all the rest of the check."""


@dataclass(frozen=True, eq=False)
class Linear(LayerAdapter):
    """The adapter of products of matrices: how activation and addend lie, apart from y = x WT + b.

    Attributes:
        swapped: The activation is stored transposed: Gemm's transA (weight on the right) or transB (left).
        rotated: Its first axis is the last but one of the product's (before `swapped`): FusedMatMul's
            transBatchA or transBatchB.
        addend: A value added at the end that is no [T] bias: Gemm's C of another shape or computed.
        scale: What the addend is multiplied by: Gemm's beta.
        gemm: The operator was a Gemm (activations of rank 2).
        fused: What a FusedGemm does after the product.
    """

    operators: ClassVar[tuple[Operator, ...]] = (
        ("", "Gemm"),
        ("", "MatMul"),
        (MICROSOFT, "FusedGemm"),
        (MICROSOFT, "FusedMatMul"),
    )
    has_rows = True
    per_channel = frozenset(("Gemm", "MatMul"))

    swapped: bool = False
    rotated: bool = False
    addend: ir.Value | None = None
    scale: float = 1.0
    gemm: bool = False
    fused: Fused | None = None
    follow: tuple[int, ...] = field(default=(_ADDEND,), kw_only=True)

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str:
        return _gemm_match(node, scope) if node.op_type in _GEMMS else _matmul_match(node, scope)

    def obstacle(self, chain: Chain, layer: Layer) -> str | None:
        needs_rank = not chain.any_rank or self.swapped or self.rotated
        return "the rank of its activation is unknown" if needs_rank and layer.input_shape is None else None

    def lower(self, chain: Chain, match: LayerMatch, emit: Emitter) -> None:
        plain = all(isinstance(step, MatMul) for step in chain.steps)
        x = match.x
        rank = None if match.layer.input_shape is None else len(match.layer.input_shape)
        multiply_left = self.left and plain
        x = _as_multiplied(x, rank, self.rotated, self.swapped != (self.left and not plain), emit)
        gemm_last = self.gemm and not self.left and isinstance(chain.steps[-1], MatMul)
        gemm_last = gemm_last and emit.multiplies is None  # these operators add nothing
        names = labels(chain)
        for index, (step, label) in enumerate(zip(chain.steps, names, strict=True)):
            if isinstance(step, MatMul) and gemm_last and index == len(chain.steps) - 1:
                self._gemm(step, x, label, chain, match, emit)
                return
            x = lower(_from_the_left(step) if multiply_left else step, x, rank, label, emit)
        if self.left and not plain:
            x = _as_multiplied(x, rank, False, True, emit, "untransposed")
        if chain.bias is not None:
            bias = emit.bias(chain, own_bias(match, chain), (-1, 1) if self.left else None)
            assert bias is not None
            x = emit.add("Add", [x, bias], "bias")
        if self.addend is not None:
            x = emit.add("Add", [x, _scaled(self.addend, self.scale, emit)], "addend")
        if self.fused is not None:
            op_type, attributes = self.fused.activation
            emit.add(op_type, [x], "activation", **attributes)

    def _gemm(
        self, step: MatMul, x: ir.Value, label: str, chain: Chain, match: LayerMatch, emit: Emitter
    ) -> None:
        """The last product of a Gemm's chain, its bias or C along with it."""
        weight = emit.weight(step.weight, label, axis=1)
        bias = emit.bias(chain, own_bias(match, chain))
        last = bias if bias is not None else self.addend
        scale: dict[str, Any] = {"beta": self.scale} if bias is None and last is not None else {}
        inputs = [x, weight] if last is None else [x, weight, last]
        if self.fused is not None:
            emit.add("FusedGemm", inputs, label, MICROSOFT, **scale, **self.fused.attributes)
        elif last is not None:
            emit.add("Gemm", inputs, label, **scale)
        else:
            emit.add("MatMul", [x, weight], label)

    @property
    def reads_as_stored(self) -> bool:
        return not (self.swapped or self.rotated)

    def live(self, now: Callable[[ir.Value], ir.Value]) -> Linear:
        return self if self.addend is None else replace(self, addend=now(self.addend))

    def stored(self, weight: Array, layer: Layer) -> Array:
        return weight if self.left else weight.swapaxes(-1, -2)

    def probe_inputs(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        shape = self._small_shape(layer)
        inputs = {1 - self.weight_at: rng.standard_normal(shape)}
        if self.addend is not None:
            y = np.empty((*self.rows(np.empty(shape)).shape[:-1], layer.outputs))
            full = y.swapaxes(-1, -2).shape if self.left else y.shape
            inputs[_ADDEND] = np.asarray(rng.standard_normal(full))
        return inputs

    def _small_shape(self, layer: Layer) -> tuple[int, ...]:
        """A shape that the layer's own activation could have, small enough to be quick."""
        shape = list(layer.assumed_input_shape(batch=2))
        stack = layer.weight.ndim - 2
        for axis in range(len(shape) - 1):
            if axis < len(shape) - 2 - stack or axis == len(shape) - 2:
                shape[axis] = min(shape[axis], _MOST_ROWS)
        for axis in range(stack):  # a stack of matrices fixes these
            position = len(shape) - 2 - stack + axis
            if position >= 0:
                shape[position] = int(layer.weight.shape[axis])
        if self.left != self.swapped:
            shape[-1], shape[-2] = shape[-2], shape[-1]
        if self.rotated:
            shape = [shape[-2], *shape[:-2], shape[-1]]
        return tuple(shape)

    def reference(
        self, match: LayerMatch, chain: Chain, feeds: Mapping[str, Array], opset: int, ir_version: int
    ) -> Array:
        features = self.rows(feeds[match.x.name or ""]).astype(np.float64)
        y = _product(chain, match.layer, features)
        if chain.bias is not None:
            y = y + chain.bias
        if self.left:
            y = np.swapaxes(y, -1, -2)
        if self.addend is not None:
            y = y + self.scale * feeds[self.addend.name or ""].astype(np.float64)
        if self.fused is None:
            return np.asarray(y)
        op_type, attributes = self.fused.activation
        operand = np.asarray(y).astype(np.float64 if match.layer.dtype == "float64" else np.float32)
        return run_one("", op_type, attributes, [("x", operand)], ("x",), ("y",), opset, ir_version)

    def rows(self, x: Array) -> Array:
        if self.rotated:
            x = np.moveaxis(x, 0, -2)
        return x.swapaxes(-1, -2) if self.left != self.swapped else x

    def takes_bias(self, layer: Layer) -> bool:
        return layer.bias is not None

    @property
    def is_plain(self) -> bool:
        return self.fused is None

    @property
    def fuses_activation(self) -> bool:
        return self.gemm and self.fused is None

    @classmethod
    def timed(cls, layer: Layer) -> Linear | None:
        return cls(gemm=layer.op_type in _GEMMS)

    @classmethod
    def output_channels(cls, node: ir.Node, shape: tuple[int, ...]) -> OutputChannels | None:
        # Of more than two dimensions, a Gemm could not take it; and axis 1 is not the features.
        if node.domain == MICROSOFT or len(shape) != 2:
            return None
        if node.op_type == "MatMul" and (node.inputs[0] is None or len(dims(node.inputs[0]) or ()) != 2):
            return None
        if node.op_type in _GEMMS and attribute(node, "transB", 0):
            return OutputChannels(shape[0], 2, shape, (shape[0], 1))
        return OutputChannels(shape[1], 2, shape, (1, shape[1]))

    def feature_axes(self, node: ir.Node) -> FeatureAxes | None:
        side = "A" if self.left else "B"
        turned = bool(attribute(node, f"trans{side}", 0))
        if self.rotated or attribute(node, f"transBatch{side}", 0):
            return None
        features, rows = (-1, -2) if self.left != turned else (-2, -1)
        x, y = (-2, -2) if self.left else (-1, -1)
        return FeatureAxes(-3 - x if self.swapped else x, y, inputs=features, outputs=rows)

    @classmethod
    def with_bias(cls, node: ir.Node) -> ir.Node:
        return _as_gemm(node) if node.op_type == "MatMul" else node

    @classmethod
    def stand_in(cls, node: ir.Node) -> None:
        turned = any(attr.value for name, attr in node.attributes.items() if name.startswith("trans"))
        if node.op_type == "FusedGemm":
            unfuse(node, "Gemm")
        elif not turned:
            unfuse(node, "MatMul", attributes=False)

    @classmethod
    def parameter_roles(cls, op_type: str) -> ParameterRoles:
        return ParameterRoles(weights=(0, 1), biases=(_ADDEND,) if op_type in _GEMMS else ())

    @classmethod
    def is_matrix(cls, node: ir.Node, shape: Sequence[int]) -> bool:
        return len(shape) == 2

    @classmethod
    def fan_in(cls, node: ir.Node, shape: Sequence[int]) -> int:
        if node.op_type in _GEMMS:
            return shape[1] if attribute(node, "transB", 0) else shape[0]
        return shape[-2]


def _product(chain: Chain, layer: Layer, features: Array) -> Array:
    """The chain's weight applied to features [*lead, S]; of a very large one, step by step instead."""
    if layer.weight.size > _LARGEST_DENSE and not layer.is_stack:
        rows = chain.forward(features.reshape(-1, features.shape[-1]))
        return rows.reshape(*features.shape[:-1], -1)
    return features @ chain.dense().swapaxes(-1, -2).astype(np.float64)


def _gemm_match(node: ir.Node, scope: Scope) -> LayerMatch | str:
    """The match of a Gemm or FusedGemm, alpha folded into the weight, beta into a [T] bias; or why not."""
    operand = operands(node, scope)
    if isinstance(operand, str):
        return operand
    alpha = float(attribute(node, "alpha", 1.0))
    beta = float(attribute(node, "beta", 1.0))
    trans = (bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0)))
    # y = A' B': with the weight on the right the canonical weight is B'T, on the left it is A'.
    flipped = trans[0] if operand.left else not trans[1]
    array = operand.source.array
    weight = working(array.T if flipped else array)
    if alpha != 1.0:
        weight = weight * weight.dtype.type(alpha)
    swapped = trans[1] if operand.left else trans[0]
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias, addend = gemm_bias(bias_value, beta, weight.shape[0], operand.left, scope)
    shape = dims(operand.x)
    if swapped != operand.left and shape is not None:
        shape = _swap(shape)
    adapter = Linear(
        swapped,
        addend=addend,
        scale=beta,
        gemm=True,
        fused=Fused.of(node) if node.domain == MICROSOFT else None,
        left=operand.left,
        weight_at=0 if operand.left else 1,
    )
    return adapter.layer_match(
        node,
        scope,
        operand.x,
        operand.source,
        weight,
        bias=bias,
        bias_value=bias_value if bias is not None and beta == 1.0 else None,
        input_shape=shape or (None, int(weight.shape[1])),
        output_shape=dims(node.outputs[0]),
    )


def _matmul_match(node: ir.Node, scope: Scope) -> LayerMatch | str:
    """The match of a MatMul or FusedMatMul, with the Add of a constant bias after it where there is one.

    FusedMatMul's alpha is folded into the weight; what it transposes of the constant is transposed here.
    """
    operand = operands(node, scope)
    if isinstance(operand, str):
        return operand
    array = operand.source.array
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
    after: tuple[ir.Node, ...] = ()
    bias, bias_value = None, None
    if not operand.left and (fused := bias_after(node, int(weight.shape[-2]), scope)):
        add, bias_value, vector = fused
        after, bias = (add,), working(vector)
    adapter = Linear(swapped, rotated, left=operand.left, weight_at=at)
    return adapter.layer_match(
        node,
        scope,
        operand.x,
        operand.source,
        weight,
        bias=bias,
        bias_value=bias_value,
        after=after,
        input_shape=shape,
        output_shape=dims((*after, node)[0].outputs[0]),
    )


def _swap(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return (*shape[:-2], shape[-1], shape[-2])


def _from_the_left(step: Step) -> Step:
    """The product with the operands exchanged, for an activation that is transposed."""
    return LeftMatMul(step.weight.swapaxes(-1, -2)) if isinstance(step, MatMul) else step


def _as_multiplied(
    x: ir.Value, rank: int | None, rotate: bool, swap: bool, emit: Emitter, label: str = "transposed"
) -> ir.Value:
    """The activation with its axes where the product has them."""
    if not (rotate or swap):
        return x
    if rank is None:
        raise ModelError(f"{emit.name}: the rank of its activation is unknown; use a method without reshapes")
    perm = [*range(1, rank - 1), 0, rank - 1] if rotate else list(range(rank))
    if swap:
        perm[-2:] = perm[:-3:-1]
    return emit.add("Transpose", [x], label, perm=tuple(perm))


def _scaled(value: ir.Value, scale: float, emit: Emitter) -> ir.Value:
    if scale == 1.0:
        return value
    factor = emit.constant(np.array(scale, emit.dtype.numpy()), f"{emit.name}/beta", None)
    return emit.add("Mul", [value, factor], "scaled")


def _as_gemm(matmul: ir.Node) -> ir.Node:
    """A Gemm in the place of a MatMul of two-dimensional operands, under its name."""
    gemm = ir.node("Gemm", list(matmul.inputs), name=matmul.name)
    inherit_node(gemm, matmul)
    new, old, graph = gemm.outputs[0], matmul.outputs[0], matmul.graph
    assert graph is not None
    graph.insert_before(matmul, gemm)
    new.name = old.name
    inherit_value(new, old)
    old.replace_all_uses_with(new)
    graph.remove(matmul, safe=True)
    return gemm
