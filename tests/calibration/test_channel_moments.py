"""What readers of a channel see: outputs that are normalised behind them count alike."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxdecomp.calibration.channel_moments import moments_of_weights, reader_moments
from onnxdecomp.channels.find_channels import find_channels
from onnxdecomp.layers.find import find
from tests.builders import graphs
from tests.builders.graphs import node

WIDTH, OUTER = 8, 6


def spelled_out(x: str) -> list[onnx.NodeProto]:
    """A LayerNormalization of x in single nodes, to y."""
    return [
        node("ReduceMean", x, "mean", axes=[-1]),
        node("Sub", f"{x} mean", "c"),
        node("Pow", "c two", "p"),
        node("ReduceMean", "p", "v", axes=[-1]),
        node("Add", "v eps", "e"),
        node("Sqrt", "e", "root"),
        node("Div", "c root", "n"),
        node("Mul", "n g", "y"),
    ]


ROOT = [
    node("Mul", "d d", "p"),
    node("ReduceMean", "p", "v", axes=[-1]),
    node("Sqrt", "v", "root"),
    node("Div", "d root", "n"),
    node("Mul", "n g", "y"),
]

BEHIND = {
    "normalised": ([node("LayerNormalization", "d g", "y", name="ln")], "y"),
    "their sum with others": (
        [node("Add", "d x", "s", name="sum"), node("LayerNormalization", "s g", "y", name="ln")],
        "y",
    ),
    "a sum that goes on": (
        [
            node("Add", "d x", "s", name="sum"),
            node("LayerNormalization", "s g", "n", name="ln"),
            node("Add", "s n", "y", name="on"),
        ],
        "y",
    ),
    "a sum that is an output": (
        [node("Add", "d x", "s", name="sum"), node("LayerNormalization", "s g", "y", name="ln")],
        "s y",
    ),
    "an activation": ([node("Relu", "d", "r", name="r"), node("LayerNormalization", "r g", "y")], "y"),
    "one in single nodes": (spelled_out("d"), "y"),
    "one of their sum in single nodes": ([node("Add", "d x", "s", name="sum"), *spelled_out("s")], "y"),
    "one by the root of squares": (ROOT, "y"),
    "one in single nodes, and a sum": (
        [*spelled_out("d")[:-1], node("Mul", "n g", "m"), node("Add", "d m", "y", name="on")],
        "y",
    ),
    "one over another axis": (
        [
            node("ReduceMean", "d", "mean", axes=[0]),
            node("Sub", "d mean", "n"),
            node("Mul", "n g", "y"),
        ],
        "y",
    ),
    "no mean": ([node("Pow", "d two", "p"), node("Sub", "d p", "n"), node("Mul", "n g", "y")], "y"),
    "nothing": ([node("Identity", "d", "y", name="id")], "y"),
}


ALIKE = (
    "normalised",
    "their sum with others",
    "one in single nodes",
    "one of their sum in single nodes",
    "one by the root of squares",
)


@pytest.mark.parametrize("behind", BEHIND)
def test_outputs_that_are_normalised_count_alike(behind: str) -> None:
    rng = np.random.default_rng(0)
    nodes, outputs = BEHIND[behind]
    chain = [
        node("MatMul", "x up", "h", name="up"),
        node("Relu", "h", "a", name="act"),
        node("MatMul", "a down", "d", name="down"),
    ]
    weights = {
        "up": rng.standard_normal((OUTER, WIDTH)).astype(np.float32),
        "down": rng.standard_normal((WIDTH, OUTER)).astype(np.float32),
        "g": np.ones(OUTER, np.float32),
        "two": np.array(2, np.float32),
        "eps": np.array(1e-5, np.float32),
    }
    model = graphs.from_x([*chain, *nodes], weights, (3, OUTER), *outputs.split())
    (channel,) = find_channels(model, find(model)[0])[0]
    seen = [(moments_of_weights(channel, reader), None) for reader in channel.readers]
    (reader,) = reader_moments(channel, seen, centre=True)
    assert (reader.importance is not None) == (behind in ALIKE)
    assert reader_moments(channel, seen, centre=False)[0].importance is None  # weights alone say nothing
