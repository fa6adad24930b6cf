"""Rows for the tests of fits: what a layer might see, and the moments of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.decompositions.base import Decomposition, refusal_of
from onnxdecomp.decompositions.registry import get, names
from onnxdecomp.fitting.moments import Gatherer, Moments, features
from onnxdecomp.fitting.quadratic_loss import as_rows
from tests.builders.layers import conv_layer, linear_layer

LAYERS: dict[str, Layer] = {
    "conv1d": conv_layer(8, 6, (3,), seed=1),
    "conv2d": conv_layer(8, 6, (3, 3), seed=2),
    "conv2d grouped": conv_layer(8, 8, (3, 2), groups=2, seed=3),
    "conv3d": conv_layer(6, 4, (3, 2, 2), seed=4),
    "pointwise": conv_layer(8, 6, (1, 1), seed=5),
    "transposed": conv_layer(6, 8, (3, 3), transposed=True, stride=2, seed=6),
    "transposed grouped": conv_layer(8, 8, (4,), groups=2, transposed=True, stride=2, seed=7),
    "linear": linear_layer(12, 18, seed=8),
}
"""One of each kind, small enough for every method."""


def taking(layer: Layer) -> list[Decomposition]:
    """The methods, with their usual options, that take the layer."""
    return [method for method in map(get, names()) if refusal_of(method, layer) is None]


def third(
    cases: Sequence[tuple[str, Decomposition, Layer]], which: int
) -> list[tuple[str, Decomposition, Layer]]:
    """Of each method's kinds of layers every third: all of 0, 1 and 2 together are all cases."""
    kinds: dict[str, list[tuple[str, Decomposition, Layer]]] = {}
    for case in cases:
        kinds.setdefault(case[1].name, []).append(case)
    return [case for own in kinds.values() for case in own[which % len(own) :: 3]]


def correlated(layer: Layer, count: int, *, seed: int = 0, mean: float = 1.0) -> Array:
    """Rows [g, count, D] in float64: features depend on each other, and their means are not zero."""
    rng = np.random.default_rng(seed)
    g, d = layer.groups, features(layer)
    mix = rng.standard_normal((g, d, d)) * np.linspace(1, 0.1, d)[:, None]
    return rng.standard_normal((g, count, d)) @ mix + mean * rng.standard_normal((g, 1, d))


def outputs(layer: Layer, rows: Array) -> Array:
    """What the layer itself makes of rows, [n, T], its bias included."""
    y = rows @ as_rows(layer.weight, layer).swapaxes(1, 2)
    flat: Array = y.swapaxes(0, 1).reshape(rows.shape[1], -1)
    return flat if layer.bias is None else flat + layer.bias


def gathered(layer: Layer, rows: Array, wanted: Array | None = None, *, parts: int = 3) -> Moments:
    """Moments of rows and wanted outputs, by default the layer's own, added in some parts."""
    gatherer = Gatherer(layer.groups, layer.outputs, features(layer))
    wanted = outputs(layer, rows) if wanted is None else wanted
    for x, y in zip(np.array_split(rows, parts, axis=1), np.array_split(wanted, parts), strict=True):
        gatherer.add(x, y)
    return gatherer.moments()


def asymmetric(layer: Layer, count: int, *, seed: int = 0, noise: float = 0.3) -> tuple[Array, Array]:
    """Rows as a compressed prefix leaves them, and the layer's outputs on what they were."""
    rows = correlated(layer, count, seed=seed)
    seen = rows + noise * np.random.default_rng((seed, 1)).standard_normal(rows.shape)
    return seen, outputs(layer, rows)
