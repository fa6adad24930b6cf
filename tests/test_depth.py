"""Graphs of thousands of nodes in a line: nothing calls itself node after node."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from onnxdecomp.channels.find_channels import find_channels
from onnxdecomp.graph.constants import resolve
from onnxdecomp.layers.find import find
from tests.builders.graphs import loaded, model, node

NODES = 400
ROOM = 120
"""Calls within calls that a test may need above its own: far fewer than nodes, however they are counted."""


@pytest.fixture(autouse=True)
def shallow() -> Iterator[None]:
    """Little room for calls within calls, so that short graphs show what very deep ones would run into."""
    before = sys.getrecursionlimit()
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(depth + ROOM)
    yield
    sys.setrecursionlimit(before)


def line() -> onnx.ModelProto:
    """Products with activations between, one after the other."""
    nodes, weights, x = [], {}, "x"
    for index in range(NODES):
        out = "y" if index == NODES - 1 else f"v{index}"
        if index % 3:
            nodes.append(node(["Relu", "Sigmoid"][index % 3 - 1], x, out))
        else:
            weights[f"w{index}"] = np.eye(8, dtype=np.float32) + index % 5
            nodes.append(node("MatMul", f"{x} w{index}", out))
        x = out
    return model(nodes, {"x": ["N", 8]}, {"y": ["N", 8]}, weights)


def computed_weight() -> onnx.ModelProto:
    """A weight that is computed by node after node."""
    nodes = [node("Neg", "w" if not index else f"c{index - 1}", f"c{index}") for index in range(NODES)]
    nodes.append(node("MatMul", f"x c{NODES - 1}", "y"))
    return model(nodes, {"x": ["N", 8]}, {"y": ["N", 8]}, {"w": np.eye(8, dtype=np.float32)})


def computed_shape() -> onnx.ModelProto:
    """A shape that is computed by node after node, behind it and before it a layer."""
    nodes = [node("MatMul", "x w", "h"), node("Shape", "x", "s0")]
    nodes += [node("Abs", f"s{index}", f"s{index + 1}") for index in range(NODES)]
    nodes += [node("Reshape", f"h s{NODES}", "r"), node("MatMul", "r w", "y")]
    return model(nodes, {"x": ["N", 8]}, {"y": ["N", 8]}, {"w": np.eye(8, dtype=np.float32)})


@pytest.mark.parametrize("made", [line, computed_weight, computed_shape])
def test_layers_and_channels_are_found_in_deep_graphs(made: object) -> None:
    assert callable(made)
    graph = loaded(made())
    matched, _ = find(graph)
    assert matched
    channels, skipped = find_channels(graph, matched)
    assert len(channels) + len(skipped) >= len(matched) - 1
    for match in matched[-1:]:
        assert not isinstance(resolve(match.weight, ir_version=8), str)
