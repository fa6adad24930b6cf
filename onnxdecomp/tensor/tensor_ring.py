"""Fitting tensor rings: the sequential SVD of Zhao et al. 2016 and alternating least squares.

A ring of d cores G_k [r_k, n_k, r_{k+1}], r_d = r_0, stands for X[i_0, …, i_{d-1}], the trace of the matrix
product G_0[:, i_0, :] … G_{d-1}[:, i_{d-1}, :].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.tensor.cores import balanced
from onnxdecomp.tensor.linalg import column_basis, pooled, singular_values, tail_rank

Ring: TypeAlias = list[Array]

_WIDEST = 1024
"""The largest r_k r_{k+1} whose normal equations are solved; a wider core keeps the SVD's values."""

_RIDGE = 1e-9
"""Of the normal equations' mean eigenvalue: it keeps cancelling terms from growing without bound."""

_EXACT = 1e-6
"""The relative error at which a ring is exact as far as float32 can tell."""

_LARGE = 1024
"""The smaller side above which a basis of few vectors comes from subspace iteration."""

_OVERSAMPLED = 16
_POWERS = 3

_ROWS = 1 << 22
"""Elements of the tensor that are compared at a time."""


@dataclass(frozen=True, eq=False)
class Opened:
    """Tensors of one shape [n_0, …] in the singular bases of the mode `shift`, at which rings are opened.

    Attributes:
        bases: Of each tensor [n, u], orthonormal.
        rests: Of each tensor [u, n_{shift+1}, …, n_{shift-1}]: its coefficients, in cyclic order.
        shift: The mode.
        norm: The Frobenius norm of all tensors together.
    """

    bases: tuple[Array, ...]
    rests: tuple[Array, ...]
    shift: int
    norm: float


def open_at(tensors: Sequence[Array], shift: int) -> Opened:
    """The first step of every TR-SVD that starts with this mode."""
    d = tensors[0].ndim
    bases, rests = [], []
    for x in tensors:
        rolled = np.moveaxis(x, [(shift + k) % d for k in range(d)], range(d))
        matrix = rolled.reshape(len(rolled), -1)
        basis = column_basis(matrix, min(matrix.shape))
        bases.append(basis)
        rests.append((basis.T @ matrix).reshape(-1, *rolled.shape[1:]))
    norm = math.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in tensors))
    return Opened(tuple(bases), tuple(rests), shift, norm)


def ring_svd(
    opened: Opened, pair: tuple[int, int], ranks: Sequence[int] | None = None, share: float = 0.0
) -> list[Ring]:
    """The TR-SVD of tensors of one shape, with one set of ranks for all (Zhao et al. 2016, algorithm 1).

    The first truncation is split into the bonds `pair` on either side of the mode at which the tensors
    are opened; each later one gives the next bond.

    Args:
        opened: The tensors.
        pair: r_shift and r_{shift+1}.
        ranks: r_0 … r_{d-1}, of which those in `pair` are not read; or None for
        share: the part of the norm that each later truncation may lose.
    """
    shift, d = opened.shift, opened.rests[0].ndim
    a, b = pair
    rest: list[Array] = []
    cores: list[Ring] = []
    for basis, coefficients in zip(opened.bases, opened.rests, strict=True):
        useful = len(coefficients)
        missing = max(0, a * b - useful)
        core = np.pad(basis[:, : a * b], ((0, 0), (0, missing)))
        z = np.pad(coefficients.reshape(useful, -1)[: a * b], ((0, missing), (0, 0)))
        cores.append([core.reshape(-1, a, b).swapaxes(0, 1)])
        # [a b, others] to [b, others a]: the ring is a train from here on.
        rest.append(np.moveaxis(z.reshape(a, b, -1), 0, 2))
    left = b
    for step in range(1, d):
        mode = (shift + step) % d
        size = opened.rests[0].shape[step]
        if step == d - 1:
            for ring, last in zip(cores, rest, strict=True):
                ring.append(last.reshape(left, size, a))
            break
        rest = [z.reshape(left * size, -1) for z in rest]
        if ranks is not None:
            rank = ranks[(mode + 1) % d]
        else:
            values = pooled(singular_values(z) for z in rest)
            lost = float(np.linalg.norm(values))
            rank = tail_rank(values, share * opened.norm / lost) if lost else 1
        bases = [_leading_basis(z, rank) for z in rest]
        for ring, basis in zip(cores, bases, strict=True):
            ring.append(basis.reshape(left, size, rank))
        rest = [basis.T @ z for basis, z in zip(bases, rest, strict=True)]
        left = rank
    return [ring[d - shift :] + ring[: d - shift] for ring in cores]


def _leading_basis(matrix: Array, rank: int) -> Array:
    """Orthonormal basis of the leading left singular vectors; of a large matrix, nearly the leading ones.

    There by subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4) from a fixed seed.
    """
    side = min(matrix.shape)
    wide = rank + _OVERSAMPLED
    if side <= _LARGE or 4 * wide > side:
        return column_basis(matrix, rank)
    probe = np.random.default_rng(0).standard_normal((matrix.shape[1], wide)).astype(matrix.dtype)
    for _ in range(_POWERS):
        basis = np.linalg.qr(matrix @ probe)[0]
        probe = np.linalg.qr(matrix.T @ basis)[0]
    basis = np.linalg.qr(matrix @ probe)[0]
    return np.asarray(basis @ column_basis(basis.T @ matrix, rank))


def merged(cores: Sequence[Array], first: int) -> Array:
    """Neighbouring cores as one [r, Π n, r']; without any, the identity on a bond of size `first`."""
    out = np.eye(first).reshape(first, 1, first) if not cores else cores[0]
    for core in cores[1:]:
        out = np.tensordot(out, core, 1).reshape(out.shape[0], -1, core.shape[2])
    return out


def ring_error(tensor: Array, cores: Ring) -> float:
    """||X - ring|| / ||X|| in the Frobenius norm, from blocks; 0 for a zero tensor met exactly."""
    left, right = _halves(cores, tensor.dtype)
    matrix = tensor.reshape(left.shape[0], -1)
    step = max(1, _ROWS // matrix.shape[1])
    lost = norm = 0.0
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        lost += float(np.sum(np.square(matrix[rows] - left[rows] @ right, dtype=np.float64)))
        norm += float(np.sum(np.square(matrix[rows], dtype=np.float64)))
    return math.sqrt(lost / norm) if norm else (0.0 if lost == 0 else math.inf)


def _halves(cores: Ring, dtype: np.dtype[np.generic]) -> tuple[Array, Array]:
    """[N_left, r_0 r_h] and [r_0 r_h, N_right] whose product is the ring."""
    h = len(cores) // 2
    left, right = merged(cores[:h], 0), merged(cores[h:], 0)
    a, _, c = left.shape
    return (
        left.swapaxes(0, 1).reshape(-1, a * c).astype(dtype),
        right.transpose(2, 0, 1).reshape(a * c, -1).astype(dtype),
    )


def ring_als(tensor: Array, start: Ring, tolerance: float, max_sweeps: int) -> tuple[float, Ring]:
    """Alternating least squares from `start`: the best iterate and its relative error.

    Per sweep the tensor itself is met twice, by the merged half of the ring that is being held: the cores
    of the other half have small problems then. Ends when a sweep takes off less than the part `tolerance`
    of the error.
    """
    best = ring_error(tensor, start), start
    h, d = len(start) // 2, len(start)
    matrix = tensor.reshape(math.prod(tensor.shape[:h]), -1)
    cores = [c.astype(np.float64) for c in start]
    for _ in range(max_sweeps):
        if best[0] <= _EXACT:
            break
        _sweep_half(matrix, cores, h)
        cores = cores[h:] + cores[:h]
        _sweep_half(matrix.T, cores, d - h)
        cores = balanced(cores[d - h :] + cores[: d - h])
        error = ring_error(tensor, cores)
        if error >= best[0]:
            break
        before, best = best[0], (error, list(cores))
        if error > (1 - tolerance) * before:
            break
    return best


def sweep_cost(cores: Ring) -> int:
    """Multiplications of one sweep: with the tensor, and within the halves."""
    h = len(cores) // 2
    bonds = int(cores[0].shape[0] * cores[h].shape[0])
    left, right = (math.prod(int(core.shape[1]) for core in half) for half in (cores[:h], cores[h:]))
    return bonds * (3 * left * right + bonds * (left + right))


def _sweep_half(matrix: Array, cores: Ring, h: int) -> None:
    """Update the first h cores, in place; matrix [Π of their modes, Π of the others']."""
    held = merged(cores[h:], 0)
    c, a = held.shape[0], held.shape[2]
    flat = held.transpose(1, 0, 2).reshape(-1, c * a)
    seen = np.asarray(matrix @ flat.astype(matrix.dtype), np.float64)
    outer = (flat.T @ flat).reshape(c, a, c, a)
    for k in range(h):
        before, size, after = cores[k].shape
        if before * after > _WIDEST:
            continue
        left, right = merged(cores[:k], a), merged(cores[k + 1 : h], c)
        y = seen.reshape(left.shape[1], size, right.shape[1], c, a)
        y = np.tensordot(left, y, ((0, 1), (4, 0)))
        y = np.tensordot(y, right, ((2, 3), (1, 2)))
        gram = _closed(outer, left) if k > 0 else outer
        gram = gram.transpose(1, 0, 3, 2)  # the right side outermost: [b, c, b', c']
        gram = _closed(gram, right.transpose(2, 1, 0)) if k < h - 1 else gram
        cores[k] = _solve(gram, y.transpose(0, 2, 1)).transpose(0, 2, 1)


def _closed(gram: Array, core: Array) -> Array:
    """gram [x, y, x', y'] with a core [y, n, z] at both of its y: [x, z, x', z']."""
    x, (y, n, z) = len(gram), core.shape
    if y * z <= x * x * n:  # the smaller of two intermediate results
        own = np.tensordot(core, core, (1, 1))
        closed = np.tensordot(gram, own, ((1, 3), (0, 2)))
    else:
        half = np.tensordot(gram, core, (1, 0))
        closed = np.tensordot(half, core, ((2, 3), (0, 1)))
    return closed.transpose(0, 2, 1, 3)


def _solve(gram: Array, target: Array) -> Array:
    """The core [b, c, n] of the normal equations: gram [b, c, b', c'], target [b, c, n]."""
    import scipy.linalg

    b, c, n = target.shape
    system = gram.reshape(b * c, b * c)
    ridge = _RIDGE * float(np.trace(system)) / (b * c)
    if ridge == 0:
        return np.zeros_like(target)
    system = system + ridge * np.eye(b * c)
    solved: Array = scipy.linalg.solve(system, target.reshape(b * c, n), assume_a="sym", check_finite=False)
    return solved.reshape(b, c, n)


def random_ring(tensor: Array, ranks: Sequence[int], rng: np.random.Generator) -> Ring:
    """Normal cores of these bonds."""
    ends = (*ranks[1:], ranks[0])
    return [rng.standard_normal(s) for s in zip(ranks, tensor.shape, ends, strict=True)]


def splits(rank: int, most: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The pairs (a, b) that a first truncation of that rank can be split into, a b >= rank.

    The divisors of the rank, and the most even pair where a product above the rank is more even; a and b
    at most `most`.
    """
    even = math.isqrt(max(0, rank - 1)) + 1
    pairs = {(a, rank // a) for a in range(1, rank + 1) if rank % a == 0}
    pairs |= {(even, -(-rank // even)), (-(-rank // even), even)}
    yield from sorted(p for p in pairs if p[0] <= most[0] and p[1] <= most[1])
