"""Weights of 2, 4 or 8 bits in blocks, as MatMulNBits and GatherBlockQuantized (com.microsoft) read them.

The weight [N, K] is cut into blocks along K, the last one padded: w = (q - zero point) * scale, with a scale
and a zero point for each block (2^(bits-1) where none is given). Several numbers share a byte, the lowest
bits first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Lookup, MatMul
from onnxdecomp.layers.dynamic_int8 import DynamicInt8
from onnxdecomp.layers.scope import MICROSOFT
from onnxdecomp.layers.storage import Rows, Stored

SMALLEST_BLOCK = 16

_ROWS = DynamicInt8()
"""How tables are stored for which there is no kernel of the same kind."""


@dataclass(frozen=True)
class Blocks:
    """The storage of factors that are quantized again, in the way that the weight was.

    Attributes:
        bits: Of a number.
        block_size: Numbers along K that share a scale; a factor with a smaller K gets smaller blocks.
        asymmetric: Whether every block has a zero point of its own.
        dtype: NumPy's element type of the scales.
        accuracy_level: What the kernel may round the activation to, the operator's own attribute.
    """

    bits: int
    block_size: int
    asymmetric: bool
    dtype: np.dtype[np.generic]
    accuracy_level: int = 0

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def rounding(self) -> int:
        return 1

    def rounded(self, step: MatMul | Lookup) -> Array:
        if isinstance(step, Lookup) and not self._reads_rows(step):
            return _ROWS.rounded(step)
        rows = step.weight if isinstance(step, Lookup) else step.weight.T
        n, k = rows.shape
        packed, scales, zero_points = self.quantize(rows)
        weight = dequantize(packed, scales, zero_points, n, k, self.bits, self.block(k))
        return (weight if isinstance(step, Lookup) else weight.T).astype(step.weight.dtype)

    def stored(self, step: MatMul) -> Stored:
        n, k = step.weight.T.shape
        parts = zip(("", "_scale", "_zero_point"), self.quantize(step.weight.T), strict=True)
        attributes = {"K": k, "N": n, "bits": self.bits, "block_size": self.block(k)}
        if self.accuracy_level:
            attributes["accuracy_level"] = self.accuracy_level
        given = {name: part for name, part in parts if part is not None}
        return Stored(MICROSOFT, "MatMulNBits", given, attributes)

    def table(self, step: Lookup) -> Stored | Rows:
        """As GatherBlockQuantized, of whole blocks of 4 bits; others as int8."""
        if not self._reads_rows(step):
            return _ROWS.table(step)
        packed, scales, zero_points = self.quantize(step.weight)
        parts = {"": packed.reshape(len(packed), -1), "_scale": scales}
        if zero_points is not None:
            parts["_zero_point"] = zero_points
        block = self.block(step.weight.shape[1])
        attributes = {"bits": self.bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        return Stored(MICROSOFT, "GatherBlockQuantized", parts, attributes, x_at=1)

    def _reads_rows(self, step: Lookup) -> bool:
        width = step.weight.shape[1]
        return self.bits == 4 and width % self.block(width) == 0 and self.dtype == np.float32

    def block(self, k: int) -> int:
        """The block size for K numbers: no larger power of two than holds them all."""
        return min(self.block_size, max(SMALLEST_BLOCK, 1 << (k - 1).bit_length()))

    def quantize(self, weight: Array) -> tuple[Array, Array, Array | None]:
        """B, scales and zero points (or None) of a weight [N, K]."""
        n, k = weight.shape
        block = self.block(k)
        count = -(-k // block)
        cut = np.zeros((n, count * block), np.float32)
        cut[:, :k] = weight
        cut = cut.reshape(n, count, block)
        top, middle = 2**self.bits - 1, 2 ** (self.bits - 1)
        low, high = cut.min(axis=-1), cut.max(axis=-1)
        if self.asymmetric:  # zero is one of the numbers, as in all of ONNX Runtime's quantization
            scales = (np.maximum(high, 0) - np.minimum(low, 0)) / top
        else:  # the extreme of the block becomes the lowest of the numbers, which has no opposite
            scales = np.where(-low > high, low, high) / -middle
        # As they are stored: a block too small for their type is zero.
        scales = scales.astype(self.dtype)
        usable = np.where(scales == 0, 1, scales).astype(np.float32)
        zero_points = np.full((n, count), middle, np.float32)
        if self.asymmetric:
            zero_points = np.rint(-np.minimum(low, 0) / usable).clip(0, top)
        q = np.rint(cut / usable[..., None]) + zero_points[..., None]
        packed = pack(q.clip(0, top).astype(np.uint8), self.bits)
        stored = pack(zero_points.astype(np.uint8), self.bits) if self.asymmetric else None
        return packed, scales, stored


def pack(numbers: Array, bits: int) -> Array:
    """Numbers below 2^bits as bytes, along the last axis; the last byte is filled up with zeros."""
    each = 8 // bits
    missing = -numbers.shape[-1] % each
    padded = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, missing)])
    grouped: Array = padded.reshape(*padded.shape[:-1], -1, each) << np.arange(0, 8, bits, dtype=np.uint8)
    packed: Array = np.bitwise_or.reduce(grouped, axis=-1).astype(np.uint8)
    return packed


def unpack(packed: Array, bits: int, count: int) -> Array:
    """The first `count` numbers of the bytes along the last axis."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return numbers.reshape(*packed.shape[:-1], -1)[..., :count]


def dequantize(
    packed: Array, scales: Array, zero_points: Array | None, n: int, k: int, bits: int, block: int
) -> Array:
    """The weight [N, K] in float32; zero points as bytes [N, bytes], or as numbers [N, blocks] in floats."""
    count = -(-k // block)
    numbers = unpack(packed.reshape(n, count, -1), bits, block).astype(np.float32)
    if zero_points is None:
        numbers -= np.float32(2 ** (bits - 1))
    else:
        if zero_points.dtype == np.uint8:
            zero_points = unpack(zero_points.reshape(n, -1), bits, count)
        numbers -= zero_points.astype(np.float32).reshape(n, count, 1)
    numbers *= scales.astype(np.float32).reshape(n, count, 1)
    weight: Array = numbers.reshape(n, -1)[:, :k]
    return weight
