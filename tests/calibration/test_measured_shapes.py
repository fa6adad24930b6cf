"""Shapes where inference is at its end: pads computed from constants, and operators of other domains."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxdecomp import inspect
from onnxdecomp.calibration.input_shapes import input_shapes
from onnxdecomp.calibration.measured_shapes import largest_value, shapes_in_a_run, with_seen_shapes
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.shape_inference import infer_shapes
from onnxdecomp.layers.find import find
from onnxdecomp.layers.site import Site
from tests.calibration.small import conv, normal
from tests.runtime.small import model as make
from tests.runtime.small import value


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def padded() -> onnx.ModelProto:
    """A convolution behind a Pad whose pads torch's exporter computes: laid out anew, reversed and cast."""
    nodes = [
        helper.make_node("Constant", [], ["p"], value=onnx.numpy_helper.from_array(ints(0, 1, 0, 1))),
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
    """Two products behind an operator of com.microsoft with several outputs, whose shapes nobody infers."""
    nodes = [
        helper.make_node(
            "SkipLayerNormalization", ["x", "skip", "gamma"], ["h", "", "", "sum"], domain="com.microsoft"
        ),
        helper.make_node("MatMul", ["h", "one"], ["a"], "one"),
        helper.make_node("MatMul", ["sum", "two"], ["b"], "two"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    weights = {"gamma": normal(8), "one": normal(8, 6), "two": normal(8, 6)}
    inputs = [value("x", ["N", 5, 8]), value("skip", ["N", 5, 8])]
    proto = make(nodes, inputs, [value("y", None)], weights)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def sites_of(proto: onnx.ModelProto) -> tuple[ir.Model, list[Site]]:
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model, find(model)[0]


def test_pads_computed_from_constants() -> None:
    _, (site,) = sites_of(padded())
    assert site.layer.input_shape == ("N", 3, 17, 17)


def test_what_is_folded_for_the_inference_stays_in_the_model() -> None:
    model = ir.from_proto(padded())
    before = [node.op_type for node in model.graph]
    infer_shapes(model)
    assert [node.op_type for node in model.graph] == before


def test_layers_behind_operators_of_another_domain() -> None:
    model, sites = sites_of(behind_another_domain())
    assert [site.layer.input_shape for site in sites] == [None, None]
    seen = with_seen_shapes(model, sites)
    assert [site.layer.seen_shape for site in seen] == [(1, 5, 8), (1, 5, 8)]
    assert [site.layer.assumed_input_shape() for site in seen] == [(1, 5, 8)] * 2
    assert [site.layer.assumed_input_shape(3) for site in seen] == [(3, 5, 8)] * 2
    choices = inspect(behind_another_domain()).plan.choices
    assert [choice.before.macs for choice in choices if choice.before] == [5 * 8 * 6] * 2


def test_shapes_of_inputs_reach_layers_behind_other_domains() -> None:
    model, _ = sites_of(behind_another_domain())
    shapes = input_shapes(model, {"x": (7, 5, 8), "skip": (7, 5, 8)})
    assert shapes == {("", "one"): (7, 5, 8), ("", "two"): (7, 5, 8)}


def test_only_what_is_asked_for_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites = sites_of(padded())
    monkeypatch.setattr("onnxdecomp.calibration.measured_shapes.open_taps", None)
    assert with_seen_shapes(model, sites) == sites


def test_a_model_that_does_not_run_has_no_shapes() -> None:
    proto = behind_another_domain()
    proto.graph.node[0].op_type = "NobodyHasThis"
    model, sites = sites_of(proto)
    assert shapes_in_a_run(model, ["h"]) == {}
    assert with_seen_shapes(model, sites) == sites


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
