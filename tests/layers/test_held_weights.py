"""Operators that are no layers: what they hold is listed, with what it costs, once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import onnxdecomp
from onnxdecomp.core.layer import Array
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from tests.builders.cases import MICROSOFT
from tests.builders.graphs import model as graph_model

INT8 = np.zeros((24, 12, 3, 3), np.int8)


def small(name: str) -> dict[str, Array]:
    return {f"{name}s": np.ones((), np.float32), f"{name}z": np.zeros((), np.int8)}


@pytest.mark.parametrize(
    ("op_type", "weights", "shape", "weight", "params", "macs"),
    [
        # Three tables of 8 features; looked up, not multiplied.
        (
            "EmbedLayerNormalization",
            {"w": np.zeros((50, 8)), "p": np.zeros((16, 8)), "t": np.zeros((2, 8))},
            *(["N", "T"], (50, 8), 50 * 8 + 16 * 8, 0),
        ),
        ("QAttention", {"w": np.zeros((16, 48), np.int8)}, [2, 5, 16], (16, 48), 768, 768 * 10),
        ("QAttention", {"w": np.zeros((16, 48), np.int8)}, ["N", "T", 16], (16, 48), 768, 768 * 32),
        ("MoE", {"w": np.zeros((4, 16, 8)), "v": np.zeros((4, 8, 16))}, None, (4, 16, 8), 1024, None),
    ],
)
def test_costs(
    op_type: str,
    weights: dict[str, Array],
    shape: list[Any] | None,
    weight: tuple[int, ...],
    params: int,
    macs: int | None,
) -> None:
    names = ["x", *weights]
    if op_type == "EmbedLayerNormalization":
        names = ["x", "", "w", "p", "t"]
    node = helper.make_node(op_type, names, ["y"], "layer", domain=MICROSOFT)
    model = graph_model([node], {"x": shape}, {"y": None}, weights)
    loaded = ir.from_proto(model)
    infer_shapes(loaded)
    _, (skip,) = find(loaded)
    assert (skip.weight, skip.params, skip.macs) == (weight, params, macs)


def test_a_quantized_convolution_counts_the_places_of_its_output() -> None:
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    node = helper.make_node("QLinearConv", names, ["y"], "layer")
    weights = {"w": INT8, **small("x"), **small("w"), **small("y")}
    model = ir.from_proto(graph_model([node], {"x": ["N", 12, 10, 10]}, {"y": ["N", 24, 8, 8]}, weights))
    model.graph.inputs[0].dtype = ir.DataType(TensorProto.INT8)
    infer_shapes(model)
    _, (skip,) = find(model)
    assert skip.reason == "QLinearConv is not decomposed"
    assert (skip.weight, skip.params, skip.macs) == (INT8.shape, INT8.size, INT8.size * 8 * 8)


def tied() -> onnx.ModelProto:
    """A table that the embedding holds, and the head multiplies by, and a product."""
    nodes = [
        helper.make_node(
            "EmbedLayerNormalization",
            ["x", "", "w", "p", "", "g", "g"],
            ["e", "lengths"],
            "embedding",
            domain=MICROSOFT,
        ),
        helper.make_node("MatMul", ["e", "m"], ["h"], "product"),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"], "head"),
    ]
    rng = np.random.default_rng(0)
    weights = {
        **{"w": rng.standard_normal((60, 16)), "p": rng.standard_normal((8, 16))},
        **{"m": rng.standard_normal((16, 16)), "g": np.ones(16)},
    }
    floats = {name: array.astype(np.float32) for name, array in weights.items()}
    made = graph_model(nodes, {"x": ["N", 5]}, {"y": ["N", 5, 60]}, floats)
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    return made


def test_what_a_layer_reads_too_counts_there() -> None:
    model = ir.from_proto(tied())
    infer_shapes(model)
    matched, (skip,) = find(model)
    assert [match.layer.name for match in matched] == ["product", "head"]
    assert skip.params == 8 * 16


def test_totals_and_targets_have_what_stays() -> None:
    """The parameters of the file: half of them cannot be reached by layers that hold a third alone."""
    record = onnxdecomp.inspect(tied(), rank="0.5").record
    assert record["totals"]["params"]["before"] == 60 * 16 + 16 * 16 + 8 * 16
    (own,) = [layer for layer in record["layers"] if layer["op"] == "EmbedLayerNormalization"]
    assert own["params"] == {"before": 128, "after": 128}
    assert own["macs"] == {"before": 0, "after": 0}
    target = "params=1.2x"
    found = onnxdecomp.inspect(tied(), target=target, method="svd").record["totals"]["params"]
    assert found["ratio"] >= 1.2
