"""The inputs that a layer is run alone on: seeded random numbers of shapes that its graph could give it."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.layers.lowering_check.submodel import constant
from onnxdecomp.layers.replace import Rewritten

Inputs: TypeAlias = tuple[tuple[ir.Value, Array], ...]
"""The values that a layer is given, each with numbers for it."""


def probe_inputs(rewritten: Rewritten, rng: np.random.Generator) -> Inputs:
    """Numbers for the activation, the inputs that follow its shape, and others that are not constant."""
    match, adapter = rewritten.match, rewritten.match.adapter
    numbers = adapter.probe_inputs(match.layer, rewritten.before, rng)
    given: dict[int, tuple[ir.Value, Array]] = {}
    for position, operand in enumerate(rewritten.before.inputs):
        if operand is None or position not in numbers or id(operand) in given:
            continue
        if operand is match.x or position in adapter.follow or constant(operand) is None:
            array = numbers[position]
            kind = stored_type(match.layer) if array.dtype.kind == "f" else array.dtype
            given[id(operand)] = (operand, array.astype(kind))
    return tuple(given.values())


def stored_type(layer: Layer) -> np.dtype[Any]:
    """The element type of the layer's weight and activations in the model."""
    return np.dtype(ir.DataType.BFLOAT16.numpy() if layer.dtype == "bfloat16" else layer.dtype)
