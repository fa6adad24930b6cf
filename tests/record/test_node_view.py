from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import onnxdecomp
from onnxdecomp.graph.load import load
from onnxdecomp.workflow.result import Result
from tests.builders.models import network, write


@pytest.fixture
def done(tmp_path: Path) -> Result:
    return onnxdecomp.compress(
        network(tmp_path / "net.onnx"),
        tmp_path / "out.onnx",
        method="tucker",
        rank="4",
        simplify="none",
        bench=False,
        details=True,
    )


def test_before_and_after(done: Result) -> None:
    first, second = (layer["nodes"] for layer in done.record["layers"])
    assert first["above"] is None
    assert (first["input"], first["output"]) == ("x", "a")
    assert [(n["op"], n["name"]) for n in first["before"]] == [("Conv", "c1")]
    assert first["before"][0]["weights"] == {"w1": [16, 8, 3, 3]}
    assert first["before"][0]["inputs"] == ["x"]
    assert [n["name"] for n in first["after"]] == ["c1/first", "c1/core", "c1"]
    assert [list(n["weights"].values()) for n in first["after"]] == [
        [[4, 8, 1, 1]],
        [[4, 4, 3, 3]],
        [[16, 4, 1, 1]],
    ]
    assert first["after"][1]["attributes"]["kernel_shape"] == [3, 3]
    assert [n["name"] for n in first["below"]] == ["r"]
    assert (second["above"]["name"], second["below"]) == ("r", [])


def test_they_are_the_nodes_of_the_file(done: Result) -> None:
    written = {node.name: node.op_type for node in load(done.path or "").graph}
    nodes = [node for layer in done.record["layers"] for node in layer["nodes"]["after"]]
    assert len(nodes) > len(done.record["layers"])
    assert [written[node["name"]] for node in nodes] == [node["op"] for node in nodes]


def test_what_was_computed_is_no_weight(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="m"),
        helper.make_node("Add", ["p", "b"], ["y"], name="a"),
    ]
    weights = {
        "w": rng.standard_normal((8, 64), dtype=np.float32),
        "b": rng.standard_normal(64, dtype=np.float32),
    }
    path = write(tmp_path / "net.onnx", nodes, weights)
    done = onnxdecomp.compress(
        path, method="svd", rank="2", simplify="none", bench=False, verify=False, details=True
    )
    found = done.record["layers"][0]["nodes"]
    assert [node["op"] for node in found["before"]] == ["MatMul", "Add"]
    assert found["before"][0]["weights"]["w"] == [64, 8]  # canonical: outputs first
    assert found["after"][-1]["name"] in ("a", "m")


def test_without_details_there_are_none(tmp_path: Path) -> None:
    done = onnxdecomp.compress(network(tmp_path / "net.onnx"), rank="4", simplify="none", bench=False)
    assert {(layer["nodes"], len(layer["spectra"])) for layer in done.record["layers"]} == {(None, 0)}
