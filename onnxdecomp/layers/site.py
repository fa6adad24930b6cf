"""Site and Skip: a decomposable operator in its graph, and an operator left alone with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.graph.attributes import named_output
from onnxdecomp.graph.constants import Constant, Memo, resolve
from onnxdecomp.graph.traversal import Place
from onnxdecomp.layers.storage import Storage

if TYPE_CHECKING:
    from onnxdecomp.core.chain import Chain
    from onnxdecomp.layers.emitter import Emitter

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Element types of weights that are decomposed."""


@dataclass(frozen=True, eq=False)
class Linear:
    """How a linear layer's activation and addend lie, apart from the canonical y = x WT + b.

    Attributes:
        left: The constant is the left operand: y = W x, features on the last axis but one.
        swapped: The activation is stored transposed: Gemm's transA (weight on the right) or transB (left).
        rotated: Its first axis is the last but one of the product's (before `swapped`): FusedMatMul's
            transBatchA or transBatchB.
        addend: A value added at the end that is no [T] bias: Gemm's C of another shape or computed.
        scale: What the addend is multiplied by: Gemm's beta.
        gemm: The operator was a Gemm (activations of rank 2).
    """

    left: bool = False
    swapped: bool = False
    rotated: bool = False
    addend: ir.Value | None = None
    scale: float = 1.0
    gemm: bool = False


@dataclass(frozen=True, eq=False)
class Fused:
    """What ONNX Runtime's optimizer has fused into a FusedConv or FusedGemm after the product.

    Attributes:
        attributes: The node's attributes that say so, "activation" and those that begin with "activation_".
        residual: FusedConv's Z, added before the activation, or None.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    residual: ir.Value | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A node as it was before it was replaced; an absent input is None."""

    domain: str
    op_type: str
    attributes: Mapping[str, Any]
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[str, ...]

    @staticmethod
    def of(node: ir.Node) -> Snapshot:
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        names = tuple(output.name or "" for output in node.outputs)
        return Snapshot(node.domain, node.op_type, attributes, tuple(node.inputs), names)


class Form(Protocol):
    """How an operator that is neither a convolution nor a product of matrices is linear in its weight."""

    @property
    def weight_at(self) -> int:
        """The weight's position among the operator's inputs."""
        ...

    @property
    def follow(self) -> tuple[int, ...]:
        """Positions of further inputs whose shape follows the activation's, such as initial states."""
        ...

    @property
    def rows(self) -> bool:
        """Whether the activation has the features on its last axis, so that its rows can be observed."""
        ...

    def obstacle(self, chain: Chain, layer: Layer) -> str | None:
        """Why the chain cannot take the operator's place, a phrase for people; None where it can."""
        ...

    def emit(self, chain: Chain, site: Site, emit: Emitter) -> None:
        """The chain's nodes."""
        ...

    def stored(self, weight: Array) -> Array:
        """The canonical weight in the operator's own layout."""
        ...

    def feeds(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        """Small random inputs by position: the activation, and those that may be computed."""
        ...


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
        linear: For Gemm and MatMul and their fused kinds.
        fused: For FusedConv and FusedGemm.
        form: For every operator that is neither a convolution nor a Gemm or MatMul.
        quantized: The weight is stored quantized, behind a DequantizeLinear or in the operator's own way.
        packed: Numbers of the weight in one element of what is stored.
        storage: How factors are stored when they are quantized again; None: as int8.
    """

    layer: Layer
    place: Place
    nodes: tuple[ir.Node, ...]
    x: ir.Value
    weight: ir.Value
    root: ir.Value
    bias: ir.Value | None = None
    linear: Linear | None = None
    fused: Fused | None = None
    form: Form | None = None
    quantized: bool = False
    packed: int = 1
    storage: Storage | None = None

    @property
    def kept_bytes(self) -> float | None:
        """Bytes of one number of a quantized weight as it is stored; None for any other weight."""
        tensor = ir.convenience.get_const_tensor(self.root) if self.quantized else None
        return None if tensor is None else tensor.dtype.itemsize / self.packed

    @property
    def requantizes(self) -> bool:
        """Whether its factors can be stored quantized as its weight was; int8 ones are of float32 only."""
        return self.quantized and (self.storage is not None or self.layer.dtype == "float32")

    @property
    def output(self) -> ir.Value:
        """The first output that is not left out, as a recurrent operator's may be."""
        return named_output(self.nodes[-1])

    def current(self) -> Site:
        """The site as its nodes read now: rewriting the layer before it gave its activation a new value."""

        def live(value: ir.Value) -> ir.Value:
            operands = [v for node in self.nodes for v in node.inputs if v is not None]
            return value if value in operands else next(v for v in operands if v.name == value.name)

        linear = self.linear
        if linear is not None and linear.addend is not None:
            linear = replace(linear, addend=live(linear.addend))
        fused = self.fused
        if fused is not None and fused.residual is not None:
            fused = replace(fused, residual=live(fused.residual))
        return replace(self, x=live(self.x), linear=linear, fused=fused)


@dataclass(frozen=True)
class Skip:
    """An operator with a weight that stays as it is, and why."""

    name: str
    op_type: str
    graph: str
    reason: str


@dataclass(frozen=True, eq=False)
class Scope:
    """What finding a site needs to know of the model, and what was resolved of it so far."""

    place: Place
    ir_version: int
    opset: int
    freeze: bool
    memo: Memo = field(default_factory=dict)

    def constant(self, value: ir.Value | None) -> Constant | str:
        """The constant behind a value, or why there is none."""
        if value is None:
            return "there is no such input"
        return resolve(
            value, ir_version=self.ir_version, freeze=self.freeze, opset=self.opset, memo=self.memo
        )


def working(array: Array) -> Array:
    """The weight in a type to compute in: float64 stays, everything else becomes float32."""
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
