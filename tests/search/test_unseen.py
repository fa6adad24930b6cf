"""What changes do to the output is looked at on inputs that they were not fitted to."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.data.read import read_feeds
from onnxdecomp.runtime.session import TensorSpec
from onnxdecomp.search.layer_profiles import profile_layers
from onnxdecomp.search.scope import Scope
from tests.builders.graphs import model
from tests.search.test_channel_profiles import opened

RNG = np.random.default_rng(0)


def test_few_rows_do_not_make_a_cut_free() -> None:
    """64 units before a classifier and 32 inputs: on these few units give nearly all of its outputs."""
    shapes = {"up": (64, 20), "out": (8, 64)}
    stored = {
        name: (RNG.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    nodes = [
        helper.make_node("Gemm", ["x", "up"], ["h"], name="up", transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "out"], ["y"], name="out", transB=1),
    ]
    found, matched, channels = opened(model(nodes, {"x": ["N", 20]}, {"y": ["N", 8]}, stored))
    x = RNG.standard_normal((32, 20)).astype(np.float32)
    calibration = Calibration(
        read_feeds({"x": x}, [TensorSpec("x", ("N", 20), "float32")]), batch=4, threads=1
    )
    profiles = profile_layers(
        found, matched, Scope(methods=("svd",), skip_below=0.0), calibration, channels=channels
    )
    (entry,) = profiles.channels
    losses = {level.kept: loss for level, loss in zip(entry.levels, entry.losses(), strict=True)}
    # On the inputs that it was fitted to it is a third.
    assert losses[32] > 0.12
    assert losses[56] > 0.015
