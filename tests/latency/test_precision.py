"""Chains are timed with the kernels that the finished model will run on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.latency.cache import FILE, key_of, where
from onnxdecomp.latency.chain_model import SerializedModel, chain_model, quantized_model
from onnxdecomp.latency.context import ALONE, Neighbours
from onnxdecomp.latency.measure import Request, time_chains
from onnxdecomp.quantization import quantized_roughly
from onnxdecomp.runtime.session import open_session
from onnxdecomp.runtime.setting import Setting
from tests.builders.feeds import normal
from tests.builders.graphs import from_x
from tests.builders.layers import hollow_conv, hollow_linear

LAYERS = [
    (hollow_conv(64, 64), (1, 64, 8, 8)),
    (hollow_linear(64, 64), (4, 64)),
    (hollow_linear(64, 64, "MatMul"), (4, 64)),
]
each_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=["Conv", "Gemm", "MatMul"])


def op_types(serialized: SerializedModel) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model_from_string(serialized.model).graph.node)


@each_layer
def test_every_step_of_a_chain_is_quantized(layer: Layer, shape: tuple[int, ...]) -> None:
    chain = outline(get("svd"), layer, (16,))
    plain = chain_model(chain, layer, shape, Neighbours(activation="Relu"))
    assert isinstance(plain, SerializedModel)
    quantized = quantized_model(plain, "int8-static", "cpu")
    before, after = op_types(plain), op_types(quantized)
    steps = sum(before[name] for name in ("Conv", "Gemm", "MatMul"))
    assert after["QuantizeLinear"] > steps
    # What it reads, and the two weights of the chain at least.
    assert after["DequantizeLinear"] >= after["QuantizeLinear"] + 2
    open_session(quantized.model)


@each_layer
def test_half_precision_is_timed_in_half_precision(layer: Layer, shape: tuple[int, ...]) -> None:
    plain = chain_model(dense_chain(layer), layer, shape)
    assert isinstance(plain, SerializedModel)
    halved = quantized_model(plain, "fp16", "cpu")
    graph = onnx.load_model_from_string(halved.model).graph
    types = {value.data_type for value in graph.initializer if np.prod(value.dims) > 99}
    assert types <= {onnx.TensorProto.FLOAT16}
    open_session(halved.model, weights=halved.weights)


@pytest.mark.parametrize("precision", ["int8-static", "int8-dynamic", "int4", "int4:64", "fp16"])
def test_timings_of_another_precision_are_not_mixed_up(precision: str, tmp_path: Path) -> None:
    layer, shape = LAYERS[0]
    chain = outline(get("svd"), layer, (16,))
    keys = {
        key_of(chain, dense_chain(layer), layer, shape, ALONE, where(Setting("cpu", 1), name))
        for name in ("float", precision)
    }
    assert len(keys) == 2
    asked = [Request(layer, chain, shape)]
    (timed,) = time_chains(asked, precision=precision, cache=tmp_path / FILE, seconds=0.01)
    assert timed.reason == ""
    assert timed.dense_ms > 0
    (again,) = time_chains(asked, precision=precision, cache=tmp_path / FILE, seconds=0.01)
    assert again.cached
    (plain,) = time_chains(asked, cache=tmp_path / FILE, seconds=0.01)
    assert not plain.cached


def test_without_quantization_it_is_the_model_itself() -> None:
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="c")]
    made = from_x(nodes, {"w": normal(8, 8, 1, 1)}, (1, 8, 4, 4))
    assert quantized_roughly(made, "float", "cpu") is made
    rough = quantized_roughly(made, "int8-static", "cpu")
    assert sum(node.op_type == "QuantizeLinear" for node in rough.graph) == 2
    assert [node.op_type for node in made.graph] == ["Conv"]
    assert isinstance(rough, ir.Model)
