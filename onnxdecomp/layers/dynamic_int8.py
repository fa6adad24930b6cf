"""Weights as int8 for activations that are rounded as they come: MatMulInteger behind DynamicQuantizeLinear.

What ONNX Runtime's `quantize_dynamic` makes of a product, with a scale for each column of the weight. Tables
have a scale for each row: so a table and a head that multiplies by its transpose hold the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Lookup, MatMul
from onnxdecomp.layers.storage import Integers, Rows

OLDEST_OPSET = 11
"""The first opset with DynamicQuantizeLinear."""


@dataclass(frozen=True)
class DynamicInt8:
    """The storage.

    Attributes:
        reduce_range: Weights use 7 of their 8 bits, for processors that add two products in 16.
    """

    reduce_range: bool = False

    @property
    def name(self) -> str:
        return "int8"

    @property
    def rounding(self) -> int:
        return 5000  # eight bits of the activation of every product: about a hundredth each

    def rounded(self, step: MatMul | Lookup) -> Array:
        q, scales = self._quantized(step.weight, 0 if isinstance(step, MatMul) else 1)
        return (q * scales).astype(step.weight.dtype)

    def stored(self, step: MatMul) -> Integers:
        q, scales = self._quantized(step.weight, 0)
        return Integers(q, scales.reshape(-1))

    def table(self, step: Lookup) -> Rows:
        return Rows(*self._quantized(step.weight, 1))

    def _quantized(self, weight: Array, along: int) -> tuple[Array, Array]:
        """The numbers, and their scales with one in place of the axis that shares them."""
        top = np.float32(64 if self.reduce_range else 127)
        weight = np.asarray(weight, np.float32)
        largest = np.max(np.abs(weight), axis=along, keepdims=True, initial=0)
        scales = np.where(largest > 0, largest / top, 1).astype(np.float32)
        # What underflows would divide by nothing.
        scales = np.where(scales > 0, scales, 1).astype(np.float32)
        return np.rint(weight / scales).clip(-top, top).astype(np.int8), scales
