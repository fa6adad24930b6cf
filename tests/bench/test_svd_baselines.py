"""The literature's factors: exact at full rank, each optimal in its own metric."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bench.svd_baselines import KINDS, Kind, baseline, factors
from onnxdecomp.runtime.session import open_session, run

RNG = np.random.default_rng(4)
WEIGHT = RNG.standard_normal((12, 8))
ROWS = RNG.standard_normal((200, 12)) @ (RNG.standard_normal((12, 12)) * np.logspace(0, -2, 12))
SEEN = (ROWS.T @ ROWS / len(ROWS), np.abs(ROWS).mean(0))


@pytest.mark.parametrize("kind", KINDS)
def test_at_full_rank_the_product_is_the_weight(kind: Kind) -> None:
    first, second = factors(kind, WEIGHT, SEEN, 8)
    assert first.shape == (12, 8)
    np.testing.assert_allclose(first @ second, WEIGHT, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_whitening_loses_least_of_the_outputs_and_plain_least_of_the_weight(rank: int) -> None:
    made = {kind: np.matmul(*factors(kind, WEIGHT, SEEN, rank)) for kind in KINDS}
    outputs = {kind: np.linalg.norm(ROWS @ (WEIGHT - own)) for kind, own in made.items()}
    weights = {kind: np.linalg.norm(WEIGHT - own) for kind, own in made.items()}
    assert min(outputs, key=lambda kind: outputs[kind]) == "SVD-LLM"
    assert min(weights, key=lambda kind: weights[kind]) == "SVD"
    assert outputs["SVD-LLM"] < 0.95 * outputs["SVD"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_keeps_the_share_and_leaves_padding_out(kind: Kind, tmp_path: Path) -> None:
    """What stands behind a mask's zeros, however large, changes no factor."""
    weights = {"w": RNG.standard_normal((12, 24)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    ends = [
        *(helper.make_tensor_value_info(n, 1, ["n", "t", s]) for n, s in (("x", 12), ("y", 24))),
        helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, ["n", "t"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", [ends[0], ends[2]], [ends[1]], tensors)
    source = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    mask = np.array([[1, 1, 1, 0]] * 40)
    x = RNG.standard_normal((40, 4, 12)).astype(np.float32)
    made = []
    for padding in (0.0, 100.0):
        x[:, 3] = padding
        target = tmp_path / f"{padding}.onnx"
        baseline(kind, source, target, {"x": x, "attention_mask": mask}, 0.5)
        made.append(onnx.load(target).graph)
    first, second = ({t.name: numpy_helper.to_array(t) for t in graph.initializer} for graph in made)
    assert {name: array.shape for name, array in first.items()} == {"w.0": (12, 4), "w.1": (4, 24)}
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], atol=1e-5)
    feed = {"x": x[:2], "attention_mask": mask[:2]}
    whole, half = (run(open_session(file), feed)[0] for file in (source, tmp_path / "0.0.onnx"))
    assert 0.01 < np.linalg.norm(whole - half) / np.linalg.norm(whole) < 1
