"""Thin linear algebra on weights: bases and singular values without the SVD of a large matrix.

The bases come from the eigenvectors of the smaller Gram matrix, accumulated in float64 from blocks, so
that a large float32 weight never exists in float64. Squaring the matrix loses singular values below
about 1e-8 of the largest, less than what rounding a float32 weight has lost already; small matrices take
the thin SVD instead. Nothing here divides by a singular value: an approximation is always a projection
U (Uᵀ W), exact at full rank whatever the accuracy of the small eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from onnxdecomp.errors import ModelError
from onnxdecomp.layer import Array, Layer

_BLOCK_ELEMENTS = 1 << 20
"""Elements of a weight that are in float64 at a time."""

_SMALL = 1 << 16
"""Elements of a matrix up to which its thin SVD is as cheap as the Gram matrix."""


def finite_groups(layer: Layer) -> Array:
    """The weight by groups [G, T/G, S/G, *kernel]; a stack of matrices as [prod(stack), T, S].

    Raises:
        ModelError: The weight holds NaN or infinite values.
    """
    # A sum is not finite if any term is not; only an overflow of finite terms needs the second look.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not math.isfinite(float(np.sum(layer.weight)))
    if suspicious and not np.isfinite(layer.weight).all():
        raise ModelError(
            f"{layer.name}: the weight holds NaN or infinite values: exclude the layer or repair it"
        )
    if layer.is_stack:
        return layer.weight.reshape(-1, *layer.weight.shape[-2:])
    return layer.group_weights()


def unfold(tensor: Array, axis: int) -> Array:
    """The mode unfolding [n_axis, rest] (Kolda and Bader 2009, with the rest in C order)."""
    return np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)


def gram(tensor: Array, axis: int) -> Array:
    """X Xᵀ of the unfolding X along `axis`, [n, n] in float64, from blocks of one of the other axes."""
    n = tensor.shape[axis]
    other = max((a for a in range(tensor.ndim) if a != axis), key=lambda a: tensor.shape[a])
    swept = np.moveaxis(tensor, (axis, other), (0, 1)).reshape(n, tensor.shape[other], -1)
    step = max(1, _BLOCK_ELEMENTS * tensor.shape[other] // max(1, tensor.size))
    total = np.zeros((n, n))
    for start in range(0, tensor.shape[other], step):
        block = swept[:, start : start + step].reshape(n, -1).astype(np.float64)
        total += block @ block.T
    return total


def left_basis(tensor: Array, axis: int = 0) -> tuple[Array, Array]:
    """Orthonormal basis of one mode and the singular values of its unfolding, both in float64.

    Args:
        tensor: Any real tensor, shape [..., n, ...] with n at `axis`; D is its size over n.
        axis: The mode.

    Returns:
        U [n, n], columns by descending singular value, and the min(n, D) singular values. Each column's
        sign is fixed (its largest entry is positive), so that the same input gives the same bytes.
    """
    n = tensor.shape[axis]
    rest = tensor.size // max(1, n)
    if tensor.size <= _SMALL and n <= rest:
        import scipy.linalg

        # The wide matrix's triangular factor has its left singular vectors and is small.
        (triangle,) = scipy.linalg.qr(unfold(tensor, axis).astype(np.float64).T, mode="r", check_finite=False)
        basis, values, _ = scipy.linalg.svd(triangle[:n].T, check_finite=False)
    else:
        eigenvalues, basis = np.linalg.eigh(gram(tensor, axis))
        basis = basis[:, ::-1]
        values = np.sqrt(np.maximum(eigenvalues[::-1], 0))
    peak = basis[np.abs(basis).argmax(axis=0), np.arange(n)]
    return basis * np.where(peak < 0, -1.0, 1.0), values[: min(n, rest)]


def singular_values(tensor: Array, axis: int = 0) -> Array:
    """The min(n, D) singular values of the unfolding along `axis`, descending, in float64."""
    matrix = unfold(tensor, axis)
    if matrix.size <= _SMALL:
        import scipy.linalg

        values: Array = scipy.linalg.svdvals(matrix.astype(np.float64), check_finite=False)
        return values
    smaller = 0 if matrix.shape[0] <= matrix.shape[1] else 1
    eigenvalues = np.linalg.eigvalsh(gram(matrix, smaller))
    return np.sqrt(np.maximum(eigenvalues[::-1], 0))


def column_basis(matrix: Array, rank: int) -> Array:
    """Orthonormal basis [T, rank] of the best subspace of the columns, in the matrix's dtype.

    A tall matrix takes the small side's eigenvectors V and orthonormalises M V. Columns beyond
    min(T, D), which nothing needs, are zero.
    """
    rows, columns = matrix.shape
    if rows <= columns:
        basis = left_basis(matrix)[0][:, :rank]
    else:
        right = left_basis(matrix, 1)[0][:, :rank]
        basis = np.linalg.qr(matrix @ right.astype(matrix.dtype))[0]
    missing = rank - basis.shape[1]
    return np.pad(basis, ((0, 0), (0, missing))).astype(matrix.dtype)


def two_factors(matrix: Array, rank: int) -> tuple[Array, Array]:
    """The best approximation A B of that rank (Eckart and Young 1936), the singular values shared.

    Args:
        matrix: [T, D].
        rank: At most min(T, D).

    Returns:
        A [T, rank] and B [rank, D] in the matrix's dtype, the norms of A's columns and B's rows equal
        component by component: the square roots of the singular values.
    """
    if matrix.shape[0] > matrix.shape[1]:
        b, a = two_factors(matrix.T, rank)
        return np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    basis = left_basis(matrix)[0][:, :rank].astype(matrix.dtype)
    rows = basis.T @ matrix
    values = np.sqrt(np.einsum("rd,rd->r", rows, rows, dtype=np.float64))
    scale = _shared_scale(values).astype(matrix.dtype)
    rows /= scale[:, None]
    return basis * scale, rows


def _shared_scale(values: Array) -> Array:
    """Square roots of the singular values, bounded below so that dividing by them is harmless."""
    scale = np.sqrt(values)
    top = float(scale.max(initial=0.0))
    return np.maximum(scale, 1e-4 * top) if top else np.ones_like(scale)


def pooled(spectra: Iterable[Array]) -> Array:
    """One spectrum for several matrices of one shape: the root sum of squares, place by place."""
    return np.sqrt(sum(np.square(s) for s in spectra))


def stacked(parts: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """The groups' parts as one array of that shape; a single large part is not copied."""
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.stack(parts)).reshape(shape)


def tail_rank(values: Array, error: float) -> int:
    """The smallest rank >= 1 whose truncated tail is at most `error` of the spectrum's norm."""
    squares = np.square(values)
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return max(1, int(np.argmax(tails <= error**2 * tails[0])))


def fraction_of(full: int, fraction: float) -> int:
    """That fraction of a full rank, rounded half up, at least 1 and at most full."""
    return min(full, max(1, math.floor(fraction * full + 0.5)))
