"""BatchNormalization behind layers that changed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import helper

from onnxdecomp.calibration.batchnorm import normalisations, renormalise
from onnxdecomp.calibration.statistics import window
from onnxdecomp.core.layer import Array
from tests.builders.feeds import calibration, normal
from tests.builders.graphs import conv, from_x
from tests.builders.models import PICTURE
from tests.builders.running import values

FEEDS = [{"x": normal(1, 4, 6, 6, seed=index)} for index in range(20)]
NODES = [
    conv("layer", "x", "h"),
    helper.make_node("Relu", ["h"], ["r"]),
    helper.make_node("BatchNormalization", ["r", "scale", "shift", "mean", "variance"], ["y"], name="bn"),
]


def model(weight: Array) -> ir.Model:
    numbers = {"scale": normal(4), "shift": normal(4, seed=1), "mean": normal(4, seed=2)}
    variance = {"variance": np.square(normal(4, seed=3)) + np.float32(0.5)}
    return from_x(NODES, {"layer.w": weight, "layer.b": normal(4, seed=4), **numbers, **variance}, PICTURE)


def moments(y: Array) -> Array:
    return np.stack([y.mean((0, 2, 3)), y.std((0, 2, 3))])


def test_the_output_gets_its_moments_back() -> None:
    weight = normal(4, 4, 1, 1)
    original, now = model(weight), model(weight + normal(4, 4, 1, 1, seed=7))
    before, damaged = (moments(values(m, ["y"], FEEDS)[0]) for m in (original, now))
    settings = calibration(FEEDS)
    (node,) = normalisations(now)
    windows = window(now, settings), window(original, settings)
    assert renormalise(now, node, *windows, {node})
    repaired = moments(values(now, ["y"], FEEDS)[0])
    # The epsilon beside the variance is not scaled.
    np.testing.assert_allclose(repaired, before, rtol=1e-3, atol=1e-3)
    assert np.abs(damaged - before).max() > 0.1
    assert {"mean", "variance"}.isdisjoint(now.graph.initializers)


def test_nothing_changes_where_nothing_was_lost() -> None:
    weight = normal(4, 4, 1, 1)
    original, now = model(weight), model(weight)
    settings = calibration(FEEDS)
    (node,) = normalisations(now)
    assert not renormalise(now, node, window(now, settings), window(original, settings), {node})
    assert {"mean", "variance"} <= set(now.graph.initializers)


def test_training_and_computed_statistics_are_left_alone() -> None:
    made = model(normal(4, 4, 1, 1))
    (node,) = normalisations(made)
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    assert normalisations(made) == []
