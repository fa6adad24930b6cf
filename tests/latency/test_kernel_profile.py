"""Kernels are traced back to the layers that they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

import onnxdecomp
from onnxdecomp.graph.load import load
from onnxdecomp.latency.kernel_profile import _by_layer, profile
from tests.builders import graphs
from tests.builders.models import network


def times(path: Path, layers: list[str], shape: tuple[int, ...] = (1, 8, 8, 8)) -> dict[str, float]:
    feed = {"x": np.ones(shape, np.float32)}
    found = profile(path, load(path), layers, feed, threads=1, seconds=0.05)
    assert found.total == pytest.approx(sum(found.layers.values()) + found.other)
    return dict(found.layers)


def test_convolutions_that_onnx_runtime_fuses_and_renames(tmp_path: Path) -> None:
    found = times(network(tmp_path / "net.onnx", channels=32), ["c1", "c2"])
    assert set(found) == {"c1", "c2"}
    assert all(ms > 0 for ms in found.values())


def test_all_kernels_of_a_chain_are_its_layers(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    original = network(tmp_path / "net.onnx", channels=32)
    onnxdecomp.compress(original, path, rank="16", simplify="none", verify=False, bench=False)
    kernels = {
        "c2/first_output_nchwc": 1.0,
        "c2/core_output_nchwc": 2.0,
        "y_nchwc": 4.0,
        "b_nchwc": 8.0,
        "R": 16.0,
    }
    found = _by_layer(kernels, load(path), {"c1", "c2"})
    assert (found.layers["c2"], found.layers["c1"], found.other) == (7.0, 8.0, 16.0)
    assert set(times(path, ["c1", "c2"])) == {"c1", "c2"}


def test_a_residual_sum_goes_to_the_branch_that_has_no_kernel_yet() -> None:
    """What ONNX Runtime makes of Conv, Conv, Add, Relu: the second convolution is named after the Relu."""
    names = {"x": [1, 4, 5, 5]}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["p"], name="left"),
        helper.make_node("Conv", ["x", "w"], ["q"], name="right"),
        helper.make_node("Add", ["p", "q"], ["s"], name="sum"),
        helper.make_node("Relu", ["s"], ["y"], name="act"),
    ]
    weights = {"w": np.ones((4, 4, 1, 1), np.float32)}
    model = ir.from_proto(graphs.model(nodes, names, {"y": None}, weights))
    found = _by_layer({"p_nchwc": 1.0, "y_nchwc": 2.0, "reorder": 4.0}, model, {"left", "right"})
    assert (dict(found.layers), found.other) == ({"left": 1.0, "right": 2.0}, 4.0)


def test_names_with_something_around_them() -> None:
    inputs = [ir.Value(name="x"), ir.Value(name="w")]
    node = ir.node("Gemm", inputs, name="fc", outputs=[ir.Value(name="y")])
    other = ir.node("Relu", [node.outputs[0]], name="fc1", outputs=[ir.Value(name="z")])
    graph = ir.Graph(inputs, [other.outputs[0]], nodes=[node, other], name="g")
    model = ir.Model(graph, ir_version=8)
    kernels = {"fused fc": 1.0, "fc/MatMulAddFusion": 2.0, "fc1": 4.0, "fc12": 8.0}
    found = _by_layer(kernels, model, {"fc"})
    assert (found.layers["fc"], found.other) == (3.0, 12.0)
