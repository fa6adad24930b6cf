"""Curves: what a method loses at all ranks, from its spectra and a few fits.

A spectrum may fall off a cliff between two fits, where no interpolation sees it. Chains of two factors have
their loss at every rank from one decomposition; methods that truncate spectra have its shape, which a few
fits scale; of the others more ranks are fitted where neighbouring ones differ by orders of magnitude.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.core.layer import Layer, Ranks
from onnxdecomp.decompositions.base import Decomposition, Truncating, outline
from onnxdecomp.fitting.initialization import reads_channels, reduced_losses, whitened
from onnxdecomp.fitting.quadratic_loss import Problem

Floats = NDArray[np.float64]
At = tuple[float, float]
"""The logarithm of a cost, and the loss there."""

_LEAST = 1e-9
"""Losses below it are rounding: they say nothing about how a shape is scaled."""

_CLIFF = 30.0
"""Neighbouring fits whose losses differ by more than this factor leave a gap to look into."""

_FURTHER = 4
"""Fits at most that go into gaps."""


def exact(
    method: Decomposition, layer: Layer, ranks: Sequence[Ranks], posed: Problem | None
) -> list[float] | None:
    """The loss at each of the ranks where it is known without a fit; None where it is not."""
    if posed is None:
        return None
    losses = reduced_losses(outline(method, layer, ranks[0]), posed)
    if losses is None:
        return None
    return [float(losses[min(own[0], len(losses) - 1)]) for own in ranks]


def shape(
    method: Decomposition, layer: Layer, ranks: Sequence[Ranks], posed: Problem | None
) -> list[float] | None:
    """What truncation loses at each of the ranks, of the whitened weight where the data say how; or None."""
    if not isinstance(method, Truncating):
        return None
    if posed is not None and reads_channels(method, layer, ranks[0]):
        layer, _ = whitened(layer, posed)
    return [float(loss) for loss in method.rank_curve(layer, ranks)]


def scaled(
    curve: Mapping[Ranks, float], costs: Mapping[Ranks, float], fits: Mapping[Ranks, float]
) -> dict[Ranks, float]:
    """The curve, made to go through the losses of the fits; in between its factor is interpolated."""
    known = sorted((costs[r], math.log(fits[r] / curve[r])) for r in fits if min(fits[r], curve[r]) > _LEAST)
    if not known:
        return dict(curve)
    x, y = zip(*known, strict=True)
    return {r: loss * math.exp(float(np.interp(costs[r], x, y))) for r, loss in curve.items()}


def filled_in(
    costs: Mapping[Ranks, float], fits: Mapping[Ranks, float], fit: Callable[[Ranks], float]
) -> None:
    """Fit more ranks, in the middle of gaps over which the loss falls off a cliff; `fit` adds to `fits`."""
    for _ in range(_FURTHER):
        ordered = sorted(fits, key=lambda r: costs[r])
        gaps = []
        for low, high in itertools.pairwise(ordered):
            between = [r for r in costs if costs[low] < costs[r] < costs[high]]
            fall = max(fits[low], _LEAST) / max(fits[high], _LEAST)
            if between and max(fall, 1 / fall) > _CLIFF:
                gaps.append((max(fall, 1 / fall), low, high, between))
        if not gaps:
            return
        _, low, high, between = max(gaps, key=lambda gap: gap[0])
        middle = (costs[low] + costs[high]) / 2
        fit(min(between, key=lambda r: abs(costs[r] - middle)))
