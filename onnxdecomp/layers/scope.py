"""What finding a layer reads of a model: constants behind values, weights; and a node as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array
from onnxdecomp.graph.constants import Constant, Memo, resolve
from onnxdecomp.graph.traversal import Place

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Element types of weights that are decomposed."""

MICROSOFT = "com.microsoft"
"""The domain of the operators that ONNX Runtime's optimizer writes."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant operand in a type of FLOATS: the value as the operator reads it, and its numbers."""

    value: ir.Value
    constant: Constant

    @property
    def array(self) -> Array:
        return self.constant.array


@dataclass(frozen=True, eq=False)
class Scope:
    """What finding a layer needs to know of the model, and what was resolved of it so far."""

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

    def weight(self, value: ir.Value | None) -> Weight | str:
        """The constant behind a value as a weight, or why it is none."""
        found = self.constant(value)
        if isinstance(found, str):
            return found
        assert value is not None
        if found.dtype not in FLOATS:
            return f"its weight has element type {found.dtype}"
        return Weight(value, found)


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


def working(array: Array) -> Array:
    """The weight in a type to compute in: float64 stays, everything else becomes float32."""
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
