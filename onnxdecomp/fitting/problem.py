"""Problem: the loss of a weight on what a layer sees, as a quadratic.

With rows x of the input and wanted outputs y, both centred (their means go to the bias),

    loss(V) = E |y - V x|² + l |V - W|²
            = tr(V G VT) - 2 tr(V CT) + E |y|²,   G = E[x xT] + l I,  C = E[y xT] + l W,

the constant of the second term left out. W is the layer's own weight: where there are few rows, l > 0 keeps
the fit near it in the directions that the rows say nothing about (Tikhonov 1963, towards W).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

from onnxdecomp.fitting.moments import Moments
from onnxdecomp.layer import Array, Layer

_FLOOR = 1e-7
"""Of the mean variance: the least shrinkage, which keeps G invertible."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The quadratic of one layer; `V` is [g, T/g, D] throughout (see `as_rows`).

    Attributes:
        second: G, [g, D, D], positive definite.
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

    def loss(self, v: Array) -> float:
        """The loss of V [g, T/g, D], shrinkage included."""
        products = np.sum((v @ self.second) * v) - 2 * np.sum(v * self.cross)
        return float(products) + self.energy + self.pull

    def relative(self, v: Array) -> float:
        """The loss over E |y|²: 0 is exact, 1 as bad as a constant output; NaN where y is constant."""
        return self.loss(v) / self.energy if self.energy > 0 else float("nan")

    def gradient(self, v: Array) -> Array:
        """Half the gradient of the loss: V G - C."""
        return np.asarray(v @ self.second - self.cross)

    def bias(self, v: Array) -> Array:
        """The bias [T] that gives the outputs their mean: E[y] - V E[x]."""
        return np.asarray(self.mean_out - np.einsum("gtd,gd->gt", v, self.mean_in).reshape(-1))

    @cached_property
    def best(self) -> Array:
        """The weight [g, T/g, D] of least loss: C G^-1."""
        parts = [
            scipy.linalg.solve(g, c.T, assume_a="pos").T for g, c in zip(self.second, self.cross, strict=True)
        ]
        return np.stack(parts)


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
    second = moments.xx / n - mean_in[:, :, None] * mean_in[:, None, :]
    outputs = mean_out.reshape(len(mean_in), -1)
    cross = moments.yx / n - outputs[:, :, None] * mean_in[:, None, :]
    d = second.shape[-1]
    scale = float(np.trace(second, axis1=1, axis2=2).mean()) / d
    strength = (max(shrinkage, 0.0) + _FLOOR) * (scale or 1.0)
    second[:, np.arange(d), np.arange(d)] += strength
    cross += strength * weight
    energy = float(np.sum(moments.yy / n - mean_out**2))
    return Problem(
        second, cross, max(energy, 0.0), mean_in, mean_out, strength * float(np.sum(np.square(weight)))
    )


def as_rows(weight: Array, layer: Layer) -> Array:
    """A canonical weight (see Layer.weight) as [g, T/g, D] in float64."""
    return np.asarray(weight, np.float64).reshape(layer.groups, layer.outputs // layer.groups, -1)
