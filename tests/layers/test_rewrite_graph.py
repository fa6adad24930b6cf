"""What a rewrite keeps of the graph around a layer: names, order, sharing, subgraphs, functions, inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxdecomp_passes.decompose import Decompose

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError
from onnxdecomp.graph.save import save
from onnxdecomp.layers.find import find
from onnxdecomp.layers.lowering_check import check_lowering
from onnxdecomp.pipeline.base import PassResult
from tests.builders import graphs
from tests.builders.running import run

RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 8, 3, 3)).astype(np.float32)
X = {"x": RNG.standard_normal((2, 8, 6, 6)).astype(np.float32)}


def tensor(name: str, array: Array) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def conv(x: str, w: str, y: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, w], [y], name=name, pads=[1, 1, 1, 1])


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    outputs: Sequence[str] = ("y",),
    **options: Any,
) -> onnx.ModelProto:
    unknown = (None, None, None, None)
    return graphs.model(nodes, {"x": ["N", 8, 6, 6]}, dict.fromkeys(outputs, unknown), weights, **options)


def rewrite(proto: onnx.ModelProto, **options: Any) -> tuple[ir.Model, PassResult]:
    converted = ir.from_proto(proto)
    options = {"method": "tucker", "rank": "1.0", "must_save": "none", **options}
    result = Decompose(**options).call(converted)
    onnx.checker.check_model(ir.to_proto(converted))
    return converted, result


def assert_same(proto: onnx.ModelProto, rewritten: ir.Model, feeds: dict[str, Array] | None = None) -> None:
    for before, after in zip(run(proto, feeds or X), run(rewritten, feeds or X), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-3)


def test_layers_that_feed_each_other() -> None:
    proto = model([conv("x", "w", "h", "one"), conv("h", "v", "y", "two")], {"w": W, "v": W + 1})
    rewritten, result = rewrite(proto)
    assert [r.match.layer.name for r in result.rewritten] == ["one", "two"]
    assert_same(proto, rewritten)
    assert all(check.passed for check in check_lowering(result.rewritten, opset=17, ir_version=8))


def test_names() -> None:
    proto = model([conv("x", "w", "y", "one")], {"w": W})
    proto.graph.node[0].metadata_props.add(key="from", value="exporter")
    rewritten, _ = rewrite(proto)
    assert [node.name for node in rewritten.graph] == ["one/first", "one/core", "one"]
    last = rewritten.graph[-1]
    assert last.outputs[0].name == "y"
    assert last.metadata_props["from"] == "exporter"
    assert last.metadata_props["pkg.onnxdecomp.method"] == "tucker"
    assert last.metadata_props["pkg.onnxdecomp.ranks"] == "8,8"
    assert "w" not in rewritten.graph.initializers
    assert set(rewritten.graph.initializers) == {
        "one/first.weight",
        "one/core.weight",
        "one/last.weight",
    }


def test_taken_names_are_not_taken_again() -> None:
    relu = helper.make_node("Relu", ["y0"], ["one/first_output"], name="one/first")
    last = helper.make_node("Relu", ["one/first_output"], ["y"], name="end")
    rewritten, _ = rewrite(model([conv("x", "w", "y0", "one"), relu, last], {"w": W}))
    names = [node.name for node in rewritten.graph]
    assert len(set(names)) == len(names)
    assert_same(model([conv("x", "w", "y0", "one"), relu, last], {"w": W}), rewritten)


def test_nodes_of_the_same_name() -> None:
    proto = model([conv("x", "w", "h", "c"), conv("h", "v", "y", "c")], {"w": W, "v": W + 1})
    converted = ir.from_proto(proto)
    result = Decompose(rank="1.0", must_save="none").call(converted)
    # ONNX Runtime refuses such a model, but a plan must still tell the two apart.
    assert [r.match.layer.name for r in result.rewritten] == ["c:h", "c:y"]


def test_a_shared_weight_is_factorised_once() -> None:
    proto = model([conv("x", "w", "h", "one"), conv("h", "w", "y", "two")], {"w": W})
    rewritten, _ = rewrite(proto, rank="0.5")
    assert len(rewritten.graph.initializers) == 3
    exact, _ = rewrite(proto)
    assert_same(proto, exact)


def test_a_shared_weight_whose_layers_are_arranged_differently() -> None:
    """A plain and a transposed convolution read one weight, but their kernels stand in other factors."""
    other = helper.make_node("ConvTranspose", ["h", "w"], ["y"], name="two", pads=[1, 1, 1, 1])
    proto = model([conv("x", "w", "h", "one"), other], {"w": W})
    for method in ("svd", "tucker", "tt", "spatial"):
        assert_same(proto, rewrite(proto, method=method)[0])


def test_a_shared_weight_stays_for_the_node_that_keeps_it() -> None:
    proto = model([conv("x", "w", "h", "one"), conv("h", "w", "y", "two")], {"w": W})
    rewritten, _ = rewrite(proto, exclude=("two",))
    assert "w" in rewritten.graph.initializers
    assert_same(proto, rewritten)


def test_a_shared_square_weight_on_either_side() -> None:
    """Their factors are equal but for a transposition, which a product from the left stores transposed."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="right"),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["wt", "x"], ["b"], name="left"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    proto = model(nodes, {"w": W[:6, :6, 0, 0]})
    rewritten, result = rewrite(proto, method="svd")
    assert len(result.rewritten) == 2
    assert_same(proto, rewritten)


def test_an_intermediate_value_that_is_a_graph_output() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="m"),
        helper.make_node("Add", ["h", "b"], ["y"], name="a"),
    ]
    weights = {"w": W[:6, :6, 0, 0], "b": W[0, :6, 0, 0]}
    proto = model(nodes, weights, ["h", "y"])
    rewritten, result = rewrite(proto)
    assert len(result.rewritten) == 1
    assert [node.name for node in rewritten.graph][-1] == "a"
    assert_same(proto, rewritten)


def test_a_value_that_many_read() -> None:
    nodes = [
        conv("x", "w", "h", "one"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Add", ["h", "r"], ["y"]),
    ]
    proto = model(nodes, {"w": W})
    assert_same(proto, rewrite(proto)[0])


def branches(captured: bool) -> onnx.ModelProto:
    """If with a Conv in each branch, its weight of the branch or captured from outside."""
    floats = TensorProto.FLOAT

    def branch(name: str) -> onnx.GraphProto:
        own = [] if captured else [tensor(f"{name}_w", W if name == "yes" else W + 1)]
        weight = "w" if captured else f"{name}_w"
        out = helper.make_tensor_value_info(f"{name}_y", floats, [None] * 4)
        return helper.make_graph([conv("x", weight, f"{name}_y", "inner")], name, [], [out], own)

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["condition"]),
        helper.make_node(
            "If", ["condition"], ["y"], name="if", then_branch=branch("yes"), else_branch=branch("no")
        ),
    ]
    weights = {"zero": np.array(0, np.float32)}
    return model(nodes, {**weights, "w": W} if captured else weights)


@pytest.mark.parametrize("captured", [False, True])
def test_subgraphs(captured: bool) -> None:
    proto = branches(captured)
    rewritten, result = rewrite(proto)
    assert {r.match.layer.graph for r in result.rewritten} == {"if/then_branch", "if/else_branch"}
    for sign in (1, -1):
        assert_same(proto, rewritten, {"x": sign * np.abs(X["x"])})
    if captured:
        assert "w" not in rewritten.graph.initializers
        assert sum("weight" in name for name in rewritten.graph.initializers) == 3


def test_functions() -> None:
    body = [
        helper.make_node("Constant", [], ["fw"], value=tensor("fw", W)),
        conv("a", "fw", "b", "inner"),
    ]
    function = helper.make_function("local", "Block", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("Block", ["x"], ["h"], domain="local", name="call")
    again = helper.make_node("Block", ["h"], ["y"], domain="local", name="again")
    proto = model([call, again], {}, functions=[function])
    rewritten, result = rewrite(proto)
    assert [r.match.layer.graph for r in result.rewritten] == ["function:local::Block"]
    assert [n.op_type for n in next(iter(rewritten.functions.values()))].count("Conv") == 3
    assert_same(proto, rewritten)


def overridable(ir_version: int) -> onnx.ModelProto:
    proto = model([conv("x", "w", "y", "one")], {"w": W}, ir_version=ir_version)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))
    return proto


def test_an_overridable_initializer_is_left_alone() -> None:
    _, result = rewrite(overridable(8))
    assert not result.rewritten
    assert result.plan is not None
    assert "--freeze-initializers" in result.plan.choices[0].reason


def test_an_overridable_initializer_is_taken_when_asked() -> None:
    rewritten, result = rewrite(overridable(8), freeze_initializers=True)
    assert len(result.rewritten) == 1
    assert [value.name for value in rewritten.graph.inputs] == ["x"]
    assert_same(overridable(8), rewritten)


def test_before_ir_version_4_initializers_are_inputs_and_constant(tmp_path: Any) -> None:
    proto = overridable(3)
    proto.opset_import[0].version = 8
    rewritten = ir.from_proto(proto)
    result = Decompose(rank="1.0", must_save="none").call(rewritten)
    assert len(result.rewritten) == 1
    path = save(rewritten, tmp_path / "old.onnx")
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded)
    assert loaded.ir_version == 3
    assert_same(proto, ir.from_proto(loaded))


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (W[:, :1], "depthwise"),
        (W[:1, :, :1, :1], "full rank of 1"),
    ],
)
def test_reasons(weight: Array, reason: str) -> None:
    node = conv("x", "w", "y", "one")
    if weight.shape[1] == 1:
        node.attribute.append(helper.make_attribute("group", 8))
    _, result = rewrite(model([node], {"w": weight}))
    assert result.plan is not None
    assert reason in result.plan.choices[0].reason


def test_a_computed_weight_is_no_layer() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"], name="m"),
    ]
    matched, skips = find(ir.from_proto(model(nodes, {})))
    assert not matched
    assert skips[0].name == "m"
    assert "no operand is constant" in skips[0].reason


def test_a_weight_of_other_dimensions_than_its_activation_is_no_layer() -> None:
    matched, skips = find(ir.from_proto(model([conv("x", "w", "y", "one")], {"w": W[..., 0]})))
    assert not matched
    assert skips[0].reason == "its activation has 4 dimensions, its weight 3"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite(value: float) -> None:
    bad = W.copy()
    bad[0, 0, 0, 0] = value
    _, result = rewrite(model([conv("x", "w", "y", "one")], {"w": bad}))
    assert not result.rewritten
    assert result.plan is not None
    assert "NaN or infinite" in result.plan.choices[0].reason


@pytest.mark.parametrize(
    "options",
    [{"rank": "0"}, {"rank": "3,3,3"}, {"rank": "99"}, {"method": "nobody"}, {"include": ("nobody",)}],
)
def test_requests_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        rewrite(model([conv("x", "w", "y", "one")], {"w": W}), **options)


def test_the_same_bytes_twice() -> None:
    proto = model([conv("x", "w", "h", "one"), conv("h", "w", "y", "two")], {"w": W})
    for method in ("svd", "tucker", "cp", "tt"):
        one, two = (ir.to_proto(rewrite(proto, method=method, rank="0.5")[0]) for _ in range(2))
        assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)
