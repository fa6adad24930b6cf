"""Factors stored as int8, symmetric, with one scale for each output channel.

The largest magnitude of a channel becomes 127. This is the plain rounding of weights of the quantization
literature (Jacob et al. 2018, arXiv:1712.05877, with zero point 0); activations stay in floating point.
"""

from __future__ import annotations

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Convolve, Lookup, MatMul, WeightedStep
from onnxdecomp.layers.conv_layout import canonical_transposed, onnx_transposed
from onnxdecomp.layers.storage import Storage

OLDEST_OPSET = 13
"""The first opset whose DequantizeLinear has a scale for each channel."""


def quantize(array: Array, axis: int) -> tuple[Array, Array]:
    """The array as int8 of the same shape and float32 scales [channels] along `axis`."""
    others = tuple(k for k in range(array.ndim) if k != axis % array.ndim)
    largest = np.abs(array).max(axis=others, keepdims=True).astype(np.float32)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    return np.rint(array / scales).clip(-127, 127).astype(np.int8), scales.reshape(-1)


def dequantize(quantized: Array, scales: Array, axis: int) -> Array:
    """What DequantizeLinear makes of them, float32."""
    shape = [1] * quantized.ndim
    shape[axis] = -1
    return quantized * scales.reshape(shape)


def on_grid(chain: Chain, storage: Storage | None = None) -> Chain:
    """The chain with its factors as int8, or the storage, represents them: what the nodes compute."""
    return chain.with_weights(lambda step: _rounded(step, storage))


def _rounded(step: WeightedStep, storage: Storage | None) -> Array:
    if storage is not None and isinstance(step, MatMul | Lookup) and step.weight.ndim == 2:
        return storage.rounded(step)
    dtype = step.weight.dtype
    if isinstance(step, Convolve) and step.spec.transposed:
        stored = onnx_transposed(step.weight, step.spec.groups)
        rounded = dequantize(*quantize(stored, 1), axis=1)
        return canonical_transposed(rounded, step.spec.groups).astype(dtype)
    axis = step.output_axis
    return dequantize(*quantize(step.weight, axis), axis=axis).astype(dtype)
