"""A quantized model whose outputs are nothing like the original's is not taken."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp.data.feeds import Feeds
from onnxdecomp.layer import Array
from onnxdecomp.quantization.guard import HARMED, distance, guarded
from onnxdecomp.quantization.scheme import Scheme
from tests.runtime.small import model as make
from tests.runtime.small import value

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def feeds(count: int = 16) -> Feeds:
    return Feeds(tuple({"x": normal(1, 16)} for _ in range(count)), "test", stackable=True)


def network(spoil: float, *, before: bool) -> ir.Model:
    """y = (x w) with a large number added and taken off again, in front of the product or behind it."""
    large = {"big": np.full(16, spoil, np.float32)}
    large["big"][1:] = 0
    nodes = [
        helper.make_node("Add", ["x" if before else "h", "big"], ["a"], name="add"),
        helper.make_node("Sub", ["a", "big"], ["s"], name="sub"),
        helper.make_node("MatMul", ["s" if before else "x", "w"], ["m" if before else "h"], name="product"),
    ]
    if not before:
        nodes = [nodes[2], nodes[0], nodes[1]]
    nodes.append(helper.make_node("Identity", ["m" if before else "s"], ["y"], name="end"))
    weights = {"w": normal(16, 16), **large}
    proto: onnx.ModelProto = make(nodes, [value("x", ["N", 16])], [value("y", ["N", 16])], weights)
    return ir.from_proto(proto)


def test_a_model_that_survives_is_quantized_whole() -> None:
    found = guarded(network(0.5, before=False), feeds(), Scheme())
    assert found.model is not None
    assert found.note == ""
    assert 0 < found.error < 0.1


def test_where_other_operators_break_it_products_are_quantized() -> None:
    found = guarded(network(1e5, before=False), feeds(), Scheme())
    assert found.model is not None
    assert "products of matrices only" in found.note
    assert found.error < 0.1
    assert any(node.op_type == "QuantizeLinear" for node in found.model.graph)


def test_a_model_that_breaks_in_any_case_is_left_alone() -> None:
    """One input is far larger than the others, and the product does not read it."""
    model = network(0.5, before=False)
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[0] = 0
    weight.const_value = ir.tensor(array, name="w")
    uneven = np.ones(16, np.float32)
    uneven[0] = 1e5
    data = Feeds(tuple({"x": normal(1, 16) * uneven} for _ in range(16)), "test", stackable=True)
    found = guarded(model, data, Scheme())
    assert found.model is None
    assert found.error > HARMED
    assert found.note.startswith("not quantized, for in 8 bits the outputs are off by")
    assert distance(model, model, data) == 0


def test_what_is_not_finite_is_infinitely_far() -> None:
    broken = network(0.5, before=False)
    weight = broken.graph.initializers["w"]
    array = weight.const_value.numpy().copy() if weight.const_value is not None else np.zeros(0)
    array[0, 0] = np.nan
    weight.const_value = ir.tensor(array, name="w")
    assert distance(network(0.5, before=False), broken, feeds()) == pytest.approx(float("inf"))
