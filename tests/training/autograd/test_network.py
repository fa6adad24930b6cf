"""Networks: gradients, subgraphs, functions, rounding, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper, parser

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import ModelError
from onnxdecomp.runtime.session import open_session, run
from onnxdecomp.training.autograd.network import Network, unknown
from tests.builders import graphs
from tests.builders.feeds import normal


def read(text: str, **initializers: Array) -> ir.Model:
    """A model from ONNX's text form, with initializers."""
    proto = parser.parse_model(text)
    for name, array in initializers.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def same(model: ir.Model, feed: dict[str, Array], **options: Any) -> None:
    session = open_session(ir.to_proto(model).SerializeToString(), **options)
    with torch.no_grad():
        found = Network(model)(feed)
    for ours, theirs in zip(found.values(), run(session, feed), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-5)


LINEAR = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 3] x) => (float[N, 2] y) { h = MatMul(x, W) z = Relu(h) y = Add(z, b) }"""


def test_gradients_are_those_of_finite_differences() -> None:
    model = read(LINEAR, W=normal(3, 2), b=normal(2))
    network = Network(model, ["W", "b"])
    x = normal(4, 3)
    network({"x": x})["y"].square().sum().backward()
    for name in ("W", "b"):
        tensor = network.parameters[name]
        step = torch.zeros_like(tensor)
        step.view(-1)[1] = 1e-3
        with torch.no_grad():
            tensor += step
            above = network({"x": x})["y"].double().square().sum()
            tensor -= 2 * step
            below = network({"x": x})["y"].double().square().sum()
            tensor += step
        assert tensor.grad is not None
        assert float(tensor.grad.view(-1)[1]) == pytest.approx(float(above - below) / 2e-3, rel=1e-2)


def test_only_parameters_take_gradients() -> None:
    network = Network(read(LINEAR, W=normal(3, 2), b=normal(2)), ["b"])
    assert list(network.parameters) == ["b"]
    network({"x": normal(4, 3)})["y"].sum().backward()
    assert network.parameters["b"].grad is not None


def test_values_inside_can_be_asked_for() -> None:
    network = Network(read(LINEAR, W=normal(3, 2), b=normal(2)))
    x = normal(4, 3)
    found = network({"x": x}, ["h", "x"])
    assert list(found) == ["h", "x"]
    np.testing.assert_allclose(found["h"].numpy(), x @ normal(3, 2), rtol=1e-5)


def test_what_depends_on_no_input_is_computed_once() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, 3] x) => (float[N, 2] y) { V = Transpose(W) two = Constant<value_float = 2.0>()
    U = Mul(V, two) y = MatMul(x, U) }"""
    model = read(text, W=normal(2, 3))
    assert [node.op_type for node in Network(model).nodes] == ["MatMul"]
    assert [node.op_type for node in Network(model, ["W"]).nodes] == ["Transpose", "Mul", "MatMul"]
    same(model, {"x": normal(4, 3)})


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_branch_reads_what_is_around_it(sign: float) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[3] x, bool c) => (float[3] y) {
      h = Relu(x)
      y = If (c) <
        then_branch = t () => (float[3] a) { a = Mul(h, W) },
        else_branch = e () => (float[3] b) { b = Sub(h, W) }
      >
    }"""
    same(read(text, W=normal(3)), {"x": normal(3), "c": np.array(sign > 0)})


@pytest.mark.parametrize("turns", [1, 4])
def test_a_loop(turns: int) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (int64 n, bool c, float[3] x) => (float[3] y, float[M, 3] all) {
      y, all = Loop (n, c, x) <
        body = b (int64 i, bool go, float[3] s) => (bool on, float[3] t, float[3] seen) {
          on = Identity(go) t = Mul(s, W) seen = Relu(t)
        }
      >
    }"""
    feed = {"n": np.array(turns), "c": np.array(True), "x": normal(3)}
    same(read(text, W=normal(3)), feed)


def test_functions() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
    g (float[N, 3] x) => (float[N, 2] y) { h = own.linear(x, W) y = Relu(h) }
    <domain: "own", opset_import: ["" : 18]>
    linear (a, w) => (b) { b = MatMul(a, w) }"""
    model = read(text, W=normal(3, 2))
    same(model, {"x": normal(4, 3)})
    Network(model, ["W"])({"x": normal(4, 3)})["y"].sum().backward()
    assert len(model.functions) == 1  # it is left as it was


@pytest.mark.parametrize("axis", [None, 1])
def test_gradients_pass_through_rounding(axis: int | None) -> None:
    scale = "s" if axis is None else "v"
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[4, 3] x) => (float[4, 3] y) {{
      q = QuantizeLinear<axis = 1>(x, {scale}, {"z" if axis is None else "u"})
      y = DequantizeLinear<axis = 1>(q, {scale}, {"z" if axis is None else "u"}) }}"""
    model = read(
        text,
        s=np.array(0.1, np.float32),
        z=np.array(128, np.uint8),
        v=np.array([0.1, 0.2, 0.3], np.float32),
        u=np.array([1, -2, 0], np.int8),
    )
    same(model, {"x": 3 * normal(4, 3)}, integers=False)
    x = torch.from_numpy(normal(4, 3)).requires_grad_()
    Network(model)({"x": x})["y"].sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), 1, rtol=1e-5)


def test_half_precision_is_read_as_single() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float16[N, 3] x) => (float16[N, 2] y) { y = MatMul(x, W) }"""
    W, x = normal(3, 2).astype(np.float16), normal(4, 3).astype(np.float16)
    found = Network(read(text, W=W), ["W"])({"x": x})["y"]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy(), x.astype(np.float32) @ W.astype(np.float32), rtol=1e-5)


def test_unknown_operators_are_named_before_anything_runs() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"]),
        helper.make_node("Strange", ["a"], ["y"], domain="somebody"),
    ]
    model = ir.from_proto(graphs.model(nodes, {"x": [2, 2]}, {"y": []}))
    assert unknown(model) == ("Det", "somebody::Strange")
    with pytest.raises(ModelError, match=r"Det, somebody::Strange"):
        Network(model)


def test_what_is_not_handled_is_refused_with_the_node() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[1, 1, 4] x) => (float[1, 1, 2] y) { y, i = MaxPool<kernel_shape = [3]>(x) s = Shape(i) }"""
    with pytest.raises(ModelError, match=r"MaxPool.*indices"):
        Network(read(text))({"x": normal(1, 1, 4)})
