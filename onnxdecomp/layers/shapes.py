"""Shapes of activations, those behind the operators of layers that ONNX's inference does not know too."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.graph import shape_inference
from onnxdecomp.graph.inferred import mark_inferred
from onnxdecomp.layers.registry import adapters


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and types of values, in place (see onnxdecomp.graph.shape_inference)."""
    known = adapters().by_operator.items()
    shape_inference.infer_shapes(model, {key: adapter.stand_in for key, adapter in known if key[0]})
    mark_inferred(model)
