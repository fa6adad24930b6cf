"""EVBMF: the rank of a matrix under noise, by the analytic empirical variational Bayes solution.

Nakajima, Sugiyama, Babacan and Tomioka 2013, "Global analytic solution of fully-observed variational
Bayesian matrix factorization", JMLR 14. Only singular values and the matrix's size are needed, so a thin
spectrum does. It knows neither accuracy nor latency: a prior, not a verdict.
"""

from __future__ import annotations

import math

import numpy as np

from onnxdecomp.core.layer import Array

_FLOOR = float(np.finfo(np.float32).eps)
"""Singular values below this part of the largest are rounding, of which no variance can be learnt."""


def evbmf(singular_values: Array, rows: int, cols: int, variance: float | None = None) -> int:
    """The number of components that stand out of the noise.

    Args:
        singular_values: All min(rows, cols) singular values, descending.
        rows, cols: The matrix's size, in either order.
        variance: Variance of the noise on one element; None estimates it (their section 4.3: the
            minimum of the free energy between analytic bounds).

    Returns:
        The rank, 0 where everything looks like noise.
    """
    short, long = sorted((rows, cols))
    values = np.asarray(singular_values, np.float64)
    if len(values) != short:
        raise ValueError(f"{len(values)} singular values of a {rows} x {cols} matrix: give all {short}")
    if short == 0 or values[0] == 0:
        return 0
    # Relative to the largest one, so that no square under- or overflows.
    scale = float(values[0])
    squares = np.square(np.maximum(values / scale, _FLOOR if variance is None else 0.0)) / long
    noise = _variance(squares, short / long) if variance is None else variance / scale**2
    return int(np.count_nonzero(squares > noise * _threshold(short / long)))


def _threshold(alpha: float) -> float:
    """x̲ of theorem 2: a component is kept where γ² > M σ² x̲."""
    tau = 2.5129 * math.sqrt(alpha)
    return (1 + tau) * (1 + alpha / tau)


def _variance(squares: Array, alpha: float) -> float:
    """The noise variance that minimises the free energy; `squares` are γ_h² / M."""
    from scipy.optimize import minimize_scalar

    count = len(squares)
    most = min(count - 1, math.ceil(count / (1 + alpha)) - 1)  # components at most
    upper = float(np.mean(squares))
    lower = max(float(squares[most]) / _threshold(alpha), float(np.mean(squares[most:])))
    if lower >= upper:
        return upper

    def energy(log_variance: float) -> float:
        return _free_energy(squares * math.exp(-log_variance), alpha)

    # The free energy can have several minima: look for the valley first.
    grid = np.linspace(math.log(lower), math.log(upper), 65)
    lowest = int(np.argmin([energy(float(v)) for v in grid]))
    bounds = (float(grid[max(0, lowest - 1)]), float(grid[min(64, lowest + 1)]))
    return math.exp(float(minimize_scalar(energy, bounds=bounds, method="bounded").x))


def _free_energy(x: Array, alpha: float) -> float:
    """Ω of theorem 3 with x_h = γ_h² / (M σ²): the sum of ψ_0, and of ψ_1 above the threshold."""
    kept = x[x > _threshold(alpha)]
    middle = kept - (1 + alpha)
    tau = 0.5 * (middle + np.sqrt(np.square(middle) - 4 * alpha))
    gain = np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
    return float(np.sum(x - np.log(x)) + np.sum(gain))
