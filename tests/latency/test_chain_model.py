from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.latency.chain_model import SerializedModel, chain_model, filled, frame_model, noise
from onnxdecomp.latency.context import Neighbours
from onnxdecomp.runtime.session import inputs_of, open_session, run
from tests.builders.layers import hollow_conv, hollow_linear

BETWEEN = Neighbours(True, True)


def serialized(
    chain: Chain, layer: Layer, shape: tuple[int, ...], around: Neighbours = BETWEEN
) -> SerializedModel:
    made = chain_model(chain, layer, shape, around)
    assert isinstance(made, SerializedModel)
    return made


def output_of(made: SerializedModel) -> np.ndarray:
    session = open_session(made.model, weights=made.weights)
    (spec,) = inputs_of(session)
    shape = tuple(size for size in spec.shape if isinstance(size, int))
    (out,) = run(session, {spec.name: noise(shape)})
    return out


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Layer, tuple[int, ...]]:
    groups = draw(st.sampled_from([1, 1, 2]))
    outputs, inputs = (groups * draw(st.sampled_from([3, 8, 16, 24])) for _ in range(2))
    stride = draw(st.integers(1, 2))
    layer = hollow_conv(
        outputs,
        inputs,
        draw(st.sampled_from([1, 3])),
        strides=(stride, stride),
        groups=groups,
        transposed=draw(st.booleans()),
    )
    return layer, (draw(st.integers(1, 3)), inputs, draw(st.integers(3, 9)), draw(st.integers(3, 9)))


@settings(max_examples=40, deadline=None)
@given(convolutions(), st.booleans(), st.booleans(), st.sampled_from([None, "Relu", "Clip", "LeakyRelu"]))
def test_any_convolution_and_its_chain_run_and_give_one_number_a_channel(
    case: tuple[Layer, tuple[int, ...]], before: bool, after: bool, activation: str | None
) -> None:
    layer, shape = case
    svd = outline(get("svd"), layer, (2,))
    for chain in (dense_chain(layer), svd):
        out = output_of(serialized(chain, layer, shape, Neighbours(before, after, activation)))
        assert out.shape == (shape[0], layer.outputs, 1, 1)
        assert np.isfinite(out).all()
        assert np.any(out != 0)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["Gemm", "MatMul"]), st.lists(st.integers(1, 4), min_size=1, max_size=2))
def test_linear_layers(op_type: str, lead: list[int]) -> None:
    layer = hollow_linear(12, 20, op_type)
    shape = (lead[0], 20) if op_type == "Gemm" else (*lead, 20)
    for chain in (dense_chain(layer), outline(get("svd"), layer, (3,)), outline(get("tt"), layer, (2,))):
        assert output_of(serialized(chain, layer, shape, Neighbours(activation="Relu"))).size == 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_factors_have_the_chains_shapes_and_the_layers_type(dtype: str) -> None:
    layer = replace(hollow_conv(24, 16), dtype=dtype)
    chain = outline(get("tucker"), layer, (8, 5))
    made = serialized(chain, layer, (1, 16, 6, 6))
    proto = onnx.load_model_from_string(made.model)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    stored = {tuple(t.dims): t.data_type for t in proto.graph.initializer if t.name.startswith("layer/")}
    assert stored == {tuple(s.weight.shape): kind for s in chain.weighted} | {(24,): kind}


def test_numbers_keep_activations_of_about_one() -> None:
    chain = filled(outline(get("tucker"), hollow_conv(64, 96), (32, 48)))
    assert len(chain.weighted) == 3
    for step in chain.weighted:
        weight = step.weight
        inputs = np.prod(weight.shape[1:])
        assert np.std(weight) * np.sqrt(inputs) == pytest.approx(1, rel=0.1)
        assert np.abs(weight).min() > np.finfo(np.float32).tiny
    assert chain.bias is not None
    assert np.std(chain.bias) > 0.5


def optimised(made: SerializedModel, folder: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in made.weights.values()]
    options.add_external_initializers(list(made.weights), values)
    ort.InferenceSession(made.model, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def test_reorderings_are_billed_to_the_layer_only_where_neighbours_take_no_blocks(tmp_path: Path) -> None:
    layer, shape = hollow_conv(32, 32), (1, 32, 8, 8)

    def reorderings(before: bool, after: bool) -> int:
        around = Neighbours(before, after, "Relu")
        frame = frame_model(layer, shape, around)
        assert isinstance(frame, SerializedModel)
        counts = [
            optimised(made, tmp_path)
            for made in (serialized(dense_chain(layer), layer, shape, around), frame)
        ]
        assert "Relu" not in counts[0]  # fused
        inside, outside = (sum(c[name] for name in ("ReorderInput", "ReorderOutput")) for c in counts)
        return inside - outside

    everywhere = reorderings(True, True)
    assert everywhere == 0
    if optimised(serialized(dense_chain(layer), layer, shape, Neighbours(False, False)), tmp_path)[
        "ReorderInput"
    ]:
        # This processor has blocks.
        assert reorderings(False, False) == 2


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_have_a_recurrence_of_their_own(op_type: str, gates: int, directions: int) -> None:
    layer = hollow_linear(directions * gates * 6, 10)
    layer = replace(layer, op_type=op_type, bias=None, recurrence=layer.outputs * 6)
    for chain in (dense_chain(layer), outline(get("svd"), layer, (3,))):
        made = serialized(chain, layer, (4, 2, 10))
        assert output_of(made).shape == (1, 1, 1)
        (node,) = [node for node in onnx.load_from_string(made.model).graph.node if node.op_type == op_type]
        assert onnx.helper.get_node_attr_value(node, "hidden_size") == 6


def test_other_layers_are_refused_with_a_reason() -> None:
    layer = replace(hollow_linear(12, 20), op_type="LSTM")
    lookup = replace(hollow_linear(12, 20), op_type="Gather", lookup=True)
    for refused in (layer, lookup):
        for made in (chain_model(dense_chain(refused), refused, (2, 20)), frame_model(refused, (2, 20))):
            assert isinstance(made, str)
            assert refused.op_type in made


def test_the_same_model_every_time() -> None:
    layer = hollow_conv(64, 64)
    first, second = (serialized(dense_chain(layer), layer, (1, 64, 8, 8)) for _ in range(2))
    assert first.model == second.model
    assert all(np.array_equal(array, second.weights[name]) for name, array in first.weights.items())
    assert first.weights


def test_noise() -> None:
    array = noise((3, 70_000), 2.0)
    assert array.shape == (3, 70_000)
    assert array.dtype == np.float32
    assert array.std() == pytest.approx(2, rel=0.05)
