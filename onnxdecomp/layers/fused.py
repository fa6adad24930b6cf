"""What ONNX Runtime's optimizer fuses with a layer after its product: FusedConv and FusedGemm have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class Fused:
    """What a node does after the product.

    Attributes:
        attributes: The node's attributes that say so, "activation" and those that begin with "activation_".
        residual: A value added before the activation, or None.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    residual: ir.Value | None = None

    @staticmethod
    def of(node: ir.Node) -> Fused | None:
        """What a node of com.microsoft does; None where that is nothing."""
        attributes = {
            name: attr.value
            for name, attr in node.attributes.items()
            # An empty list has no type, and says as much as no attribute.
            if name.startswith("activation") and attr.value not in ("", ())
        }
        residual = node.inputs[3] if len(node.inputs) > 3 else None
        if "activation" not in attributes and residual is None:
            return None
        return Fused(attributes, residual)

    @property
    def activation(self) -> tuple[str, dict[str, Any]]:
        """The operator that is applied to the product, and its attributes."""
        own = {name.removeprefix("activation_"): value for name, value in self.attributes.items()}
        return own.pop("activation"), own
