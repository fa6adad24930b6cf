"""TT-SVD: a tensor as a train of cores (Oseledets 2011)."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array, Ranks
from onnxdecomp.tensor.cores import padded
from onnxdecomp.tensor.linalg import column_basis, singular_values, tail_rank
from onnxdecomp.tensor.tenalg import tensor_train

Train: TypeAlias = list[Array]
"""Cores [r_{k-1}, n_k, r_k] with r_0 = r_d = 1."""


def tt_svd(tensor: Array, ranks: Ranks) -> Train:
    """The train of these bond ranks: √(d-1) times the least error at most, padded with zeros."""
    shift = _exponent(tensor)
    scaled = np.ldexp(tensor, -shift) if shift else tensor
    cores = padded(tensor_train(scaled, ranks, _truncated), (1, *ranks, 1))
    if shift:
        each = shift // tensor.ndim
        cores = [np.ldexp(core, each) for core in cores]
        cores[-1] = np.ldexp(cores[-1], shift - each * tensor.ndim)
    return cores


def _truncated(matrix: Array, rank: int) -> tuple[Array, Array]:
    basis = column_basis(matrix, rank)
    return basis, np.asarray(basis.T @ matrix)


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
