"""TT-SVD: a tensor as a train of cores (Oseledets 2011)."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array, Ranks
from onnxdecomp.tensor.linalg import column_basis, singular_values, tail_rank

Train: TypeAlias = list[Array]
"""Cores [r_{k-1}, n_k, r_k] with r_0 = r_d = 1."""


def tt_svd(tensor: Array, ranks: Ranks) -> Train:
    """The train of these bond ranks: √(d-1) times the least error at most."""
    cores: Train = []
    shift = _exponent(tensor)
    rest, left = np.ldexp(tensor, -shift) if shift else tensor, 1
    for rank, size in zip(ranks, tensor.shape, strict=False):
        rest = rest.reshape(left * size, -1)
        core = column_basis(rest, rank)
        rest = core.T @ rest
        cores.append(core.reshape(left, size, rank))
        left = rank
    cores.append(rest.reshape(left, tensor.shape[-1], 1))
    if shift:
        each = shift // tensor.ndim
        cores = [np.ldexp(core, each) for core in cores]
        cores[-1] = np.ldexp(cores[-1], shift - each * tensor.ndim)
    return cores


def _exponent(tensor: Array) -> int:
    """The power of two to take out of numbers whose sums of squares might overflow or vanish, else 0."""
    peak = float(np.abs(tensor).max(initial=0.0))
    return math.frexp(peak)[1] if peak and not 1e-15 < peak < 1e15 else 0


def ranks_within(tensor: Array, error: float) -> Ranks:
    """Bond ranks at which TT-SVD's relative error is at most `error`: error/√(d-1) per bond."""
    share = error / math.sqrt(tensor.ndim - 1)
    # Projections keep the norm of what is left, so the bound per bond is one of the whole tensor.
    allowed = share * math.sqrt(float(np.sum(np.square(tensor, dtype=np.float64))))
    ranks: list[int] = []
    rest, left = tensor, 1
    for size in tensor.shape[:-1]:
        rest = rest.reshape(left * size, -1)
        values = singular_values(rest)
        norm = float(np.linalg.norm(values))
        left = tail_rank(values, allowed / norm) if norm else 1
        ranks.append(left)
        rest = column_basis(rest, left).T @ rest
    return tuple(ranks)


def balanced(cores: Train) -> Train:
    """The same tensor with one norm for all cores: no half-precision intermediate overflows."""
    norms = [float(np.linalg.norm(c.astype(np.float64))) for c in cores]
    if not all(norms):
        return cores
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [c * np.asarray(mean / n, c.dtype) for c, n in zip(cores, norms, strict=True)]
