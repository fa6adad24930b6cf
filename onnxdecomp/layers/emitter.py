"""Emitter: collects the nodes and the constants that a chain becomes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import as_attributes
from onnxdecomp.layers.int8_weights import quantize
from onnxdecomp.layers.storage import Storage, Stored


@dataclass(frozen=True)
class Share:
    """The factors that a layer gets, as far as it may have them in common with others.

    Attributes:
        key: Equal for layers of a model that get the same factors.
        flipped: The layer's chain is the mirror image of the one that the factors make.
        turned: Its operators multiply by the transposes of the factors.
    """

    key: Hashable
    flipped: bool = False
    turned: bool = False


@dataclass(eq=False)
class Emitter:
    """Collects the nodes of one chain.

    Attributes:
        constant: Makes a graph constant of an array: (array, wanted name, key or None) -> value. Arrays with
            the same key are stored once.
        unique: Makes a node or value name unique.
        name: The layer's name; parts are called name/label.
        share: What layers with the same factors have in common, or None for a layer with its own.
        mirror: For a share that is flipped, the label that the factor of a label was stored with.
        graph: The graph or function that the nodes go into.
        opset: Its opset.
        quantize: Factors are stored as int8 (see onnxdecomp.layers.int8_weights).
        storage: How products of matrices and tables are stored then, where it is not as plain int8.
    """

    constant: Callable[[Array, str, object], ir.Value]
    unique: Callable[[str], str]
    name: str
    dtype: ir.DataType
    metadata: dict[str, str]
    share: Share | None = None
    mirror: Mapping[str, str] = field(default_factory=dict)
    quantize: bool = False
    storage: Storage | None = None
    graph: ir.Graph | ir.Function | None = None
    opset: int = 17
    nodes: list[ir.Node] = field(default_factory=list)

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        label: str,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> ir.Value:
        """Add a node and return its first output; further ones get their names when it takes its place."""
        name = self.unique(f"{self.name}/{label}")
        out = ir.Value(name=self.unique(f"{name}_output"), type=ir.TensorType(self.dtype))
        node = ir.node(
            op_type,
            inputs,
            attributes=as_attributes(attributes),
            domain=domain,
            outputs=[out, *(ir.Value(name="") for _ in range(outputs - 1))],
            name=name,
            metadata_props={**self.metadata, "pkg.onnxdecomp.part": label},
        )
        self.nodes.append(node)
        return out

    def integers(self, values: list[int], name: str) -> ir.Value:
        return self.constant(np.array(values, np.int64), f"{self.name}/{name}", None)

    def weight(self, array: Array, label: str, axis: int) -> ir.Value:
        """A factor; its output channels are along `axis`, which matters where it is quantized."""
        if self.quantize:
            return self.dequantized(*self.quantized(array, label, axis), label, axis)
        turned = self.share is not None and self.share.turned
        stored = np.ascontiguousarray(array.T if turned else array).astype(self.dtype.numpy(), copy=False)
        value = self._shared(stored, f"{self.name}/{label}.weight", self.mirror.get(label, label))
        return self.add("Transpose", [value], f"{label}.turned", perm=(1, 0)) if turned else value

    def quantized(self, array: Array, label: str, axis: int) -> tuple[ir.Value, ir.Value]:
        """A factor as int8, and its scales."""
        stored, scales = quantize(np.ascontiguousarray(array), axis)
        name = f"{self.name}/{label}.weight"
        return self._shared(stored, name, (label, axis)), self._shared(scales, f"{name}_scale", label)

    def dequantized(self, stored: ir.Value, scales: ir.Value, label: str, axis: int) -> ir.Value:
        return self.add("DequantizeLinear", [stored, scales], f"{label}.dequantized", axis=axis)

    @property
    def multiplies(self) -> Storage | None:
        """The storage of products of matrices, where it is a kind of its own."""
        return self.storage if self.quantize else None

    def operator(self, found: Stored, x: ir.Value, label: str) -> ir.Value:
        """Add the operator of a factor that is stored in its own way."""
        of = (found.op_type, *found.attributes.items())
        parts = [self.part(part, label, end, of) for end, part in found.parts.items()]
        operands = [*parts[: found.x_at], x, *parts[found.x_at :]]
        return self.add(found.op_type, operands, label, found.domain, **found.attributes)

    def part(self, array: Array, label: str, end: str, of: object = "") -> ir.Value:
        """A part of a factor that is stored in several, shared by those that are stored alike."""
        return self._shared(array, f"{self.name}/{label}.weight{end}", (label, end, of))

    def _shared(self, array: Array, name: str, part: object) -> ir.Value:
        key = None if self.share is None else (self.share.key, part, array.shape)
        return self.constant(array, name, key)

    def bias(
        self, chain: Chain, own: ir.Value | None, shape: tuple[int, ...] | None = None
    ) -> ir.Value | None:
        """The chain's bias; the value `own`, which has the same numbers, where it needs no new shape."""
        if chain.bias is None:
            return None
        array = chain.bias if shape is None else chain.bias.reshape(shape)
        if own is not None and _shape(own) == array.shape:
            return own
        return self.constant(array.astype(self.dtype.numpy()), f"{self.name}/bias", None)


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return tuple(int(dim) for dim in value.shape)  # type: ignore[arg-type]
