"""Site and Skip: a decomposable operator in its graph, and an operator left alone with the reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxdecomp.graph.constants import Constant, resolve
from onnxdecomp.graph.walk import Place
from onnxdecomp.layer import Array, Dim, Layer

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Element types of weights that are decomposed."""


@dataclass(frozen=True, eq=False)
class Linear:
    """How a linear layer's activation and addend lie, apart from the canonical y = x WT + b.

    Attributes:
        left: The constant is the left operand: y = W x, features on the last axis but one.
        swapped: The activation is stored transposed: Gemm's transA (weight on the right) or transB (left).
        addend: A value added at the end that is no [T] bias: Gemm's C of another shape or computed.
        scale: What the addend is multiplied by: Gemm's beta.
        gemm: The operator was a Gemm (activations of rank 2).
    """

    left: bool = False
    swapped: bool = False
    addend: ir.Value | None = None
    scale: float = 1.0
    gemm: bool = False


@dataclass(frozen=True, eq=False)
class Site:
    """A layer and the graph objects around it.

    Attributes:
        layer: The plain value that methods see.
        place: The graph or function that the operator stands in.
        nodes: What a chain replaces, in order; the last one's name and output survive.
        x: The activation.
        weight: The operand that holds the weight (before any Transpose, Cast, … behind it is resolved).
        root: The value that stores it: layers with the same root and transformations share factors.
        bias: The constant bias as the graph has it, or None.
        linear: For Gemm and MatMul.
    """

    layer: Layer
    place: Place
    nodes: tuple[ir.Node, ...]
    x: ir.Value
    weight: ir.Value
    root: ir.Value
    bias: ir.Value | None = None
    linear: Linear | None = None

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    def current(self) -> Site:
        """The site as its nodes read now: rewriting the layer before it gave its activation a new value."""

        def live(value: ir.Value) -> ir.Value:
            operands = [v for node in self.nodes for v in node.inputs if v is not None]
            return value if value in operands else next(v for v in operands if v.name == value.name)

        linear = self.linear
        if linear is not None and linear.addend is not None:
            linear = replace(linear, addend=live(linear.addend))
        return replace(self, x=live(self.x), linear=linear)


@dataclass(frozen=True)
class Skip:
    """An operator with a weight that stays as it is, and why."""

    name: str
    op_type: str
    graph: str
    reason: str


@dataclass(frozen=True, eq=False)
class Scope:
    """What finding a site needs to know of the model."""

    place: Place
    ir_version: int
    opset: int
    freeze: bool

    def constant(self, value: ir.Value | None) -> Constant | str:
        """The constant behind a value, or why there is none."""
        if value is None:
            return "there is no such input"
        return resolve(value, ir_version=self.ir_version, freeze=self.freeze, opset=self.opset)


def node_name(node: ir.Node) -> str:
    """The node's name, or one made from its output where it has none."""
    return node.name or f"{node.op_type}_{node.outputs[0].name}"


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


def working(array: Array) -> Array:
    """The weight in a type to compute in: float64 stays, everything else becomes float32."""
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's Python value, or the default where it is absent."""
    found = node.attributes.get(name)
    return default if found is None else found.value
