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
class Candidate:
    """A kind of fewer bits that was weighed before anything was decomposed.

    Attributes:
        ratio: Its time over the original's; null where it could not be made.
        error: As of the quantization that was taken; null where it was not made since others are faster.
        chosen: Whether it was taken.
        reason: Why it cannot be taken, a phrase for people.
    """

    kind: str
    ratio: Interval | None = None
    error: float | None = None
    chosen: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Of the quantize pass; absent where nothing was to be quantized.

    Attributes:
        activations, weights: Their types.
        block_size: Numbers of a weight that share a scale, of int4 and int8-block.
        quantized_layers: Products and tables whose weights have fewer bits, of kinds other than int8-static.
        slower: Layers that stay in floating point since they are slower otherwise.
        candidates: The kinds that it was chosen among.
        weight_bits: 7 where products of 8 would saturate.
        samples: Calibration inputs that gave the ranges.
        gain: How many times as fast the result is as the original quantized alone.
        error: Relative L2 distance of the outputs from those before, on the inputs at hand; null where not
            finite or not compared.
        kept: What stays in floating point since it does not survive: nodes by name, or a phrase for a kind of
            operators.
        tried: What stayed in floating point in each try, and the error.
    """

    kind: Literal["int8-static", "int8-dynamic", "int8-block", "int4", "fp16", "int8", ""]
    activations: str = field(default="", metadata=LATER)
    weights: str = field(default="", metadata=LATER)
    weight_bits: Literal[7, 8] = field(default=8, metadata=LATER)
    per_channel: bool = field(default=True, metadata=LATER)
    samples: int = field(default=0, metadata=LATER)
    quantized_activations: int = field(default=0, metadata=LATER)
    block_size: int = field(default=0, metadata=LATER)
    quantized_layers: int = field(default=0, metadata=LATER)
    slower: tuple[str, ...] = field(default=(), metadata=LATER)
    candidates: tuple[Candidate, ...] = field(default=(), metadata=LATER)
    gain: Interval | None = field(default=None, metadata=LATER)
    error: float | None = field(default=None, metadata=LATER)
    kept: tuple[str, ...] = field(default=(), metadata=LATER)
    tried: tuple[QuantizationTry, ...] = field(default=(), metadata=LATER)
