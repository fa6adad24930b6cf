"""The operators, as tables of small functions: one module per kind."""

from __future__ import annotations

from collections.abc import Mapping

from onnxdecomp.training.autograd.call import Operator
from onnxdecomp.training.autograd.operators import (
    arithmetic,
    control,
    convolution,
    elementwise,
    fused,
    indexing,
    normalisation,
    pooling,
    products,
    quantized,
    recurrent,
    reduction,
    resize,
    shape,
)

ONNX = ("", "ai.onnx")
"""The names of the ONNX domain."""


def operators() -> Mapping[tuple[str, str], Operator]:
    """All operators by domain and type."""
    modules = (
        *(arithmetic, control, convolution, elementwise, indexing, normalisation, pooling, products),
        *(quantized, recurrent, reduction, resize, shape),
    )
    found = {("", name): operator for module in modules for name, operator in module.TABLE.items()}
    return {**found, **{("com.microsoft", name): operator for name, operator in fused.TABLE.items()}}
