"""Weights whose numbers no decomposition can do anything with: such layers stay as they are."""

from __future__ import annotations

import math

import numpy as np

from onnxdecomp.core.layer import Array

_ROOM = 256.0
"""Between the norm of a weight and the largest number of its type: products with activations need it."""


def unsound(weight: Array) -> str | None:
    """What is wrong with the numbers of a weight, a phrase for people; None where they are sound."""
    if not weight.size:
        return None
    # Neither needs memory of its own, and NaN is passed on.
    peak = max(float(weight.max()), -float(weight.min()))
    if not math.isfinite(peak) or not math.isfinite(float(weight.min())):
        return "its weight holds NaN or infinite values"
    if peak > float(np.finfo(weight.dtype).max) / _ROOM / math.sqrt(weight.size):
        return f"its weight reaches {peak:.3g}: what it is made of would leave the range of {weight.dtype}"
    return None
