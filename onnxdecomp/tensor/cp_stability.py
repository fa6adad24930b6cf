"""Error-preserving correction of a canonical polyadic decomposition.

Components that grow and cancel each other make a decomposition useless downstream: the smallest change
of a factor changes the tensor a lot. The sensitivity is the expected squared change of the tensor when
every number of the factors changes by independent noise of variance one (Tichavsky, Phan, Cichocki 2019,
"Sensitivity in tensor decomposition"). Among the factors whose error is at most a bound, the correction
looks for those of the least sensitivity, one factor at a time (Phan et al. 2020, "Stable low-rank tensor
decomposition for compression of convolutional neural network", arXiv:2008.05441).
"""

from __future__ import annotations

import math

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.tensor.cp_als import balanced, distance, norm, squares, sweep
from onnxdecomp.tensor.tenalg import cp_weights

_SLACK = 0.01
"""What the correction may add to the squared error, relative to it or to the squared norm explained."""
_CANCELLATION = 4.0
"""The most that the root sum of squares of the components' norms may be, relative to the tensor's norm.

It is at most 1 where the components are orthogonal, and has no bound where they cancel each other.
"""
_WIDER = 1.5
"""By how much the bound on the error grows while the components cancel each other above that."""
_STALLED = 1e-3
_GRIDS, _POINTS = 3, 80
"""The multiplier is looked for on so many grids, each between two points of the one before: it is at most a
ten thousandth below its root then, and all points of a grid take little more time than one."""


def stabilise(w: Array, factors: list[Array], max_sweeps: int) -> list[Array]:
    """The factors after a correction that adds at most half a hundredth to the error.

    Where the best approximation does not exist (the error falls for ever while components grow, as for
    tensors of border rank R), the bound on the error is raised until the components are bounded.
    """
    size = norm(w)
    # The squared error is known up to the rounding of the squared norm.
    floor = 4 * math.sqrt(np.finfo(w.dtype).eps) * size
    squared = distance(w, factors) ** 2
    # Where little is explained, a hundredth of the error would be most of it.
    bound = max(math.sqrt(squared + _SLACK * min(squared, max(0.0, size**2 - squared))), floor)
    while bound < size:
        corrected = correct(w, factors, bound, max_sweeps, _STALLED)
        if np.linalg.norm(cp_weights(corrected)) <= _CANCELLATION * size:
            return corrected
        bound *= _WIDER
    return factors


def sensitivity(factors: list[Array]) -> float:
    """Σ_m n_m Σ_r Π_{l≠m} |f_l,r|²; with three modes K tr(AᵀA∗BᵀB) + I tr(BᵀB∗CᵀC) + J tr(AᵀA∗CᵀC)."""
    each = squares(factors)
    return float(sum(len(f) * _others(each, m).sum() for m, f in enumerate(factors)))


def correct(w: Array, factors: list[Array], bound: float, max_sweeps: int, tolerance: float) -> list[Array]:
    """Factors of less sensitivity whose distance from `w` is at most `bound`, if that of the given ones is.

    Ends when a sweep lowers the sensitivity by less than the part `tolerance` of it.
    """
    size = norm(w)
    # Of all scalings of a component the least sensitive has the same mean square in every factor.
    shares = np.sqrt([float(size) for size in w.shape])

    def update(mode: int, factors: list[Array], projected: Array, normal: Array) -> Array:
        weights = _weights(factors, mode)
        shortest = _shortest(projected, normal, weights, size**2 - bound**2)
        return factors[mode] if shortest is None else shortest

    given, factors = factors, balanced(factors, shares)
    initial = present = sensitivity(factors)
    for _ in range(max_sweeps):
        factors = balanced(sweep(w, factors, update, size=size)[0], shares)
        previous, present = present, sensitivity(factors)
        if not present < previous * (1 - tolerance):
            break
    kept = present <= initial and distance(w, factors) <= bound * (1 + 1e-3)
    return factors if kept else given


def _weights(factors: list[Array], mode: int) -> Array:
    """The sensitivity as Σ_r weights_r |f_r|² of one mode's columns, and a constant."""
    each = squares(factors)
    others = [n for n in range(len(factors)) if n != mode]
    weights = sum((len(factors[n]) * _others(each, mode, n) for n in others), np.zeros(each.shape[1]))
    return np.asarray(np.maximum(weights, 1e-12 * weights.max(initial=0.0) + np.finfo(np.float64).tiny))


def _others(each: Array, *left_out: int) -> Array:
    rest = [row for m, row in enumerate(each) if m not in left_out]
    return np.asarray(math.prod(rest[1:], start=rest[0])) if rest else np.ones(each.shape[1])


def _shortest(projected: Array, normal: Array, weights: Array, explained: float) -> Array | None:
    """The factor A [n, R] of least Σ_r weights_r |a_r|² that explains so much of the tensor's energy.

    With the columns scaled by the roots of the weights it is the shortest one on the sphere of that
    error, A(μ) = P (N + μ)⁻¹ in the eigenbasis of N; the multiplier μ is the root of the secular equation
    Σ_k p_k² (s_k + 2 μ) / (s_k + μ)² = explained, whose left side falls with μ. None if not even the
    least-squares factor (μ = 0) explains so much, which only rounding can bring about.
    """
    scale = 1 / np.sqrt(weights)
    values, vectors = np.linalg.eigh(normal * (scale[:, None] * scale))
    values = np.maximum(values, 0.0)
    rotated = (projected * scale) @ vectors
    energies = np.einsum("nr,nr->r", rotated, rotated)

    def explains(multipliers: Array) -> Array:
        shifted = values + multipliers[:, None]
        return np.asarray(((shifted + multipliers[:, None]) / np.square(shifted)) @ energies > explained)

    low, high = math.log(1e-12 * values[-1]), math.log(1e6 * values[-1])
    for _ in range(_GRIDS):
        grid = np.linspace(low, high, _POINTS)
        enough = int(np.count_nonzero(explains(np.exp(grid))))
        if not enough:
            return None
        low, high = grid[enough - 1], grid[min(enough, _POINTS - 1)]
    corrected: Array = ((rotated / (values + math.exp(low))) @ vectors.T) * scale
    return corrected
