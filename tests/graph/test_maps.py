"""A classifier whose output is a sequence of maps comes through, with the type that it declares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import onnxdecomp
from tests.builders import graphs
from tests.builders.feeds import normal

CLASSES = 10


def classifier() -> onnx.ModelProto:
    """label [N] and probs, a map from class to probability for each row of x [N, 24]."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["f"], name="body"),
        helper.make_node("MatMul", ["f", "v"], ["l"], name="head"),
        helper.make_node("Softmax", ["l"], ["p"]),
        helper.make_node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
        helper.make_node(
            "ZipMap", ["p"], ["probs"], domain="ai.onnx.ml", classlabels_strings=list("abcdefghij")
        ),
    ]
    number = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, number))
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        helper.make_value_info("probs", maps),
    ]
    weights = {"w": normal(24, 32) / np.float32(5), "v": normal(32, CLASSES) / np.float32(5)}
    return graphs.model(nodes, {"x": ["N", 24]}, outputs, weights)


@pytest.mark.parametrize("simplify", ["onnxsim", "none"])
@pytest.mark.parametrize("how", [{"rank": "0.5", "method": "svd"}, {"target": "macs=1.2x"}])
def test_it_is_compressed_and_compared_by_key(how: dict[str, str], simplify: str, tmp_path: Path) -> None:
    made = classifier()
    target = tmp_path / "small.onnx"
    calib = {"x": normal(32, 24)}
    found = onnxdecomp.compress(made, target, calib=calib, simplify=simplify, bench=False, **how)  # type: ignore[arg-type]
    assert found.changed
    assert found.verification is not None
    assert [out.name for out in found.verification.outputs] == ["label", "probs"]
    assert found.verification.outputs[1].values == 32 * CLASSES
    written = onnx.load(target)
    assert written.graph.output[1] == made.graph.output[1]
    (probabilities,) = ort.InferenceSession(target).run(["probs"], {"x": calib["x"][:1]})
    assert set(probabilities[0]) == set("abcdefghij")
