"""Channels inside subgraphs are cut as those of the main graph are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxdecomp
from tests.builders.feeds import normal
from tests.builders.graphs import value
from tests.builders.running import run

X, Y = value("x", ["N", 8]), value("y", ["N", 8])
FLAG = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])


def feed_forward(prefix: str, to: str, seed: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes from x to `to` by 16 hidden units."""
    names = [f"{prefix}w1", f"{prefix}w2"]
    nodes = [
        helper.make_node("MatMul", ["x", names[0]], [f"{prefix}a"], name=f"{prefix}up"),
        helper.make_node("Relu", [f"{prefix}a"], [f"{prefix}b"]),
        helper.make_node("MatMul", [f"{prefix}b", names[1]], [to], name=f"{prefix}down"),
    ]
    weights = (normal(8, 16, seed=seed), normal(16, 8, seed=seed + 1))
    return nodes, [numpy_helper.from_array(w, name) for w, name in zip(weights, names, strict=True)]


def branching() -> onnx.ModelProto:
    branches = {}
    for seed, prefix in enumerate(("then_", "else_")):
        nodes, weights = feed_forward(prefix, f"{prefix}y", 2 * seed)
        outputs = [value(f"{prefix}y", ["N", 8])]
        branches[f"{prefix}branch"] = helper.make_graph(nodes, prefix, [], outputs, weights)
    chosen = helper.make_node("If", ["flag"], ["y"], name="choose", **branches)
    return helper.make_model(
        helper.make_graph([chosen], "g", [X, FLAG], [Y]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def with_function() -> onnx.ModelProto:
    nodes, weights = feed_forward("f_", "y", 4)
    constants = [
        helper.make_node("Constant", [], [one.name], value=one, name=f"{one.name}.constant")
        for one in weights
    ]
    body = helper.make_function(
        "own", "block", ["x"], ["y"], [*constants, *nodes], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("block", ["x"], ["y"], name="call", domain="own")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(
        helper.make_graph([call], "g", [X], [Y]), functions=[body], opset_imports=imports, ir_version=8
    )


@pytest.mark.parametrize("calibrated", [False, True])
def test_subgraphs(calibrated: bool, tmp_path: Path) -> None:
    onnx.save(branching(), tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal((12, 1, 8), dtype=np.float32)
    feeds: list[dict[str, Any]] = [
        {"x": row, "flag": np.array(index % 2 == 0)} for index, row in enumerate(x)
    ]
    how: dict[str, Any] = {"method": "width", "rank": "0.5", "bench": False, "simplify": "none"}
    calib = feeds if calibrated else None
    done = onnxdecomp.compress(tmp_path / "net.onnx", tmp_path / "out.onnx", calib=calib, **how)
    cut = {channel.name: channel for channel in done.channels if channel.status == "cut"}
    assert sorted(cut) == ["else_up", "then_up"]
    assert all(one.kept == 8 and one.check is not None and one.check < 1e-5 for one in cut.values())
    assert {layer.left for layer in done.layers} == {(8, 8)}
    assert not done.notes[1:]
    for feed in feeds[:2]:
        before, after = (run(tmp_path / name, feed)[0] for name in ("net.onnx", "out.onnx"))
        assert after.shape == before.shape
        assert np.linalg.norm(after - before) < np.linalg.norm(before)


def test_functions_are_named(tmp_path: Path) -> None:
    onnx.save(with_function(), tmp_path / "net.onnx")
    found = onnxdecomp.inspect(tmp_path / "net.onnx", method="width", rank="0.5")
    assert [(c.name, c.status, c.reason) for c in found.channels] == [
        ("f_up", "kept", "it is inside a function"),
        ("f_down", "kept", "it is inside a function"),
    ]
