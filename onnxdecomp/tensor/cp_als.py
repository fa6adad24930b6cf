"""Alternating least squares for a canonical polyadic decomposition (Carroll and Chang 1970, Harshman 1970).

Factors are one matrix [n_m, R] per mode of a tensor [n_0, n_1, …]; a component is one column of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.tensor.tenalg import khatri_rao

_DOUBLE = 1 << 18
"""Elements of a tensor up to which the alternation works on a float64 copy of it."""
_RIDGE = 1e-6
"""Weight of the previous iterate in a normal equation, relative to the mean of its diagonal."""

Update: TypeAlias = Callable[[int, list[Array], Array, Array], Array]
"""(mode, factors, projected [n, R], normal [R, R]) to the new factor [n, R] of that mode."""


def alternate(w: Array, factors: list[Array], tolerance: float, max_sweeps: int) -> list[Array]:
    """Least-squares sweeps from these factors; the best iterate, in float64, components balanced.

    Ends when a sweep lowers the relative error by less than the part `tolerance` of it.
    """
    w = as_double(w)
    factors = balanced([f.astype(np.float64) for f in factors])
    best, least = factors, distance(w, factors)
    error, size = least, norm(w)
    for _ in range(max_sweeps):
        factors, squared = sweep(w, factors, _least_squares, inner=2, size=size)
        factors = balanced(factors)
        previous, error = error, math.sqrt(max(0.0, squared))
        if error < least:
            best, least = factors, error
        if not error < previous * (1 - tolerance):
            break
    return best


def as_double(w: Array) -> Array:
    """The tensor to alternate on: in float64 unless that copy would be large."""
    return w.astype(np.float64) if w.size <= _DOUBLE else w


def sweep(
    w: Array, factors: list[Array], update: Update, inner: int = 1, *, size: float | None = None
) -> tuple[list[Array], float]:
    """Update all modes, the first one last, the others `inner` times; the factors and the squared error.

    The squared error comes from the norms of what is there already, so it carries the rounding of |w|^2.
    `size` is |w|, where it is known.
    """
    flat = w.reshape(w.shape[0], -1)
    rank = factors[0].shape[1]
    factors = list(factors)
    grams = [f.T @ f for f in factors]
    # One product with the whole tensor serves the updates of all modes but the first.
    seen = (factors[0].T.astype(w.dtype) @ flat).reshape(rank, *w.shape[1:])
    for mode in [*range(1, w.ndim)] * inner:
        projected = _contracted(seen, factors[1:], mode - 1)
        factors[mode] = update(mode, factors, projected, _normal(grams, mode))
        grams[mode] = factors[mode].T @ factors[mode]
    right = _products([f.astype(w.dtype, copy=False) for f in factors[1:]])
    projected = (flat @ right).astype(np.float64, copy=False)
    normal = _normal(grams, 0)
    a = factors[0] = update(0, factors, projected, normal)
    model = float(np.vdot(normal, a.T @ a))
    size = norm(w) if size is None else size
    return factors, size**2 - 2 * float(np.vdot(projected, a)) + model


def norm(w: Array) -> float:
    """The Frobenius norm, accumulated in float64 without a copy in it."""
    flat = w.reshape(len(w), -1)
    return math.sqrt(float(np.einsum("ij,ij->", flat, flat, dtype=np.float64)))


def distance(w: Array, factors: list[Array]) -> float:
    """|w - what|, from the difference itself, a few rows of the first mode at a time."""
    a, *others = (f.astype(w.dtype, copy=False) for f in factors)
    right = khatri_rao(others).T
    flat = w.reshape(len(w), -1)
    step = max(1, _DOUBLE // flat.shape[1])
    blocks = (norm(flat[i : i + step] - a[i : i + step] @ right) for i in range(0, len(w), step))
    return math.hypot(*blocks)


def balanced(factors: list[Array], shares: Array | None = None) -> list[Array]:
    """The same components, their norms shared evenly by the factors, or in the proportions `shares`."""
    norms = np.sqrt(squares(factors))
    norms[norms == 0] = 1.0
    mean = np.exp(np.log(norms).mean(axis=0))
    if shares is None:
        return [f * (mean / n) for f, n in zip(factors, norms, strict=True)]
    shares = shares / np.exp(np.log(shares).mean())
    return [f * (share * mean / n) for f, share, n in zip(factors, shares, norms, strict=True)]


def squares(factors: list[Array]) -> Array:
    """The squared norms [modes, R] of the columns."""
    return np.stack([np.einsum("nr,nr->r", f, f) for f in factors])


def _products(factors: list[Array]) -> Array:
    """The column-wise products [Π n_m, R]; small ones by the thousand, so none of TensorLy's checks."""
    first, *rest = factors
    for factor in rest:
        first = (first[:, None, :] * factor).reshape(-1, first.shape[1])
    return first


def _contracted(seen: Array, others: list[Array], mode: int) -> Array:
    """`seen` [R, n_1, n_2…] times all `others` [n_m, R] but one: [n_mode, R]."""
    rank = len(seen)
    columns = [f.astype(seen.dtype, copy=False).T for f in others]
    for own in reversed(columns[mode + 1 :]):
        seen = np.matmul(seen.reshape(rank, -1, own.shape[1]), own[:, :, None])
    for own in columns[:mode]:
        seen = np.matmul(own[:, None, :], seen.reshape(rank, own.shape[1], -1))
    return seen.reshape(rank, -1).T.astype(np.float64, copy=False)


def _normal(grams: list[Array], mode: int) -> Array:
    """The normal matrix [R, R] of one mode: the Hadamard product of the others' Gram matrices."""
    first, *rest = (gram for m, gram in enumerate(grams) if m != mode)
    return np.asarray(math.prod(rest, start=first))


def _least_squares(mode: int, factors: list[Array], projected: Array, normal: Array) -> Array:
    """The least-squares factor [n, R], held to the present one where the equations say nothing."""
    from scipy.linalg import lapack

    ridge = _RIDGE * max(float(normal.trace()) / len(normal), float(np.finfo(np.float64).tiny))
    held = normal.copy()
    held.flat[:: len(held) + 1] += ridge
    right = (projected + ridge * factors[mode]).T
    _, solved, refused = lapack.dposv(held, right)  # what SciPy's own solve asks besides takes longer
    if refused:
        raise np.linalg.LinAlgError("the normal matrix is not positive definite")
    return np.asarray(solved.T)
