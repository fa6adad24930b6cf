"""Shape inference: what it fills in, and what it leaves as it is."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp.graph import shape_inference
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.graph.shape_inference import as_declared
from onnxdecomp.graph.traversal import places
from onnxdecomp.layers.shapes import infer_shapes
from tests.builders import graphs, models, running


def shapes(model: ir.Model) -> dict[str, list[int | str | None] | None]:
    found: dict[str, list[int | str | None] | None] = {}
    for place in places(model):
        for value in (*place.graph.inputs, *(v for node in place.graph for v in node.outputs)):
            known = value.shape
            found[value.name or ""] = None if known is None else [_plain(dim) for dim in known]
    return found


def _plain(dim: int | ir.SymbolicDim) -> int | str | None:
    return dim if isinstance(dim, int) else dim.value


def inferred(proto: onnx.ModelProto) -> dict[str, list[int | str | None] | None]:
    model = ir.from_proto(proto)
    infer_shapes(model)
    return shapes(model)


def test_symbolic_dimensions_are_kept() -> None:
    found = inferred(models.linear(64))
    assert found == {"x": ["N", 4], "h": ["N", 64], "y": ["N", 64]}


def test_the_interface_stays() -> None:
    proto = models.linear()
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    found = inferred(proto)
    assert found["y"] is None
    assert found["h"] == ["N", 32]


def test_value_info_is_kept_and_completed() -> None:
    proto = models.linear()
    proto.graph.value_info.append(graphs.value("h", ["rows", None]))
    assert inferred(proto)["h"] == ["rows", 32]


def test_made_up_names_become_unknown() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["z"]), helper.make_node("Identity", ["z"], ["y"])]
    proto = graphs.model(nodes, {"x": ["N", 4]}, outputs=[graphs.value("y", None, onnx.TensorProto.INT64)])
    assert inferred(proto)["z"] == [2, None]


def test_the_model_s_own_odd_names_are_kept() -> None:
    proto = graphs.model(
        [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Relu", ["h"], ["y"])], {"x": ["N", 4]}
    )
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "unk__0"
    assert inferred(proto)["h"] == ["unk__0", 4]


def test_nested_graphs() -> None:
    found = inferred(models.nested())
    assert found["next"] == ["N", 4]
    assert found["o"] == ["N", 4]
    assert found["W"] == [4, 4]


@pytest.mark.parametrize("ir_version", [8, 10])
def test_function_bodies(tmp_path: Path, ir_version: int) -> None:
    model = load(graphs.saved(models.with_function(ir_version), tmp_path / "m.onnx"))
    infer_shapes(model)
    found = shapes(model)
    assert (found["a"], found["h"], found["r"], found["m"]) == (["N", 4],) * 4
    path = save(model, tmp_path / "out.onnx")
    np.testing.assert_array_equal(
        running.run(path, models.X)[0], running.run(tmp_path / "m.onnx", models.X)[0]
    )


def test_a_function_called_with_different_shapes() -> None:
    proto = models.with_function()
    proto.graph.node.append(helper.make_node("Dense", ["z"], ["w"], "third", domain="local", alpha=0.1))
    proto.graph.input.append(graphs.value("z", [7, 4]))
    proto.graph.output.append(graphs.value("w", None))
    assert inferred(proto)["h"] == [None, 4]


def test_attributes_of_a_function_count_only_where_the_calls_agree() -> None:
    """The shape behind `axis` is known only if every call gives the same one."""
    flatten = helper.make_node("Flatten", ["a"], ["f"])
    flatten.attribute.add(name="axis", type=onnx.AttributeProto.INT, ref_attr_name="axis")
    function = helper.make_function(
        "local", "F", ["a"], ["f"], [flatten], [helper.make_opsetid("", 17)], attributes=["axis"]
    )
    for axes, wanted in (((2, 2), [12, 5]), ((2, 1), None)):
        calls = [
            helper.make_node("F", ["x"], [name], domain="local", axis=axis)
            for name, axis in zip(("y", "z"), axes, strict=True)
        ]
        proto = graphs.model(
            calls,
            inputs=[graphs.value("x", [3, 4, 5])],
            outputs=[graphs.value("y", None), graphs.value("z", None)],
            functions=[function],
        )
        assert inferred(proto)["f"] == wanted


def test_functions_that_call_functions() -> None:
    proto = models.with_function()
    inner = [helper.make_node("Dense", ["p"], ["q"], domain="local", alpha=0.1)]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto.functions.insert(0, helper.make_function("local", "Outer", ["p"], ["q"], inner, imports))
    for node in proto.graph.node:
        node.op_type = "Outer"
        del node.attribute[:]
    found = inferred(proto)
    assert found["p"] == found["h"] == ["N", 4]


def test_operators_that_only_onnx_runtime_has() -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"),
        helper.make_node("Relu", ["g"], ["y"]),
    ]
    assert inferred(graphs.model(nodes, {"x": ["N", 4]}))["g"] == ["N", 4]


def test_fused_operators_of_several_outputs() -> None:
    """What is behind them is inferred, too: the sum of EmbedLayerNormalization and SkipLayerNormalization."""
    tables = {"words": np.zeros((50, 8)), "places": np.zeros((9, 8)), "one": np.ones(8)}
    nodes = [
        helper.make_node(
            "EmbedLayerNormalization",
            ["ids", "", "words", "places", "", "one", "one", "mask"],
            ["e", "lengths", "sum"],
            domain="com.microsoft",
        ),
        helper.make_node("Relu", ["sum"], ["r"]),
        helper.make_node(
            "SkipLayerNormalization", ["e", "r", "one"], ["s", "", "", "added"], domain="com.microsoft"
        ),
        helper.make_node("Add", ["s", "added"], ["y"]),
        helper.make_node("Identity", ["lengths"], ["z"]),
    ]
    given: dict[str, graphs.Dims | None] = {"ids": ["N", "T"], "mask": ["N", "T"]}
    found = inferred(graphs.model(nodes, given, {"y": None, "z": None}, tables))
    for name in ("e", "sum", "r", "s", "added"):
        assert found[name] == ["N", "T", 8], name
    assert found["lengths"] is None


def test_an_unknown_operator_stops_nothing_else() -> None:
    nodes = [
        helper.make_node("Thing", ["x"], ["t"], domain="local"),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Add", ["t", "r"], ["y"]),
    ]
    found = inferred(graphs.model(nodes, {"x": ["N", 4]}))
    assert found["t"] is None
    assert found["r"] == ["N", 4]


def test_failure_is_quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("inference failed")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    model = ir.from_proto(models.linear())
    with caplog.at_level(logging.DEBUG):
        infer_shapes(model)
    assert shapes(model)["h"] is None
    assert not caplog.records


def test_sizes_below_one_are_unknown() -> None:
    """Some exporters write -1; ONNX's inference would compute a size from it."""
    conv = helper.make_node("Conv", ["x", "W"], ["h"], strides=[2, 2])
    weights = {"W": np.ones((5, 3, 3, 3), np.float32)}
    proto = graphs.model(
        [conv, helper.make_node("Relu", ["h"], ["y"])],
        weights=weights,
        inputs=[graphs.value("x", [-1, 3, -1, 9])],
    )
    assert inferred(proto)["h"] == [None, 5, None, 4]


def test_what_was_inferred_is_not_saved(tmp_path: Path) -> None:
    proto = models.linear()
    proto.graph.value_info.append(graphs.value("h", ["rows", None]))
    model = ir.from_proto(proto)
    plain = save(model, tmp_path / "plain.onnx").read_bytes()
    infer_shapes(model)
    assert shapes(model)["h"] == ["rows", 32]
    assert save(model, tmp_path / "inferred.onnx").read_bytes() == plain
    assert shapes(model)["h"] == ["rows", 32]
    infer_shapes(model)
    as_declared(model)
    assert shapes(model)["h"] == ["rows", None]


def test_large_tensors_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    infer = onnx.shape_inference.infer_shapes

    def measure(proto: onnx.ModelProto, **more: bool) -> onnx.ModelProto:
        seen.append(proto.ByteSize())
        return infer(proto, **more)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", measure)
    array = np.zeros((4, 100_000), np.float32)
    constant = helper.make_node("Constant", [], ["V"], value=onnx.numpy_helper.from_array(array, "V"))
    nodes = [
        constant,
        helper.make_node("MatMul", ["x", "V"], ["h"]),
        helper.make_node("Add", ["h", "W"], ["y"]),
    ]
    model = ir.from_proto(graphs.model(nodes, {"x": ["N", 4]}, {"y": None}, {"W": array[:1]}))
    infer_shapes(model)
    assert shapes(model)["h"] == ["N", 100_000]
    assert seen
    assert max(seen) < 10_000
    assert model.graph.initializers["W"].const_value is not None


def test_reshape_by_computed_shapes() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    weights = {"zero": np.asarray([0]), "rest": np.asarray([2, 2])}
    assert inferred(graphs.model(nodes, {"x": ["N", 4]}, weights=weights))["h"] == ["N", 2, 2]


@pytest.mark.parametrize("in_a_function", [False, True])
def test_a_stand_in_that_fails_costs_its_own_shape_alone(in_a_function: bool) -> None:
    """It may have changed the node by then."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 17, "own" : 1]>
        g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { h = Relu(x) y = own.Unknown(h) t = Tanh(h)
        z = own.body(t) }
        <domain: "own", opset_import: ["" : 17, "own" : 1]>
        body (a) => (c) { b = Relu(a) d = own.Unknown(b) c = Exp(b) }
        """
        if in_a_function
        else """
        <ir_version: 10, opset_import: ["" : 17, "own" : 1]>
        g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { h = Relu(x) y = own.Unknown(h) z = Tanh(h) }
        """
    )
    subject = ir.from_proto(model)

    def fail(node: ir.Node) -> None:
        node.op_type, node.domain = "Conv", ""
        raise ValueError("broken")

    shape_inference.infer_shapes(subject, {("own", "Unknown"): fail})
    known = {value.name: value.shape for place in places(subject) for n in place.graph for value in n.outputs}
    expected = {"h", "b", "c", "t"} if in_a_function else {"h"}
    assert {name for name in expected if known[name] is not None and known[name] == [2, 3]} == expected
    assert {node.op_type for place in places(subject) for node in place.graph} >= {"Unknown"}
