"""What trains, rings and trees of factors have in common: cores [r, n, r'] between bonds, and their norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from onnxdecomp.core.layer import Array, Ranks


def balanced(factors: Sequence[Array]) -> list[Array]:
    """The same product with one norm for all factors: no half-precision intermediate overflows."""
    norms = [float(np.linalg.norm(f.astype(np.float64))) for f in factors]
    if not all(norms):
        return list(factors)
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [f * np.asarray(mean / norm, f.dtype) for f, norm in zip(factors, norms, strict=True)]


def padded(cores: Sequence[Array], bonds: Ranks) -> list[Array]:
    """The same tensor with cores of these d + 1 bonds, r_0 to r_d: zeros fill what is missing."""
    return [
        np.ascontiguousarray(core)
        if core.shape[::2] == bond
        else np.pad(core, ((0, bond[0] - core.shape[0]), (0, 0), (0, bond[1] - core.shape[2])))
        for core, bond in zip(cores, pairwise(bonds), strict=True)
    ]
