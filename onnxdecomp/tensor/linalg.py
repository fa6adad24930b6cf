"""Thin linear algebra on weights: bases and singular values without the SVD of a large matrix.

The bases come from the eigenvectors of the smaller Gram matrix, accumulated in float64 from blocks, so
that a large weight never exists in float64. Squaring the matrix loses singular values below about 1e-8
of the largest, less than what rounding a float32 weight has lost already; small matrices take the thin
SVD instead. Large float32 weights are multiplied in float32 where the part of the spectrum that is asked
for stands above the rounding of that, and a small rank of a large matrix is sketched first (see
onnxdecomp/tensor/randomized_svd.py). Nothing here divides by a singular value: an approximation is always a
projection U (Uᵀ W), exact at full rank whatever the accuracy of the small eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.errors import ModelError
from onnxdecomp.tensor.blas_threads import LONG, threads_for
from onnxdecomp.tensor.randomized_svd import (
    estimated_spectrum,
    leading_factors,
    leading_vectors,
    worthwhile,
)
from onnxdecomp.tensor.tenalg import unfold

_BLOCK_ELEMENTS = 1 << 20
"""Elements of a weight that are in float64 at a time, if that makes blocks of at least _BLOCK_COLUMNS."""
_BLOCK_COLUMNS = 2048

_SMALL = 1 << 16
"""Elements of a matrix up to which its thin SVD is as cheap as the Gram matrix."""
_SINGLE = 256
"""Rows from which a truncation of a float32 matrix starts in float32."""
_SINGLE_VALUES = 2048
"""Rows from which a whole spectrum does."""
_MOST = 1 << 14
"""Rows of a Gram matrix at most: 2 GiB, and its eigenvectors take several times that and the better part
of an hour. A matrix with both sides above is sketched."""
_FLOOR = 1e-5
"""Eigenvalues of a float32 Gram matrix below this part of the largest do not decide where to truncate."""
_FLOOR_VALUES = 1e-4
"""Nor are they given out below this part of it."""


def sketched(layer: Layer) -> bool:
    """Whether the layer's matrix is so large that its bases and spectrum come from a sketch."""
    shape = layer.weight.shape if layer.conv is None else (layer.outputs, layer.weight[0].size)
    return min(map(int, shape[-2:])) > _MOST


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


def gram(tensor: Array, axis: int, dtype: type[np.floating[Any]] = np.float64) -> Array:
    """X Xᵀ [n, n] of the unfolding X along `axis`, multiplied in `dtype` by blocks, summed in float64."""
    n = tensor.shape[axis]
    other = max((a for a in range(tensor.ndim) if a != axis), key=lambda a: tensor.shape[a])
    swept = np.moveaxis(tensor, (axis, other), (0, 1)).reshape(n, tensor.shape[other], -1)
    # Adding up costs n² a block: narrow blocks of a large matrix would spend their time there.
    per_row = max(1, tensor.size // max(1, n * tensor.shape[other]))
    step = max(1, _BLOCK_ELEMENTS // (n * per_row), _BLOCK_COLUMNS // per_row)
    total = np.zeros((n, n))
    with threads_for(n):
        for start in range(0, tensor.shape[other], step):
            block = swept[:, start : start + step].reshape(n, -1).astype(dtype, copy=False)
            total += block @ block.T
    return total


def left_basis(tensor: Array, axis: int = 0, rank: int | None = None) -> tuple[Array, Array]:
    """Orthonormal basis of one mode and the singular values of its unfolding.

    Args:
        tensor: Any real tensor, shape [..., n, ...] with n at `axis`; D is its size over n.
        axis: The mode.
        rank: How many columns are wanted; None: all n, in float64.

    Returns:
        U [n, rank], columns by descending singular value, and the min(rank, D) singular values, in
        float64 or, for a large float32 tensor of which a part is wanted, in float32. Each column's sign is
        fixed (its largest entry is positive), so that the same input gives the same bytes.
    """
    n = tensor.shape[axis]
    rest = tensor.size // max(1, n)
    wanted = n if rank is None else min(rank, n)
    if tensor.size <= _SMALL and n <= rest:
        import scipy.linalg

        # The wide matrix's triangular factor has its left singular vectors and is small.
        (triangle,) = scipy.linalg.qr(unfold(tensor, axis).astype(np.float64).T, mode="r", check_finite=False)
        basis, values, _ = scipy.linalg.svd(triangle[:n].T, check_finite=False)
    elif min(n, rest) > _MOST:
        with threads_for(n):
            basis, values = leading_vectors(unfold(tensor, axis), wanted)
    elif n > rest:
        basis, values = _tall_basis(unfold(tensor, axis), wanted, rank is not None)
    else:
        values, basis = _eigenvectors(tensor, axis, wanted, rank is not None and n >= _SINGLE)
    basis, values = basis[:, :wanted], values[: min(wanted, rest)]
    peak = basis[np.abs(basis).argmax(axis=0), np.arange(wanted)]
    return basis * np.where(peak < 0, -1.0, 1.0).astype(basis.dtype), values


def _tall_basis(matrix: Array, wanted: int, single: bool) -> tuple[Array, Array]:
    """Left singular vectors of a tall matrix M, by the eigenvectors V of its small side: those of M V.

    Columns beyond the small side, which no value belongs to, are any that make the basis orthonormal.
    """
    rows, columns = matrix.shape
    most = min(wanted, columns)
    values, right = _eigenvectors(matrix, 1, most, single and columns >= _SINGLE)
    kind = matrix.dtype if single else np.dtype(np.float64)
    image = matrix.astype(kind, copy=False) @ right[:, :most].astype(kind)
    if wanted > columns:
        more = np.random.default_rng(0).standard_normal((rows, wanted - columns))
        image = np.hstack([image, more.astype(kind)])
    return np.linalg.qr(image)[0], values


def _eigenvectors(tensor: Array, axis: int, rank: int, single: bool) -> tuple[Array, Array]:
    """Singular values and at least `rank` eigenvectors of the Gram matrix, descending."""
    n = tensor.shape[axis]
    if single and _in_range(tensor):
        eigenvalues, basis = _eigh(gram(tensor, axis, np.float32).astype(np.float32), rank)
        # A basis of the whole space is exact whatever its eigenvalues are.
        if rank == n or eigenvalues[rank - 1] > _FLOOR * eigenvalues[0]:
            return np.sqrt(np.maximum(eigenvalues, 0)), basis
    eigenvalues, basis = _eigh(gram(tensor, axis), rank)
    return np.sqrt(np.maximum(eigenvalues, 0)), basis


def _eigh(matrix: Array, rank: int) -> tuple[Array, Array]:
    """At least the `rank` largest eigenvalues, descending, and their eigenvectors; overwrites the matrix."""
    import scipy.linalg

    n = len(matrix)
    if 4 * rank > n or n > LONG:
        with threads_for(n):
            values, basis = np.linalg.eigh(matrix)
        return values[::-1], basis[:, ::-1]
    some = (n - rank, n - 1)
    values, basis = scipy.linalg.eigh(matrix.T, overwrite_a=True, check_finite=False, subset_by_index=some)
    # The vectors of near eigenvalues are less orthogonal than their precision: a Newton-Schulz step.
    basis = basis @ (1.5 * np.eye(rank, dtype=basis.dtype) - 0.5 * (basis.T @ basis))
    return values[::-1], basis[:, ::-1]


def _in_range(tensor: Array) -> bool:
    """Whether products and sums of this tensor's squares stay in float32's range."""
    largest = max(float(tensor.max(initial=0.0)), -float(tensor.min(initial=0.0)))
    return tensor.dtype == np.float32 and 1e-12 < largest < 1e12


def singular_values(tensor: Array, axis: int = 0) -> Array:
    """The min(n, D) singular values of the unfolding along `axis`, descending, in float64.

    Of a matrix with both sides above 16,384 all but the first 1,024 are one flat tail.
    """
    matrix = unfold(tensor, axis)
    if matrix.size <= _SMALL:
        import scipy.linalg

        values: Array = scipy.linalg.svdvals(matrix.astype(np.float64), check_finite=False)
        return values
    if min(matrix.shape) > _MOST:
        with threads_for(min(matrix.shape)):
            return estimated_spectrum(matrix)
    smaller = 0 if matrix.shape[0] <= matrix.shape[1] else 1
    if matrix.shape[smaller] >= _SINGLE_VALUES and _in_range(matrix):
        single = gram(matrix, smaller, np.float32).astype(np.float32)
        eigenvalues = _eigenvalues(single)
        if eigenvalues[-1] > _FLOOR_VALUES * eigenvalues[0]:
            return np.sqrt(eigenvalues.astype(np.float64))
    return np.sqrt(np.maximum(_eigenvalues(gram(matrix, smaller)), 0))


def _eigenvalues(matrix: Array) -> Array:
    """All eigenvalues, descending."""
    with threads_for(len(matrix)):
        values: Array = np.linalg.eigvalsh(matrix)
    return values[::-1]


def column_basis(matrix: Array, rank: int) -> Array:
    """Orthonormal basis [T, rank] of the best subspace of the columns, in the matrix's dtype.

    Columns beyond min(T, D), which nothing needs, are zero.
    """
    basis = left_basis(matrix, rank=min(rank, *matrix.shape))[0]
    missing = rank - basis.shape[1]
    return np.pad(basis, ((0, 0), (0, missing))).astype(matrix.dtype)


def two_factors(matrix: Array, rank: int) -> tuple[Array, Array]:
    """The best approximation A B of that rank (Eckart and Young 1936), the singular values shared.

    Args:
        matrix: [T, D].
        rank: At most min(T, D).

    A small rank of a large float32 matrix may come from a sketch, whose error is within 0.1 % of that.

    Returns:
        A [T, rank] and B [rank, D] in the matrix's dtype, the norms of A's columns and B's rows equal
        component by component: the square roots of the singular values.
    """
    if matrix.shape[0] > matrix.shape[1]:
        b, a = two_factors(matrix.T, rank)
        return np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    sketched = worthwhile(matrix.shape[0], matrix.shape[1], rank) and _in_range(matrix)
    with threads_for(matrix.shape[0]):
        found = leading_factors(matrix, rank) if sketched else None
    if found is None:
        basis = left_basis(matrix, rank=rank)[0].astype(matrix.dtype, copy=False)
        found = basis, basis.T @ matrix
    basis, rows = found
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


def tails(spectra: Sequence[Array], ranks: Sequence[Sequence[int]]) -> Array:
    """For each of these ranks the share of the squared norm that truncation cuts off, [len(ranks)].

    Of several spectra the sum, an upper bound (De Lathauwer et al. 2000), at most 1.
    """
    lost = np.zeros(len(ranks))
    for place, values in enumerate(spectra):
        squares = np.square(values.astype(np.float64))
        # Summed from the far end, the small losses do not drown in the large total.
        left = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        at = [min(own[place], len(squares)) for own in ranks]
        lost += left[at] / (left[0] or 1.0)
    return np.minimum(lost, 1.0)


def fraction_of(full: int, fraction: float) -> int:
    """That fraction of a full rank, rounded half up, at least 1 and at most full."""
    return min(full, max(1, math.floor(fraction * full + 0.5)))
