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
_OVERSAMPLED, _ITERATIONS = 64, 4
"""Columns beyond the rank and products with M Mᵀ of a sketch that nothing checks."""
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


def leading_vectors(matrix: Array, rank: int, seed: int = 0) -> tuple[Array, Array]:
    """Left singular vectors [T, rank] and singular values [min(rank, D)] by a sketch, without a bound.

    For matrices whose Gram matrix would be too large: the memory is that of the weight and of the sketch.
    Values come out low where the spectrum is flat, and the subspace misses little then, as any does.
    """
    width = min(rank + _OVERSAMPLED, *matrix.shape)
    kind = matrix.dtype if matrix.dtype in (np.float32, np.float64) else np.dtype(np.float32)
    rng = np.random.default_rng(seed)
    basis = _orthonormal(rng.standard_normal((len(matrix), width), dtype=np.float32).astype(kind))
    for _ in range(_ITERATIONS):
        basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis))
    seen = matrix.T @ basis
    values, vectors = np.linalg.eigh(np.asarray(seen.T @ seen, np.float64))
    found = basis @ vectors[:, ::-1].astype(kind)
    if rank > width:  # columns that no value belongs to
        more = rng.standard_normal((len(matrix), rank - width), dtype=np.float32).astype(kind)
        found = _orthonormal(np.hstack([found, more]))
    return found[:, :rank], np.sqrt(np.maximum(values[::-1], 0))[:rank]


def estimated_spectrum(matrix: Array, count: int = 1024) -> Array:
    """All min(T, D) singular values in float64: the first `count` by a sketch, the others as one flat tail.

    The sum of all squares is exact, and so what a truncation within the first values loses is right.
    """
    full = min(matrix.shape)
    _, values = leading_vectors(matrix, min(count, full))
    left = max(0.0, energy(matrix) - float(np.square(values).sum()))
    tail = math.sqrt(left / (full - len(values))) if full > len(values) else 0.0
    return np.append(values, np.full(full - len(values), min(tail, float(values[-1]))))


def energy(matrix: Array) -> float:
    """The squared Frobenius norm, accumulated in float64 without a copy of the matrix."""
    return float(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64))


def _orthonormal(matrix: Array) -> Array:
    return np.linalg.qr(matrix)[0]
