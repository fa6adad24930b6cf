"""The loss in one factor of a chain of convolutions, in the coordinates that the factor can see.

Let X_a be what the steps before a factor W make of a row, at each kernel position a that belongs to later
steps, and R_a what these make of the factor's outputs there. With V = sum_a R_a W X_a the loss is

    loss(W) = sum_ab tr(P_ab W Q_ab WT) - 2 tr(W BT) + a constant,

    P_ab = R_aT R_b,  Q_ab = X_a G X_bT,  B = sum_a R_aT C X_aT.

The outputs of the layer are gone from it, and its rows as far as steps before have narrowed them. A factor's
gradient is two products of matrices then, where through the chain and the layer's own G it takes as many
multiplications as the layer has outputs for each one here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Convolve, Step
from onnxdecomp.fitting.elimination import inverse_of
from onnxdecomp.fitting.quadratic_loss import Problem

_DAMPING = 1e-4
"""Of the mean eigenvalue of either side of the preconditioner."""


@dataclass(frozen=True, eq=False)
class Sight:
    """What a factor sees of a problem.

    Attributes:
        second: Q as [s q, a, a', s' q']: channels s and kernel positions q that the factor reads, positions
            a of later steps. In float32 where it is large and a factor is found by iterations, whose
            products need not be exact.
        cross: C XT as [T, s q, a].
    """

    second: Array
    cross: Array


def sight(step: Step, x: Array | None, after: Sequence[Step], problem: Problem) -> Sight | None:
    """What a step sees; None where it is no plain convolution, or others than convolutions follow.

    Args:
        step: Whose factor it is.
        x: The responses [S, inputs, *kernel so far] that it gets, of impulses in the layer's S channels;
            None for these impulses themselves.
        after: The steps behind it.
        problem: The loss.
    """
    if not isinstance(step, Convolve) or step.spec.groups != 1 or len(problem.second) != 1:
        return None
    if not all(isinstance(later, Convolve) for later in after):
        return None
    own = step.weight.shape[2:]
    before = (1,) * len(own) if x is None else x.shape[2:]
    later_sizes = [later.weight.shape[2:] for later in after if isinstance(later, Convolve)]
    later = tuple(math.prod(sizes) for sizes in zip((1,) * len(own), *later_sizes, strict=True))
    channels = step.inputs if x is None else len(x)
    sizes = [channels, *(b * q * a for b, q, a in zip(before, own, later, strict=True))]
    # Every axis of the kernel belongs to one of the three.
    parts = [[1 + k for k in range(len(own)) if many[k] > 1] for many in (before, own, later)]
    rest = [1 + k for k in range(len(own)) if sizes[1 + k] == 1]
    order = [0, *parts[0], *rest, *parts[1], *parts[2]]
    b, q, a = math.prod(before), math.prod(own), math.prod(later)
    rank = len(sizes)
    second = (problem.single if a > 1 else problem.second)[0].reshape(*sizes, *sizes)
    second = second.transpose(*order, *(rank + axis for axis in order))
    cross = problem.cross[0].reshape(-1, *sizes).transpose(0, *(1 + axis for axis in order))
    if x is None:
        s = channels
        second = second.reshape(s, q, a, s, q, a)
        cross = cross.reshape(-1, s, q, a)
    else:
        s = x.shape[1]
        exact = x.reshape(channels, s, b).swapaxes(0, 1).reshape(s, -1)
        made = exact.astype(second.dtype)
        once = made @ second.reshape(channels * b, -1)
        once = once.reshape(s * q * a, channels * b, q * a).swapaxes(0, 1)
        twice = made @ once.reshape(channels * b, -1)
        second = twice.reshape(s, s, q, a, q, a).transpose(1, 2, 3, 0, 4, 5)
        cross = cross.reshape(-1, channels * b, q * a).swapaxes(0, 1)
        cross = (exact @ cross.reshape(channels * b, -1)).reshape(s, -1, q, a).swapaxes(0, 1)
    second = second.transpose(0, 1, 2, 5, 3, 4).reshape(s * q, a, a, s * q)
    return Sight(second, cross.reshape(len(cross), s * q, a))


@dataclass(frozen=True, eq=False)
class FactorProblem:
    """The quadratic of one factor, of which W [c, s q] is the matrix.

    Attributes:
        sight: What it sees.
        spread: P as [c, c', a', a].
        right: B, [c, s q].
    """

    sight: Sight
    spread: Array
    right: Array

    def curved(self, w: Array) -> Array:
        """Half the Hessian times W: sum_ab P_ab W Q_ab, by products in the precision of Q."""
        second = self.sight.second
        seen = w.astype(second.dtype) @ second.reshape(len(second), -1)  # Q is symmetric: [c', a', a, s q]
        spread = self.spread.reshape(len(self.spread), -1).astype(second.dtype, copy=False)
        return np.asarray(spread @ seen.reshape(spread.shape[1], -1), np.float64)

    def gradient(self, w: Array) -> Array:
        """Half the gradient of the loss."""
        return self.curved(w) - self.right

    def preconditioner(self) -> Callable[[Array], Array]:
        """What divides a gradient [c, s q] by about the curvature.

        Were the later kernel positions independent of what is read there, the Hessian would be P ⊗ Q. They do
        correlate: P sums over pairs of them, each by how far what they see correlates (Martens and Grosse
        2015, "KFAC", with the exact moments).
        """
        second = self.sight.second
        positions = second.shape[1]
        mean = np.einsum("iaaj->ij", second).astype(np.float64) / positions
        pairs = np.einsum("iabi->ab", second, dtype=np.float64)
        pairs = pairs / (np.trace(pairs) / positions or 1.0)
        left = _inverse(np.einsum("cdba,ab->cd", self.spread, pairs))
        right = _inverse(mean)
        return lambda gradient: np.asarray(left @ gradient @ right)


def factor_problem(step: Convolve, after: Sequence[Step], seen: Sight) -> FactorProblem:
    """The problem of a step's factor, whose `sight` this is."""
    c = len(step.weight)
    outputs = np.eye(c).reshape(c, c, *(1,) * (step.weight.ndim - 2))
    for later in after:
        outputs = later.forward(outputs)  # [c, T, *kernel of those after]
    cross, positions = seen.cross, seen.cross.shape[2]
    made = outputs.reshape(c, -1, positions)  # [c, T, a]
    flat = made.transpose(0, 2, 1).reshape(c * positions, -1)
    spread = (flat @ flat.T).reshape(c, positions, c, positions).transpose(0, 2, 3, 1)
    right = made.reshape(c, -1) @ cross.transpose(0, 2, 1).reshape(-1, cross.shape[1])
    return FactorProblem(seen, np.ascontiguousarray(spread), right)


def _inverse(matrix: Array) -> Array:
    """Of a positive semidefinite matrix, damped."""
    n = len(matrix)
    damping = _DAMPING * float(np.trace(matrix)) / n or 1.0
    return inverse_of(matrix + damping * np.eye(n))
