"""Randomised range finder with a check: the leading subspace of a large matrix for a small rank.

Halko, Martinsson and Tropp 2011, "Finding structure with randomness", algorithm 4.4 (subspace iteration).
"""

from __future__ import annotations

import math

import numpy as np

from onnxdecomp.core.layer import Array

_TOLERANCE = 1e-3
"""How far the relative error may be above that of the best approximation, relative to it."""
_SAFETY = 2.0
"""The estimate of what is missing is low by a fifth where it was compared with the exact value."""
_LARGE = 2048
"""Rows from which a sketch is worth it: below, the Gram matrix costs little."""


def oversampled(rank: int) -> int:
    """Columns of the sketch for a rank: more than the usual rank + 10, as weights have slow spectra."""
    return rank + max(16, rank)


def worthwhile(rows: int, columns: int, rank: int) -> bool:
    """Whether a sketch may be cheaper than the Gram matrix of the shorter side."""
    return min(rows, columns) >= _LARGE and 16 * oversampled(rank) <= min(rows, columns)


def leading_factors(matrix: Array, rank: int, seed: int = 0) -> tuple[Array, Array] | None:
    """Orthonormal U [T, rank] and Uᵀ M [rank, D], nearly the best ones for a float32 matrix M [T, D].

    Each iteration multiplies a basis Q by M Mᵀ. The Ritz values θ_i of Qᵀ M Mᵀ Q and their residuals ρ_i,
    which it has at hand, bound the energy that Q misses by Σ_i min(ρ_i, ρ_i² / (θ_i - θ_last)) for the
    leading i (Parlett 1998, theorem 11.7.1, with the last Ritz value for the rest of the spectrum). The
    iteration ends when this, doubled, keeps the relative error of the truncation within 0.1 % of that of
    the best approximation (Eckart and Young 1936).

    Returns:
        None where that is not reached at less cost than by the Gram matrix: the spectrum falls too slowly.
    """
    rows, columns = matrix.shape
    width = oversampled(rank)
    # With n the shorter side, an iteration costs 4 T D width, the Gram matrix T D n and its eigenvectors
    # about as much again.
    most = 3 * min(rows, columns) // (8 * width)
    total = energy(matrix)
    basis = _orthonormal(np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32))
    previous = math.inf
    for iteration in range(1, most + 1):
        seen = matrix.T @ basis
        inner = np.asarray(seen.T @ seen)
        image = matrix @ seen
        values, vectors = np.linalg.eigh(inner.astype(np.float64))
        values, vectors = values[::-1], vectors[:, ::-1].astype(np.float32)
        residual = np.linalg.norm((image - basis @ inner) @ vectors[:, :rank], axis=0).astype(np.float64)
        lost = total - float(values[:rank].sum())
        if lost <= 1e-5 * total:  # so close that float32 does not tell: the Gram matrix in float64 does
            return None
        gap = np.maximum(values[:rank] - values[-1], np.finfo(np.float64).tiny)
        missing = _SAFETY * float(np.minimum(residual, residual**2 / gap).sum()) / (2 * lost)
        # The first estimate is one of a random subspace and means nothing.
        if iteration > 1 and missing <= _TOLERANCE:
            leading = np.ascontiguousarray(vectors[:, :rank])
            return basis @ leading, leading.T @ seen.T
        if iteration > 2 and missing * (missing / previous) ** (most - iteration) > _TOLERANCE:
            return None
        previous = missing
        basis = _orthonormal(image)
    return None


def energy(matrix: Array) -> float:
    """The squared Frobenius norm, accumulated in float64 without a copy of the matrix."""
    return float(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64))


def _orthonormal(matrix: Array) -> Array:
    return np.linalg.qr(matrix)[0]
