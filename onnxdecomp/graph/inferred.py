"""Whether shapes of a model are inferred already: of a graph of thousands of nodes that takes seconds."""

from __future__ import annotations

import onnx_ir as ir

_KEY = "onnxdecomp.inferred"


def is_inferred(model: ir.Model) -> bool:
    """Whether shapes were inferred since a pass last changed the model."""
    return model.meta.get(_KEY) is True


def mark_inferred(model: ir.Model) -> None:
    """Shapes were inferred."""
    model.meta[_KEY] = True


def forget_inferred(model: ir.Model) -> None:
    """The model was changed, in place."""
    model.meta.pop(_KEY, None)
