"""The kinds of linear steps that chains are made of: one class each, lowered in onnxdecomp.layers.lower."""

from onnxdecomp.core.steps.base import Shape, Step, WeightedStep
from onnxdecomp.core.steps.convolution import Convolve, pointwise
from onnxdecomp.core.steps.layout import (
    Pad,
    PermuteChannels,
    RegroupBatch,
    RegroupSpatial,
    Reshape,
    Slice,
    Transpose,
)
from onnxdecomp.core.steps.product import BlockMatMul, LeftMatMul, Lookup, MatMul

__all__ = [
    "BlockMatMul",
    "Convolve",
    "LeftMatMul",
    "Lookup",
    "MatMul",
    "Pad",
    "PermuteChannels",
    "RegroupBatch",
    "RegroupSpatial",
    "Reshape",
    "Shape",
    "Slice",
    "Step",
    "Transpose",
    "WeightedStep",
    "pointwise",
]
