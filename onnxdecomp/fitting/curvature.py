"""The curvature of a loss in one factor of a chain, as a Kronecker product: a preconditioner.

Let u be what a convolution within the chain reads of a row, and R what the later steps make of its outputs.
The loss of its weight W is the energy of R W u; were the kernel positions that come later independent of u,
its Hessian would be P ⊗ Q with Q = E[u uT], P = RT R. Kernel positions do correlate: P sums over pairs of
them, each by how far what they see correlates (Martens and Grosse 2015, "KFAC", with the exact moments).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Convolve, Step

_DAMPING = 1e-4
"""Of the mean eigenvalue of either side."""


def preconditioner(
    step: Step, x: Array, after: Sequence[Step], second: Array
) -> Callable[[Array], Array] | None:
    """What divides a gradient of the step's weight by about the curvature; None where it is not known.

    Args:
        step: Whose weight it is.
        x: The responses [S, inputs, *kernel so far] that it gets, of impulses in the layer's S channels.
        after: The steps behind it.
        second: G, [g, D, D] (see `Problem`).
    """
    if not isinstance(step, Convolve) or step.spec.groups != 1 or len(second) != 1:
        return None
    if not all(isinstance(later, Convolve) for later in after):
        return None
    t, _, *own = step.weight.shape
    before = x.shape[2:]
    outputs = np.eye(t).reshape(t, t, *(1,) * len(own))
    for later in after:
        outputs = later.forward(outputs)  # [t, T, *kernel of those after]
    seen, weights = _seen(second[0], x, tuple(own), outputs.shape[2:], before)
    flat = outputs.reshape(t, outputs.shape[1], -1)
    sensitivity = np.einsum("tua,ab,vub->tv", flat, weights, flat, optimize=True)
    left, right = _inverse(sensitivity), _inverse(seen)

    def divided(gradient: Array) -> Array:
        return np.asarray((left @ gradient.reshape(t, -1) @ right).reshape(gradient.shape))

    return divided


def _seen(
    second: Array, x: Array, own: tuple[int, ...], after: tuple[int, ...], before: tuple[int, ...]
) -> tuple[Array, Array]:
    """Q of what the step reads, [s q, s q], and how far later kernel positions correlate, [a, a]."""
    channels, s = x.shape[:2]
    b, q, a = math.prod(before), math.prod(own), math.prod(after)
    # Each axis of the kernel belongs to one of the three, and G is read as it lies: it may be large.
    parts = [n for sizes in zip(before, own, after, strict=True) for n in sizes]
    split = second.reshape(channels, *parts, channels, *parts)
    axes = range(len(own))
    left = [0, *(1 + 3 * axis + part for axis in axes for part in range(3))]
    right = [place + len(left) for place in left]
    row, column = ([own[1 + 3 * axis + part] for part in (0, 1) for axis in axes] for own in (left, right))
    later, other = ([own[3 + 3 * axis] for axis in axes] for own in (left, right))
    same = [place - len(left) if place in other else place for place in right]
    mean = np.einsum(split, [*left, *same], [left[0], *row, right[0], *column])
    mean = mean.reshape(channels, b, q, channels, b, q) / a
    repeated = [place if place in other else place - len(left) for place in right]
    pairs = np.einsum(split, [*left, *repeated], [*later, *other]).reshape(a, a)
    features = x.reshape(channels, s, b)
    seen = np.einsum("cib,cbqder,dje->iqjr", features, mean, features, optimize=True)
    return seen.reshape(s * q, s * q), pairs / (np.trace(pairs) / a or 1.0)


def _inverse(matrix: Array) -> Array:
    """Of a positive semidefinite matrix, damped."""
    n = len(matrix)
    damping = _DAMPING * float(np.trace(matrix)) / n or 1.0
    return np.linalg.inv(matrix + damping * np.eye(n))
