"""Estimates of what candidates lose, shrunk across candidates and layers (James and Stein 1961)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from onnxdecomp.core.layer import Array, Ranks
from onnxdecomp.search.layer_profiles import LayerProfile

_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Estimates:
    """What a layer's candidates are thought to lose at the output; losses and costs are logarithms.

    Attributes:
        methods, costs: Of each candidate.
        alone: What it loses of the layer's own output.
        losses: What it loses at the output.
        folds: The same on each fold, [folds, candidates].
    """

    methods: tuple[str, ...]
    costs: Array
    alone: Array
    losses: Array
    folds: Array

    @staticmethod
    def of(entry: LayerProfile, parts: Sequence[LayerProfile]) -> Estimates:
        """Of a layer that has candidates; where a fold's search left one out, the own estimate stands."""
        keys = _keys(entry)
        own = dict(zip(keys, _logarithms(entry.losses()), strict=True))
        folds = [own | dict(zip(_keys(part), _logarithms(part.losses()), strict=True)) for part in parts]
        return Estimates(
            tuple(method for method, _ in keys),
            _logarithms([candidate.outline.cost.macs for candidate in entry.candidates]),
            _logarithms([candidate.loss for candidate in entry.candidates]),
            np.array([own[key] for key in keys]),
            np.array([[fold[key] for key in keys] for fold in folds]),
        )


def shrunk(layers: Sequence[Estimates], looks: int) -> list[Array]:
    """Of each layer the losses, drawn towards what its other candidates and its neighbours say.

    Args:
        layers: One after the other.
        looks: Folds that an estimate is the mean of.
    """
    # A layer's level: how much more its candidates lose at the output than of the layer's own output.
    levels = [float(np.mean(layer.losses - layer.alone)) for layer in layers]
    around = [
        float(np.mean(levels[max(0, i - 1) : i] + levels[i + 1 : i + 2] or levels))
        for i in range(len(levels))
    ]
    doubts = [float(layer.folds.mean(1).var(ddof=1)) / looks for layer in layers]
    scatter = max(0.0, float(np.mean(np.subtract(levels, around) ** 2 - doubts)))
    found = []
    for layer, level, beside, doubt in zip(layers, levels, around, doubts, strict=True):
        curve = _curves(layer)
        # What the folds disagree on beside the level, which all candidates of the layer share.
        apart = layer.folds - layer.folds.mean(1, keepdims=True)
        unsure = float(apart.var(0, ddof=1).mean()) / looks
        spread = max(0.0, float(np.mean((layer.losses - curve) ** 2)) - unsure)
        own = curve + _weight(spread, unsure) * (layer.losses - curve)
        found.append(own + (1 - _weight(scatter, doubt)) * (beside - level))
    return found


def _weight(signal: float, noise: float) -> float:
    return signal / (signal + noise) if noise > 0 else 1.0


def _curves(layer: Estimates) -> Array:
    """Of each candidate, a quadratic in the cost through its method's, made to fall."""
    found, methods = np.array(layer.losses), np.array(layer.methods)
    for method in dict.fromkeys(layer.methods):
        at = np.flatnonzero(methods == method)
        at = at[np.argsort(layer.costs[at], kind="stable")]
        if len(at) > 3:
            smooth = np.polynomial.Polynomial.fit(layer.costs[at], layer.losses[at], 2)(layer.costs[at])
            found[at] = isotonic_regression(smooth, increasing=False).x
    return found


def _keys(entry: LayerProfile) -> list[tuple[str, Ranks]]:
    return [(candidate.outline.method.name, candidate.outline.ranks) for candidate in entry.candidates]


def _logarithms(values: Sequence[float]) -> Array:
    return np.asarray(np.log(np.maximum(values, _LEAST)))
