"""The multiple of channels that a device's kernels work in, measured: by kind of kernel and precision.

A kernel that computes in whole blocks takes as long with the last block filled as with a part of it. So
layers of rising width are timed, and the largest multiple counts up to which more channels cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import ConvSpec, Layer
from onnxdecomp.latency.measure import Request, time_chains
from onnxdecomp.latency.roofline import QUANTA
from onnxdecomp.runtime.setting import Setting

Blocked: TypeAlias = Literal["product", "convolution"]
"""Kinds of kernels that work in blocks of channels."""

WIDTHS = (68, 72, 80, 88, 96, 100, 104, 112, 120, 128, 132, 136, 144, 160, 192)
"""Widths that are timed: with each the next multiple of all of QUANTA."""

_FREE = 0.03
"""What widths may take more, in the median, once they are rounded up: timing is that precise."""

_PRODUCT = (1024, (1, 4096, 1024))
_CONVOLUTION = (256, (16, 256, 28, 28))
"""Channels in and the activation: enough work that no launch hides the steps."""


def measured_quanta(
    setting: Setting, precision: str = "float", cache: Path | None = None, seconds: float = 8.0
) -> dict[Blocked, int]:
    """The multiple that each kind of kernel works in on a device; 1 where every channel costs.

    Args:
        setting, precision, cache: As for measure.time_chains, which keeps the timings on disk under the
            device, the provider's options and the precision.
        seconds: The time to take, beside that of opening 30 sessions; what the cache has is not measured.

    Returns:
        Nothing of a kind whose layers could not be timed.

    Raises:
        ProviderError: The provider did not start.
    """
    asked = [(kind, width) for kind in ("product", "convolution") for width in WIDTHS]
    requests = []
    for kind, width in asked:
        inputs, shape = _PRODUCT if kind == "product" else _CONVOLUTION
        layer = _layer(kind, width, inputs)
        requests.append(Request(layer, dense_chain(layer), shape))
    timings = time_chains(requests, setting=setting, precision=precision, cache=cache, seconds=seconds)
    found: dict[Blocked, int] = {}
    kinds: tuple[Blocked, ...] = ("product", "convolution")
    for kind in kinds:
        ms = {
            width: timing.dense_ms
            for (own, width), timing in zip(asked, timings, strict=True)
            if own == kind and not timing.guessed
        }
        if len(ms) == len(WIDTHS) and all(math.isfinite(value) for value in ms.values()):
            found[kind] = quantum_of(ms)
    return found


def quantum_of(ms: Mapping[int, float]) -> int:
    """The largest of QUANTA to whose next multiple widths can be rounded up for nothing; else 1.

    Args:
        ms: Milliseconds by width, of all WIDTHS.
    """
    for quantum in sorted(QUANTA, reverse=True):
        rounded = {width: -(-width // quantum) * quantum for width in ms}
        more = [ms[up] / ms[width] - 1 for width, up in rounded.items() if up != width]
        if float(np.median(more)) <= _FREE:
            return quantum
    return 1


def _layer(kind: str, width: int, inputs: int) -> Layer:
    """A layer without numbers."""
    kernel = (3, 3) if kind == "convolution" else ()
    weight = np.broadcast_to(np.float32(0), (width, inputs, *kernel))
    bias = np.broadcast_to(np.float32(0), (width,))
    spec = ConvSpec((1, 1), (1, 1), (1, 1, 1, 1)) if kernel else None
    return Layer(kind, "Conv" if kernel else "MatMul", weight, bias, spec)
