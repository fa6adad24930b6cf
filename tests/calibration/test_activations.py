"""Observers: what ONNX Runtime computes inside a graph, with the model left as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.core.layer import Array
from onnxdecomp.errors import ModelError
from onnxdecomp.runtime import session
from onnxdecomp.runtime.shared_weights import share_weights
from tests.builders.graphs import model as make
from tests.builders.graphs import value
from tests.builders.models import thin_middle

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": normal(4, 6), "v": normal(3, 6)}
FEED = {"x": normal(5, 4), "z": normal(5, 3)}


def branches() -> onnx.ModelProto:
    """y = relu(x w) + z v: two branches with an input each."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["z", "v"], ["k"], name="second"),
        helper.make_node("Add", ["r", "k"], ["y"], name="sum"),
    ]
    inputs = [value("x", ["N", 4]), value("z", ["N", 3])]
    return make(nodes, inputs, [value("y", ["N", 6])], WEIGHTS)


def expected() -> dict[str, Array]:
    h, k = FEED["x"] @ WEIGHTS["w"], FEED["z"] @ WEIGHTS["v"]
    r = np.maximum(h, 0)
    return {"x": FEED["x"], "z": FEED["z"], "h": h, "r": r, "k": k, "y": r + k}


@pytest.mark.parametrize(
    "names", [["h"], ["y"], ["r", "h"], ["x"], ["k", "x", "y", "z"], ["h", "h", "r", "h"]]
)
def test_values_in_the_order_of_their_names(names: list[str]) -> None:
    observer = open_observer(ir.from_proto(branches()), names)
    assert observer.names == tuple(dict.fromkeys(names))
    found = observer.run(FEED)
    assert len(found) == len(observer.names)
    for name, array in zip(observer.names, found, strict=True):
        np.testing.assert_allclose(array, expected()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "needed"), [("h", {"x"}), ("k", {"z"}), ("y", {"x", "z"}), ("z", {"z"}), ("r", {"x"})]
)
def test_only_what_is_needed_is_fed(name: str, needed: set[str]) -> None:
    observer = open_observer(ir.from_proto(branches()), [name])
    assert observer.inputs == needed
    assert {spec.name for spec in observer.specs()} == needed
    (found,) = observer.run({key: FEED[key] for key in needed})
    np.testing.assert_allclose(found, expected()[name], rtol=1e-5, atol=1e-6)
    (with_all,) = observer.run(FEED)
    np.testing.assert_array_equal(with_all, found)


def with_large_weight() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "back"], ["y"], name="second"),
    ]
    weights = {"large": normal(64, 512), "back": normal(512, 2)}
    return make(nodes, [value("x", ["N", 64])], [value("y", ["N", 2])], weights)


@pytest.mark.parametrize(
    ("proto", "name"), [(branches(), "h"), (branches(), "x"), (with_large_weight(), "h")]
)
def test_the_model_stays_as_it_is(proto: onnx.ModelProto, name: str) -> None:
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    values = [v.name for node in model.graph for v in node.outputs]
    open_observer(model, [name])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert [v.name for node in model.graph for v in node.outputs] == values


def test_a_model_that_nobody_needs_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    feed, proto = {"x": normal(3, 64)}, with_large_weight()
    meant = open_observer(ir.from_proto(proto), ["h", "y"]).run(feed)
    model = ir.from_proto(proto)
    monkeypatch.delattr(ir.Model, "clone")
    seen = open_observer(model, ["h", "y"], consume=True).run(feed)
    for one, two in zip(seen, meant, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["x", "h", "y"])
def test_large_constants_are_lent(name: str) -> None:
    proto = with_large_weight()
    feed = {"x": normal(3, 64)}
    model = ir.from_proto(proto)
    weights = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    values = {"x": feed["x"], "h": feed["x"] @ weights["large"]}
    values["y"] = values["h"] @ weights["back"]
    observer = open_observer(model, [name])
    del model, proto
    np.testing.assert_allclose(observer.run(feed)[0], values[name], rtol=1e-3, atol=1e-4)


def test_what_is_lent_and_what_is_not() -> None:
    """Large float32 constants only, and none that a caller may override."""
    weights = {
        "large": normal(64, 512),
        "small": normal(64, 2),
        "wide": normal(64, 512).astype(np.float64),
        "open": normal(64, 512),
    }
    inputs = [value("x", ["N", 64]), value("open", [64, 512])]
    nodes = [
        *(helper.make_node("MatMul", ["x", name], [f"{name}_y"]) for name in ("large", "small", "open")),
        helper.make_node("Cast", ["x"], ["x64"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["x64", "wide"], ["wide_y"]),
    ]
    outputs = [
        value(f"{name}_y", ["N", array.shape[1]], TensorProto.DOUBLE if name == "wide" else TensorProto.FLOAT)
        for name, array in weights.items()
    ]
    proto = make(nodes, inputs, outputs, weights)
    model = ir.from_proto(proto)
    taken = share_weights(model)
    assert set(taken) == {"large"}
    np.testing.assert_array_equal(taken["large"], weights["large"])
    left = ir.to_proto(model)
    assert left.ByteSize() < proto.ByteSize() - weights["large"].nbytes + 1000
    observer = open_observer(ir.from_proto(proto), ["open_y"])
    assert observer.inputs == {"x"}
    feed = {"x": normal(2, 64)}
    np.testing.assert_allclose(observer.run(feed)[0], feed["x"] @ weights["open"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_values_of_a_type_that_the_model_does_not_say(dtype: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    weight = WEIGHTS["w"].astype(dtype)
    proto = make(nodes, [value("x", ["N", 4], kind)], [value("y", ["N", 6], kind)], {"w": weight})
    x = FEED["x"].astype(dtype)
    (h,) = open_observer(ir.from_proto(proto), ["h"]).run({"x": x})
    assert h.dtype == dtype
    np.testing.assert_allclose(h, x @ weight, rtol=1e-2, atol=1e-2)


def test_values_that_a_subgraph_reads() -> None:
    """What an If's branch captures is needed too."""
    then = helper.make_graph([helper.make_node("MatMul", ["h", "u"], ["t"])], "then", [], [value("t", None)])
    other = helper.make_graph([helper.make_node("Add", ["z", "z"], ["e"])], "else", [], [value("e", None)])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("If", ["flag"], ["y"], name="if", then_branch=then, else_branch=other),
        helper.make_node("Relu", ["unused"], ["nothing"]),
    ]
    inputs = [
        value("x", ["N", 4]),
        value("z", ["N", 3]),
        value("flag", [], TensorProto.BOOL),
        value("unused", ["N", 1]),
    ]
    outputs = [value("y", None), value("nothing", None)]
    weights = {"w": normal(4, 256), "u": normal(256, 200)}
    observer = open_observer(ir.from_proto(make(nodes, inputs, outputs, weights)), ["y"])
    assert observer.inputs == {"x", "z", "flag"}
    feed = {**FEED, "flag": np.array(True)}
    exact = FEED["x"] @ weights["w"] @ weights["u"]
    np.testing.assert_allclose(observer.run(feed)[0], exact, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(observer.run({**feed, "flag": np.array(False)})[0], 2 * FEED["z"], rtol=1e-6)


def test_a_value_that_is_not_there() -> None:
    with pytest.raises(KeyError):
        open_observer(ir.from_proto(branches()), ["nowhere"])


def test_inputs_that_do_not_fit() -> None:
    observer = open_observer(ir.from_proto(branches()), ["h"])
    with pytest.raises(ModelError):
        observer.run({"x": normal(5, 7)})


def test_a_large_overridable_initializer_that_nothing_reads_any_more() -> None:
    """It is an input, so that only its removal takes it out of the model (nanodet_m is such a model)."""
    large = {"w": normal(4, 150), "v": normal(150, 150)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="second"),
    ]
    inputs = [value("x", ["N", 4]), *(value(name, list(w.shape)) for name, w in large.items())]
    observer = open_observer(ir.from_proto(make(nodes, inputs, [value("y", ["N", 150])], large)), ["h"])
    (found,) = observer.run(FEED)
    np.testing.assert_allclose(found, FEED["x"] @ large["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [6, 300])  # of which one is shared with ONNX Runtime
def test_an_initializer_that_is_an_output(size: int) -> None:
    weights = {"w": normal(4, size)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="first")]
    outputs = [value("y", ["N", size]), value("w", [4, size])]
    proto = make(nodes, [value("x", ["N", 4])], outputs, weights)
    y, w = open_observer(ir.from_proto(proto), ["y", "w"]).run(FEED)
    np.testing.assert_allclose(y, FEED["x"] @ weights["w"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(w, weights["w"])


def test_what_fails_on_a_device_is_done_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that is not there, and one whose memory is too small for a run."""
    model = ir.from_proto(thin_middle())
    feed = {"x": np.ones((2, 8, 6, 6), np.float32)}
    (output,) = (str(value.name) for value in model.graph.outputs)
    expected = open_observer(model, [output]).run(feed)
    missing = open_observer(model, [output], provider="cuda")
    np.testing.assert_array_equal(missing.run(feed), expected)
    real, tried = session.open_session, list[str]()

    def opened(source: bytes, *, provider: str, **given: Any) -> Any:
        tried.append(provider)
        return real(source, **{**given, "options": None})

    def run(opened: Any, fed: Any) -> Any:
        if tried[-1] == "cuda":
            raise ModelError("out of memory")
        return real_run(opened, fed)

    real_run = session.run
    monkeypatch.setattr(session, "open_session", opened)
    monkeypatch.setattr(session, "run", run)
    small = open_observer(model, [output], provider="cuda")
    np.testing.assert_array_equal(small.run(feed), expected)
    np.testing.assert_array_equal(small.run(feed), expected)
    assert tried == ["cuda", "cpu"]
