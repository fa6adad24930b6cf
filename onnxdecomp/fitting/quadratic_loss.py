"""Problem: the loss of a weight on what a layer sees, as a quadratic.

With rows x of the input and wanted outputs y, both centred (their means go to the bias),

    loss(V) = E |y - V x|² + l |V - W|²
            = tr(V G VT) - 2 tr(V CT) + E |y|²,   G = E[x xT] + l I,  C = E[y xT] + l W,

the constant of the second term left out. W is the layer's own weight: where there are few rows, l > 0 keeps
the fit near it in the directions that the rows say nothing about (Tikhonov 1963, towards W).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.linalg

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.tensor.blas_threads import LONG, threads_for

_FLOOR = 1e-7
"""Of the mean variance: the least shrinkage, which keeps G invertible in float64."""

LARGE = 512
"""Features from which products that need not be exact are taken in float32."""

_BLOCK = 1 << 20
"""Numbers that are made at once beside C."""

_COLUMNS = 256
"""Of a right-hand side, solved at once: Python's other threads wait as long (see `LONG`)."""

_UNSEEN = 1e-9
"""Of the largest eigenvalue: below it a direction of the input counts as never seen."""

_ROUNDING = 1e-12
"""Of the mean square: what the sums' rounding may leave of a variance of nothing."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The quadratic of one layer; `V` is [g, T/g, D] throughout (see `as_rows`).

    Attributes:
        second: G, [g, D, D], positive definite up to the rounding of the sums.
        cross: C, [g, T/g, D].
        energy: E |y|², centred, of all outputs together.
        mean_in, mean_out: E[x] [g, D] and E[y] [T].
        pull: l |W|²: what the shrinkage adds to the loss as a constant.
    """

    second: Array
    cross: Array
    energy: float
    mean_in: Array
    mean_out: Array
    pull: float
    _white: dict[int, tuple[Array, Array]] = field(default_factory=dict, init=False, repr=False)

    def loss(self, v: Array) -> float:
        """The loss of V [g, T/g, D], shrinkage included."""
        products = np.sum((v @ self.second) * v) - 2 * np.sum(v * self.cross)
        return float(products) + self.energy + self.pull

    def relative(self, v: Array) -> float:
        """The loss over E |y|²: 0 is exact, 1 as bad as a constant output.

        Where y is constant, rows say nothing: then |V - W|² over |W|².
        """
        whole = self.energy or self.pull
        return self.loss(v) / whole if whole > 0 else 0.0

    def about(self, v: Array) -> float:
        """The relative loss by products that need not be exact (see `single`): to compare strengths by."""
        whole = self.energy or self.pull
        products = float(np.sum((v.astype(self.single.dtype) @ self.single) * v))
        found = products - 2 * float(np.sum(v * self.cross)) + self.energy + self.pull
        return found / whole if whole > 0 else 0.0

    def gradient(self, v: Array) -> Array:
        """Half the gradient of the loss: V G - C."""
        return np.asarray(v @ self.second - self.cross)

    def bias(self, v: Array) -> Array:
        """The bias [T] that gives the outputs their mean: E[y] - V E[x]."""
        return np.asarray(self.mean_out - np.einsum("gtd,gd->gt", v, self.mean_in).reshape(-1))

    @cached_property
    def single(self) -> Array:
        """G in float32 where it is large: for products that need not be exact, at half the time."""
        return self.second.astype(np.float32) if self.second.shape[-1] >= LARGE else self.second

    @cached_property
    def best(self) -> Array:
        """The weight [g, T/g, D] of least loss: C G^-1."""
        return np.stack([_solved(g, c) for g, c in zip(self.second, self.cross, strict=True)])

    def modes(self, most: int | None = None) -> Array:
        """The directions [g, T/g, modes] in which the best outputs vary, as columns, that of the most first.

        `most` of them, orthonormal; min(T/g, D) where none is said, or there are fewer.
        """
        leading = self._modes[:, :, :most]
        if leading.shape[1] <= self.second.shape[1]:
            return leading
        return np.stack([np.linalg.qr(group)[0] for group in leading])

    @cached_property
    def _modes(self) -> Array:
        """All modes; with more outputs than features not of length 1, nor orthogonal to the last digit."""
        groups = zip(self.best, self.cross, self.second, strict=True)
        return np.stack([_modes(best, cross, second) for best, cross, second in groups])

    def white(self, channels: int) -> tuple[Array, Array]:
        """The best weight with its input channels whitened, and what whitens them: the same at all ranks.

        Args:
            channels: S/g, of each group; D is a multiple, the kernel positions of a channel together.

        Returns:
            [g, T/g, S/g, D/(S/g)] and [g, S/g, S/g].
        """
        if channels not in self._white:
            self._white[channels] = _whitened(self, channels)
        return self._white[channels]


def problem(moments: Moments, weight: Array, shrinkage: float = 0.0, *, centred: bool = True) -> Problem:
    """The quadratic of these rows.

    Args:
        moments: Of the layer's rows.
        weight: The layer's own weight, [g, T/g, D].
        shrinkage: l as a multiple of the mean variance of an input feature.
        centred: Take the means off; else they count as zero.
    """
    n = moments.count
    share = 1 / n if centred else 0.0
    mean_in, mean_out = moments.x * share, moments.y * share
    second = moments.xx / n
    d = second.shape[-1]
    for group, mean in enumerate(mean_in if centred else ()):
        for start in range(0, d, _COLUMNS):
            rows = slice(start, start + _COLUMNS)
            second[group, rows] -= mean[rows, None] * mean
    scale = float(np.trace(second, axis1=1, axis2=2).mean()) / d
    square = float(np.trace(moments.xx, axis1=1, axis2=2).mean()) / d / n
    strength = (max(shrinkage, 0.0) + _FLOOR) * max(scale, 0.0) + _ROUNDING * square or 1.0
    second[:, np.arange(d), np.arange(d)] += strength
    cross = _cross(moments.yx / n, mean_out.reshape(len(mean_in), -1), mean_in, weight, strength)
    energy = float(np.sum(moments.yy / n - mean_out**2))
    if energy <= _ROUNDING * float(np.sum(moments.yy)) / n:
        energy = 0.0
    return Problem(second, cross, energy, mean_in, mean_out, strength * float(np.sum(np.square(weight))))


def _cross(yx: Array, mean_out: Array, mean_in: Array, weight: Array, strength: float) -> Array:
    """C from E[y xT], in place and some rows at a time: of a vocabulary it is large."""
    step = max(1, _BLOCK // yx.shape[2])
    for group in range(len(yx)):
        for start in range(0, yx.shape[1], step):
            rows = slice(start, start + step)
            yx[group, rows] -= mean_out[group, rows, None] * mean_in[group]
            yx[group, rows] += strength * weight[group, rows]
    return yx


def _solved(second: Array, cross: Array) -> Array:
    """C G^-1 of one group.

    With fewer rows than features, products summed in float32 may leave G slightly indefinite; directions
    below its most negative eigenvalue then count as never seen.
    """
    try:
        return solved_positive(second, cross.T).T
    except np.linalg.LinAlgError:
        values, vectors = _eigh(second)
        seen = values > 2 * abs(values[0])
        basis = vectors[:, seen]
        return np.asarray((cross @ basis / values[seen]) @ basis.T)


def solved_positive(matrix: Array, right: Array) -> Array:
    """The solution X of matrix X = right.

    Raises:
        numpy.linalg.LinAlgError: The matrix is not positive definite.
    """
    if len(matrix) <= LONG:
        return np.asarray(scipy.linalg.solve(matrix, right, assume_a="pos"))
    with threads_for(len(matrix)):
        lower = np.linalg.cholesky(matrix)
        solved = np.empty(right.shape)
        for start in range(0, right.shape[1], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            half = scipy.linalg.solve_triangular(lower, right[:, columns], lower=True, check_finite=False)
            solved[:, columns] = scipy.linalg.solve_triangular(
                lower, half, lower=True, trans="T", check_finite=False
            )
        return solved


def _whitened(problem: Problem, channels: int) -> tuple[Array, Array]:
    """See `Problem.white`."""
    groups, _, d = problem.cross.shape
    s, k = channels, d // channels
    covariance = np.einsum("gskqk->gsq", problem.second.reshape(groups, s, k, s, k)) / k
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, _UNSEEN * values[:, -1:])
    colour = (vectors * np.sqrt(values)[:, None, :]) @ vectors.swapaxes(1, 2)
    whiten = (vectors / np.sqrt(values)[:, None, :]) @ vectors.swapaxes(1, 2)
    best = problem.best.reshape(groups, -1, s, k)
    return np.einsum("gtsk,gsq->gtqk", best, colour, optimize=True), whiten


def _modes(best: Array, cross: Array, second: Array) -> Array:
    """Eigenvectors of L G LT = C LT; where T > D by those of RT LT L R, which is smaller, with G = R RT."""
    if best.shape[0] <= best.shape[1]:
        spread = cross @ best.T
        return _eigenvectors((spread + spread.T) / 2)
    spread = best @ _root(second)  # [T, D]
    return np.asarray(spread @ _eigenvectors(spread.T @ spread))


def _root(second: Array) -> Array:
    """R with R RT = G; of a G that rounding left indefinite without what lies below zero."""
    try:
        with threads_for(len(second)):
            return np.linalg.cholesky(second)
    except np.linalg.LinAlgError:
        values, vectors = _eigh(second)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def _eigenvectors(matrix: Array) -> Array:
    """Of a symmetric matrix, as columns, that of the largest eigenvalue first."""
    return _eigh(matrix)[1][:, ::-1]


def _eigh(matrix: Array) -> tuple[Array, Array]:
    with threads_for(len(matrix)):
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def as_rows(weight: Array, layer: Layer) -> Array:
    """A canonical weight (see Layer.weight) as [g, T/g, D] in float64."""
    return np.asarray(weight, np.float64).reshape(layer.groups, layer.outputs // layer.groups, -1)
