"""MatMulNBits (com.microsoft) as a layer: a MatMul whose weight is stored in 2, 4 or 8 bits, in blocks.

The weight [N, K] is cut into blocks along K, the last one padded: w = (q - zero point) * scale, with a scale
and a zero point for each block (2^(bits-1) where none is given). Several numbers share a byte, the lowest
bits first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import MatMul
from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.graph.constants import Constant
from onnxdecomp.graph.shape_inference import as_product
from onnxdecomp.layers.adapter import LayerMatch, ParameterRoles
from onnxdecomp.layers.linear import Linear
from onnxdecomp.layers.operands import bias_after
from onnxdecomp.layers.scope import FLOATS, MICROSOFT, Scope, Weight, working
from onnxdecomp.layers.storage import Stored

BITS = (2, 4, 8)
SMALLEST_BLOCK = 16

_B, _SCALES, _ZERO_POINTS, _G_IDX, _BIAS = 1, 2, 3, 4, 5


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

    def rounded(self, step: MatMul) -> MatMul:
        n, k = step.weight.T.shape
        packed, scales, zero_points = self.quantize(step.weight.T)
        weight = dequantize(packed, scales, zero_points, n, k, self.bits, self.block(k))
        return replace(step, weight=weight.T.astype(step.weight.dtype))

    def stored(self, step: MatMul) -> Stored:
        n, k = step.weight.T.shape
        parts = zip(("", "_scale", "_zero_point"), self.quantize(step.weight.T), strict=True)
        attributes = {"K": k, "N": n, "bits": self.bits, "block_size": self.block(k)}
        if self.accuracy_level:
            attributes["accuracy_level"] = self.accuracy_level
        given = {name: part for name, part in parts if part is not None}
        return Stored(MICROSOFT, "MatMulNBits", given, attributes)

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


@dataclass(frozen=True, eq=False)
class MatMulNBits(Linear):
    """The adapter of products with a weight in blocks: once the weight is read, one like the others."""

    operators = ((MICROSOFT, "MatMulNBits"),)
    per_channel = frozenset()

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str:
        """The layer of a node, with its bias or the Add of one after it; or why it is none."""
        inputs = [*node.inputs, *[None] * (_BIAS + 1 - len(node.inputs))]
        x, value = inputs[0], inputs[_B]
        assert x is not None
        assert value is not None
        n, k, block = (int(attribute(node, name, 0)) for name in ("N", "K", "block_size"))
        bits = int(attribute(node, "bits", 4))
        if inputs[_G_IDX] is not None:
            return "its blocks are permuted by a g_idx"
        if attribute(node, "weight_prepacked", 0):
            return "its weight is laid out for one kind of processor"
        if bits not in BITS or block < SMALLEST_BLOCK or block & (block - 1) or n < 1 or k < 1:
            return f"its weight has N={n}, K={k}, bits={bits} and block_size={block}, which are not all read"
        found = _constants(inputs, scope)
        if isinstance(found, str):
            return found
        packed, scales, zero_points = found[_B], found[_SCALES], found.get(_ZERO_POINTS)
        count = -(-k // block)
        as_bytes = zero_points is not None and zero_points.dtype == "uint8"
        each = -(-count * bits // 8) if as_bytes else count
        if (
            packed.dtype != "uint8"
            or packed.array.size != n * count * block * bits // 8
            or scales.array.size != n * count
            or (zero_points is not None and zero_points.array.size != n * each)
        ):
            return "its inputs do not have the sizes that its attributes say"
        if scales.dtype not in FLOATS:
            return f"its scales have element type {scales.dtype}"
        points = None if zero_points is None else zero_points.array
        weight = dequantize(packed.array, scales.array, points, n, k, bits, block)
        after: tuple[ir.Node, ...] = ()
        bias, bias_value = None, inputs[_BIAS]
        if bias_value is not None:
            bias = working(found[_BIAS].array).reshape(n)
        elif behind := bias_after(node, n, scope):
            add, bias_value, vector = behind
            after, bias = (add,), working(vector)
        stored = ir.DataType.BFLOAT16.numpy() if scales.dtype == "bfloat16" else scales.dtype
        level = int(attribute(node, "accuracy_level", 0))
        return cls().layer_match(
            node,
            scope,
            x,
            Weight(value, replace(packed, dtype=scales.dtype)),
            weight,
            bias=bias,
            bias_value=bias_value,
            after=after,
            input_shape=dims(x),
            output_shape=dims((*after, node)[0].outputs[0]),
            packed=8 // bits,
            storage=Blocks(bits, block, zero_points is not None, np.dtype(stored), level),
        )

    @classmethod
    def timed(cls, layer: Layer) -> None:
        return None  # the dense layer would be timed as a MatMul

    @classmethod
    def stand_in(cls, node: ir.Node) -> None:
        as_product(node, int(attribute(node, "K", 0)), int(attribute(node, "N", 0)))

    @classmethod
    def parameter_roles(cls, op_type: str) -> ParameterRoles:
        return ParameterRoles()


def _constants(inputs: list[ir.Value | None], scope: Scope) -> dict[int, Constant] | str:
    """The operands but the activation, by position; or which of them is not constant."""
    found: dict[int, Constant] = {}
    names = {_B: "weight", _SCALES: "scales", _ZERO_POINTS: "zero points", _BIAS: "bias"}
    for position, name in names.items():
        value = inputs[position]
        if value is None and position not in (_B, _SCALES):
            continue
        constant = scope.constant(value)
        if isinstance(constant, str):
            return constant if position == _B else f"its {name}: {constant}"
        found[position] = constant
    return found
