from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxdecomp.calibration.input_shapes import input_shapes
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.latency import layer_shares as module
from onnxdecomp.latency.context import neighbours
from onnxdecomp.latency.layer_shares import Share, shares
from onnxdecomp.latency.measure import Request
from onnxdecomp.layers.find import find
from onnxdecomp.runtime.setting import Setting
from tests.builders.fake_device import FakeDevice, install
from tests.builders.feeds import normal
from tests.builders.graphs import from_x
from tests.builders.layers import hollow_linear


def small() -> ir.Model:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="a", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="b", pads=[1, 1, 1, 1]),
    ]
    weights = {"w1": normal(32, 3, 3, 3), "w2": normal(32, 32, 3, 3)}
    return from_x(nodes, weights, ("N", 3, "H", "W"))


def requests(made: ir.Model) -> list[Request]:
    matched, _ = find(made)
    shapes = input_shapes(made, {"x": (1, 3, 33, 17)})
    return [
        Request(match.layer, dense_chain(match.layer), shapes[match.layer.graph, match.layer.name], around)
        for match, around in zip(matched, neighbours(matched), strict=True)
    ]


def test_shapes_follow_from_the_inputs() -> None:
    made = small()
    before = ir.to_proto(made).SerializeToString()
    assert input_shapes(made, {"x": (1, 3, 33, 17)}) == {("", "a"): (1, 3, 33, 17), ("", "b"): (1, 32, 17, 9)}
    assert input_shapes(made, {"x": (4, 3, 8, 8)}) == {("", "a"): (4, 3, 8, 8), ("", "b"): (4, 32, 4, 4)}
    assert ir.to_proto(made).SerializeToString() == before
    with pytest.raises(UsageError, match="no input 'z'"):
        input_shapes(made, {"z": (1, 3, 8, 8)})
    with pytest.raises(UsageError, match="3 dimensions"):
        input_shapes(made, {"x": (1, 3, 8)})


def test_shapes_of_layers_with_frozen_weights() -> None:
    made = small()
    made.ir_version = 8
    made.graph.inputs.append(made.graph.initializers["w1"])
    assert [match.layer.name for match in find(made)[0]] == ["b"]
    assert set(input_shapes(made, {"x": (1, 3, 33, 17)})) == {("", "a"), ("", "b")}


def test_shares_of_a_model_are_parts_of_it() -> None:
    made = small()
    layers = requests(made)
    lstm = replace(hollow_linear(8, 8), op_type="LSTM")
    layers.insert(1, Request(lstm, dense_chain(lstm), (1, 8)))
    feed = {"x": np.ones((1, 3, 33, 17), np.float32)}
    found = shares(ir.to_proto(made).SerializeToString(), feed, layers, seconds=0.01)
    assert found.whole_ms > 0
    assert found.layers[1] == Share(0.0, 0.0)
    assert all(0 <= share.part <= 1 and 0 <= share.cold <= 1 for share in found.layers)
    assert sum(share.part for share in found.layers) <= 1 + 1e-9


def test_a_feed_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ModelError):
        shares(ir.to_proto(small()).SerializeToString(), {"x": np.ones((1, 4, 8, 8), np.float32)}, [])


def test_no_layers_have_no_shares() -> None:
    feed = {"x": np.ones((1, 3, 8, 8), np.float32)}
    assert shares(ir.to_proto(small()).SerializeToString(), feed, [], seconds=0.01).layers == ()


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=5),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_shares_are_found_again_on_a_machine_that_slows_down_and_recovers(
    layers: list[tuple[float, float]], others: float, seed: int
) -> None:
    cold = np.array([part for part, _ in layers])
    warm = cold * [1 - fetching for _, fetching in layers]
    whole = cold.sum() + others
    slow = np.random.default_rng(seed).lognormal(0, 1, 31)
    found = module._parts(whole * slow, cold * slow[:, None], warm * slow[:, None])
    assert [share.part for share in found] == pytest.approx(list(cold / whole))
    assert [share.cold for share in found] == pytest.approx([fetching for _, fetching in layers], abs=1e-9)


@given(st.floats(0.1, 3), st.integers(1, 5))
def test_layers_that_take_longer_alone_than_all_together_are_scaled_to_the_whole(
    factor: float, count: int
) -> None:
    cold = np.full((7, count), factor / count)
    found = module._parts(np.ones(7), cold, cold)
    assert sum(share.part for share in found) == pytest.approx(min(factor, 1))
    assert all(share.cold == 0 for share in found)


def test_fetching_gets_what_is_left_of_the_whole() -> None:
    """Alone, the layers fetch more than in their model, where less lies between two runs of one."""
    warm = np.tile([0.5, 0.3], (7, 1))
    found = module._parts(np.ones(7), warm + [0.1, 0.3], warm)
    assert [share.part for share in found] == pytest.approx([0.55, 0.45])
    assert [share.part * share.cold for share in found] == pytest.approx([0.05, 0.15])


def test_equal_layers_are_timed_once_where_each_costs_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their shares are equal, and they take the model's time together."""
    fake = install(monkeypatch, FakeDevice())
    layer = hollow_linear(64, 64)
    asked = [Request(layer, dense_chain(layer), (8, 64))] * 5
    nodes, weights, x = [], {}, "x"
    for index in range(5):
        y = "y" if index == 4 else f"h{index}"
        nodes.append(helper.make_node("MatMul", [x, f"w{index}"], [y], name=f"m{index}"))
        weights[f"w{index}"], x = normal(64, 64), y
    model = ir.to_proto(from_x(nodes, weights, (8, 64)))
    feed = {"x": np.ones((8, 64), np.float32)}
    path = model.SerializeToString()
    found = shares(path, feed, asked, setting=Setting("cuda"))
    assert (fake.loads, fake.branches) == (1 + 1, 2)
    assert len({share.part for share in found.layers}) == 1
    assert sum(share.part for share in found.layers) == pytest.approx(1.0, rel=0.05)
    fake.loads = 0
    shares(path, feed, asked, setting=Setting("cpu"), seconds=0.01)
    assert fake.loads == 0
