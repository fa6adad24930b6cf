"""Shapes where inference is at its end: pads computed from constants, and operators of other domains."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.encoder import encoder
from onnxdecomp import compress, inspect
from onnxdecomp.calibration import bound_shapes, measured_shapes
from onnxdecomp.calibration.input_shapes import input_shapes
from onnxdecomp.calibration.measured_shapes import largest_value, shapes_in_a_run, with_seen_shapes
from onnxdecomp.cli.show import show_plan
from onnxdecomp.core.layer import Array
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from tests.builders.feeds import normal
from tests.builders.graphs import conv, value
from tests.builders.graphs import model as make


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def padded() -> onnx.ModelProto:
    """A convolution behind a Pad whose pads torch's exporter computes: laid out anew, reversed and cast."""
    nodes = [
        helper.make_node("Constant", [], ["p"], value=numpy_helper.from_array(ints(0, 1, 0, 1))),
        helper.make_node("ConstantOfShape", ["four"], ["zeros"]),
        helper.make_node("Cast", ["zeros"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Concat", ["p", "whole"], ["all"], axis=0),
        helper.make_node("Reshape", ["all", "pairs"], ["table"]),
        helper.make_node("Slice", ["table", "last", "least", "axis", "back"], ["reversed"]),
        helper.make_node("Transpose", ["reversed"], ["turned"], perm=[1, 0]),
        helper.make_node("Reshape", ["turned", "flat"], ["flattened"]),
        helper.make_node("Cast", ["flattened"], ["pads"], to=TensorProto.INT64),
        helper.make_node("Pad", ["x", "pads"], ["h"], mode="constant"),
        conv("layer", "h", "y", strides=[2, 2]),
    ]
    weights = {
        "layer.w": normal(4, 3, 3, 3),
        "layer.b": normal(4),
        "four": ints(4),
        "pairs": ints(-1, 2),
        "flat": ints(-1),
        "last": ints(-1),
        "least": ints(-(2**62)),
        "axis": ints(0),
        "back": ints(-1),
    }
    return make(nodes, [value("x", ["N", 3, 16, 16])], [value("y", None)], weights)


def behind_another_domain() -> onnx.ModelProto:
    """Two products behind operators of com.microsoft whose shapes nobody infers."""
    nodes = [
        helper.make_node("Trilu", ["x"], ["h"], domain="com.microsoft"),
        helper.make_node("Trilu", ["skip"], ["g"], domain="com.microsoft"),
        helper.make_node("MatMul", ["h", "one"], ["a"], "one"),
        helper.make_node("MatMul", ["g", "two"], ["b"], "two"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    weights = {"one": normal(8, 6), "two": normal(8, 6)}
    inputs = [value("x", ["N", 5, 8]), value("skip", ["N", 5, 8])]
    proto = make(nodes, inputs, [value("y", None)], weights)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def matches_of(proto: onnx.ModelProto) -> tuple[ir.Model, list[LayerMatch]]:
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model, find(model)[0]


def test_pads_computed_from_constants() -> None:
    _, (match,) = matches_of(padded())
    assert match.layer.input_shape == ("N", 3, 17, 17)


def test_what_is_folded_for_the_inference_stays_in_the_model() -> None:
    model = ir.from_proto(padded())
    before = [node.op_type for node in model.graph]
    infer_shapes(model)
    assert [node.op_type for node in model.graph] == before


def test_layers_behind_operators_of_another_domain() -> None:
    model, matched = matches_of(behind_another_domain())
    assert [match.layer.input_shape for match in matched] == [None, None]
    seen = with_seen_shapes(model, matched)
    assert [match.layer.seen_shape for match in seen] == [(1, 5, 8), (1, 5, 8)]
    assert [match.layer.assumed_input_shape() for match in seen] == [(1, 5, 8)] * 2
    assert [match.layer.assumed_input_shape(3) for match in seen] == [(3, 5, 8)] * 2
    choices = inspect(behind_another_domain()).plan.choices
    assert [choice.before.macs for choice in choices if choice.before] == [5 * 8 * 6] * 2


def test_shapes_of_inputs_reach_layers_behind_other_domains() -> None:
    model, _ = matches_of(behind_another_domain())
    shapes = input_shapes(model, {"x": (7, 5, 8), "skip": (7, 5, 8)})
    assert shapes == {("", "one"): (7, 5, 8), ("", "two"): (7, 5, 8)}


def test_only_what_is_asked_for_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, matched = matches_of(padded())
    monkeypatch.setattr("onnxdecomp.calibration.measured_shapes.open_observer", None)
    assert with_seen_shapes(model, matched) == matched


def test_a_model_that_does_not_run_has_no_shapes() -> None:
    proto = behind_another_domain()
    proto.graph.node[0].op_type = "NobodyHasThis"
    model, matched = matches_of(proto)
    assert shapes_in_a_run(model, ["h"], {"x": normal(1, 5, 8), "skip": normal(1, 5, 8)}) == {}
    assert with_seen_shapes(model, matched) == matched
    assert not any(match.layer.sized for match in matched)


def strided(batch: str | None) -> onnx.ModelProto:
    """Free sizes: two convolutions of stride 2 in a row, and a product of all positions as rows."""
    nodes = [
        conv("one", "x", "h", strides=[2, 2], pads=[1, 1, 1, 1]),
        conv("two", "h", "g", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["g"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["last", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"], "three"),
    ]
    weights = {
        "one.w": normal(4, 3, 3, 3),
        "one.b": normal(4),
        "two.w": normal(8, 4, 3, 3),
        "two.b": normal(8),
        "flat": ints(-1, 8),
        "w": normal(8, 6),
    }
    return make(nodes, [value("x", [batch, 3, "H", "W"])], [value("y", None)], weights)


@pytest.mark.parametrize("batch", ["N", None])
def test_costs_are_at_one_size_of_the_input(batch: str | None) -> None:
    """Behind a stride there is half of the size that is assumed for the input, not that size again."""
    model, matched = matches_of(strided(batch))
    assert [match.layer.assumed_input_shape() for match in with_seen_shapes(model, matched)] == [
        (1, 3, 32, 32),
        (1, 4, 16, 16),
        (64, 8),
    ]
    before = [choice.before for choice in inspect(strided(batch)).plan.choices]
    macs = [16 * 16 * 27 * 4, 8 * 8 * 36 * 8, 64 * 8 * 6]
    assert [cost.macs for cost in before if cost is not None] == macs


def branches() -> onnx.ModelProto:
    """In each branch of an If a product behind an operator that no inference knows; the first is taken."""
    triangle = helper.make_node("Trilu", ["x"], ["h"], domain="com.microsoft")

    def branch(name: str) -> onnx.GraphProto:
        product = helper.make_node("MatMul", ["h", f"{name}.w"], [f"{name}.y"], name)
        weight = numpy_helper.from_array(normal(8, 6), f"{name}.w")
        return helper.make_graph([triangle, product], name, [], [value(f"{name}.y", None)], [weight])

    taken = helper.make_node(
        "If", ["yes"], ["y"], "if", then_branch=branch("then"), else_branch=branch("else")
    )
    weights = {"yes": np.asarray(True)}
    proto = make([taken], [value("x", ["N", 5, 8])], [value("y", None)], weights)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def test_layers_in_subgraphs_have_the_shape_of_a_run_or_none() -> None:
    model, matched = matches_of(branches())
    seen = {match.layer.name: match.layer for match in with_seen_shapes(model, matched)}
    assert seen["then"].seen_shape == (1, 5, 8)
    assert seen["then"].sized
    assert not seen["else"].sized


def experts() -> onnx.ModelProto:
    """A product sees those rows that have a number above a thousand: none."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], "first"),
        helper.make_node("ReduceMax", ["h"], ["most"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["most", "limit"], ["chosen"]),
        helper.make_node("Compress", ["h", "chosen"], ["rows"], axis=0),
        helper.make_node("MatMul", ["rows", "idle"], ["out"], "idle"),
        helper.make_node("ReduceSum", ["out"], ["sum"], keepdims=1),
        helper.make_node("Add", ["h", "sum"], ["y"]),
    ]
    weights = {"first": normal(24, 24), "idle": normal(24, 24), "limit": np.array(1000, np.float32)}
    return make(nodes, [value("x", ["N", 24])], [value("y", ["N", 24])], weights)


def test_a_layer_without_rows_in_the_run_costs_what_a_row_costs() -> None:
    model, matched = matches_of(experts())
    seen = {match.layer.name: match.layer for match in with_seen_shapes(model, matched)}
    assert not seen["idle"].sized
    assert seen["idle"].assumed_input_shape() == (1, 24)
    calib = [{"x": normal(4, 24, seed=seed)} for seed in range(4)]
    result = compress(
        experts(), calib=calib, rank="0.25", method="svd", simplify="none", bench=False, verify=False
    )
    assert {layer.name: layer.method for layer in result.layers} == {"first": "svd", "idle": "svd"}
    (reason,) = [layer.reason for layer in result.layers if layer.name == "idle"]
    assert reason == "fitted to its weight alone: no calibration input reaches it"


def test_macs_that_nobody_knows_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    result = inspect(branches())
    macs = {layer.name: (layer.macs.before, layer.macs.after) for layer in result.layers}
    assert macs["then"][0] == 5 * 8 * 6
    assert macs["else"] == (None, None)
    assert result.record["totals"]["macs"]["before"] == 5 * 8 * 6
    show_plan(result)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "/else " in line]
    assert row.endswith(" ?")


def test_the_largest_value_is_that_of_the_inputs_own_size() -> None:
    """Free sizes, and the largest value one that is no layer's."""
    nodes = [
        conv("layer", "x", "h", pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["h", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("GlobalAveragePool", ["large"], ["y"]),
    ]
    weights = {
        "layer.w": normal(4, 3, 3, 3),
        "layer.b": normal(4),
        "scales": np.asarray([1, 1, 3, 3], np.float32),
    }
    model = ir.from_proto(make(nodes, [value("x", ["N", 3, "H", "W"])], [value("y", None)], weights))
    assert largest_value(model, {"x": normal(1, 3, 10, 20)}) == 4 * 30 * 60
    assert largest_value(model, {"x": normal(1, 5, 10, 20)}) == 0


def test_long_graphs_have_the_sizes_of_a_run_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder lays a mask out and reads positions off its input's shape; the run is not there."""
    model = encoder(layers=1, width=16, vocabulary=100)
    infer_shapes(model)
    found, _ = find(model)
    seen = [match.layer.seen_shape for match in with_seen_shapes(model, found)]
    monkeypatch.setattr(bound_shapes, "LONG", 3)
    monkeypatch.setattr(measured_shapes, "_in_a_run", lambda *_: {})
    told = [match.layer.seen_shape for match in with_seen_shapes(model, found)]
    assert told == seen
    assert all(shape is not None for shape in seen)
