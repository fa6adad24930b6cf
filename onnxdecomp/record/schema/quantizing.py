"""What a record says of the quantize pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from onnxdecomp.record.schema.markers import LATER
from onnxdecomp.record.schema.timing import Interval


@dataclass(frozen=True, kw_only=True)
class QuantizationTry:
    """What stayed in floating point in a try, and the error; null where not finite."""

    kept: str = field(default="", metadata=LATER)
    error: float | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Of the quantize pass; absent where nothing was to be quantized.

    Attributes:
        activations, weights: Their types, of int8.
        weight_bits: 7 where products of 8 would saturate.
        samples: Calibration inputs that gave the ranges.
        gain: How many times as fast the result is as the original quantized alone.
        error: Relative L2 distance of the outputs from those before, on the inputs at hand; null where not
            finite or not compared.
        kept: What stays in floating point since it does not survive: nodes by name, or a phrase for a kind of
            operators.
        tried: What stayed in floating point in each try, and the error.
    """

    kind: Literal["int8-static", "int8-dynamic", "int8-block", "int4", "fp16", "int8"]
    activations: str = field(default="", metadata=LATER)
    weights: str = field(default="", metadata=LATER)
    weight_bits: Literal[7, 8] = field(default=8, metadata=LATER)
    per_channel: bool = field(default=True, metadata=LATER)
    samples: int = field(default=0, metadata=LATER)
    quantized_activations: int = field(default=0, metadata=LATER)
    gain: Interval | None = field(default=None, metadata=LATER)
    error: float | None = field(default=None, metadata=LATER)
    kept: tuple[str, ...] = field(default=(), metadata=LATER)
    tried: tuple[QuantizationTry, ...] = field(default=(), metadata=LATER)
