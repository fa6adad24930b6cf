"""Deep models: chains of thousands of nodes, and what walks along them."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp import inspect
from onnxdecomp.core.layer import Array
from onnxdecomp.graph import constants
from onnxdecomp.graph.constants import Constant, discard, resolve
from onnxdecomp.layers import scope as base
from onnxdecomp.layers.find import find, find_again
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.training.roles import roles
from tests.builders import graphs
from tests.builders.vit import vit

LONG = 5000
W = np.eye(4, dtype=np.float32) + 1


def links(count: int, first: str, op_type: str = "Identity") -> list[onnx.NodeProto]:
    """A chain of nodes from a value to "end"."""
    names = [first, *(f"v{index}" for index in range(count - 1)), "end"]
    return [
        helper.make_node(op_type, [before], [after], f"{after}/node") for before, after in pairwise(names)
    ]


def behind_a_chain(count: int = LONG, op_type: str = "Identity") -> onnx.ModelProto:
    """Layers that all read one weight through the same long chain."""
    nodes = links(count, "W", op_type)
    nodes += [
        helper.make_node("MatMul", ["x", "end"], ["h"], "one"),
        helper.make_node("MatMul", ["h", "end"], ["y"], "two"),
    ]
    return graphs.model(nodes, {"x": ["N", 4]}, weights={"W": W})


def test_a_weight_behind_a_long_chain() -> None:
    model = ir.from_proto(behind_a_chain())
    matched, _ = find(model)
    assert [match.layer.name for match in matched] == ["one", "two"]
    np.testing.assert_array_equal(matched[0].layer.weight, W.T)
    assert matched[0].root is matched[1].root is model.graph.initializers["W"]


def test_a_chain_that_begins_at_an_input() -> None:
    nodes = [*links(LONG, "x", "Abs"), helper.make_node("MatMul", ["end", "end"], ["y"], "product")]
    _, skips = find(ir.from_proto(graphs.model(nodes, {"x": ["N", 4]}, weights={})))
    assert [skip.reason for skip in skips] == ["no operand is constant: it is an input"]


def test_what_depends_on_itself_is_no_constant() -> None:
    """onnx refuses such a file; a model in memory may be anything."""
    model = ir.from_proto(behind_a_chain(3))
    start = next(iter(model.graph))
    end = next(node for node in model.graph if node.name == "end/node").outputs[0]
    start.replace_input_with(0, end)
    found = resolve(end, ir_version=9)
    assert isinstance(found, str)
    assert "depends on its own output" in found


def test_a_long_chain_is_discarded() -> None:
    model = ir.from_proto(
        graphs.model(
            [*links(LONG, "W"), helper.make_node("Identity", ["x"], ["y"])], {"x": ["N", 4]}, weights={"W": W}
        )
    )
    end = next(node for node in model.graph if node.name == "end/node").outputs[0]
    discard(end)
    assert len(model.graph) == 1
    assert not model.graph.initializers


def test_functions_that_call_each_other_in_a_long_chain() -> None:
    proto = graphs.model([helper.make_node("f0", ["x"], ["y"], domain="local")], {"x": ["N", 4]}, weights={})
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    count = 2 * sys.getrecursionlimit()
    for index in range(count):
        last = index == count - 1
        body = helper.make_node(
            "Abs" if last else f"f{index + 1}", ["a"], ["r"], domain="" if last else "local"
        )
        proto.functions.append(helper.make_function("local", f"f{index}", ["a"], ["r"], [body], imports))
    model = ir.from_proto(proto)
    from onnxdecomp.graph.shape_inference import _callers_first

    order = _callers_first(model)
    assert [function.name for function in order] == [f"f{index}" for index in range(count)]


def test_a_weight_that_training_finds_behind_a_long_chain() -> None:
    found = roles(ir.from_proto(behind_a_chain()))
    assert [(role.name, role.kind) for role in found] == [("W", "weight")]


def test_the_layers_of_a_vision_transformer(tmp_path: Path) -> None:
    path = tmp_path / "vit.onnx"
    onnx.save(vit(), path)
    layers = [choice for choice in inspect(path).plan.choices if choice.before is not None]
    assert len(layers) == 1 + 12 * 6 + 1
    tokens, width = 17, 32
    per_block = tokens * width * (4 * width + 2 * 2 * width)
    assert sum(layer.before.macs for layer in layers if layer.before) == (
        16 * width * 3 * 16 + 12 * per_block + width * 10
    )


def test_each_value_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(behind_a_chain(50, "Neg"))
    infer_shapes(model)
    evaluated: list[str] = []
    evaluate = constants._evaluate

    def spy(node: ir.Node, *arguments: object) -> list[Array]:
        evaluated.append(str(node.name))
        found: list[Array] = evaluate(node, *arguments)  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(constants, "_evaluate", spy)
    matched, _ = find(model)
    assert len(matched) == 2
    assert len(evaluated) == len(set(evaluated)) == 50


def test_a_layer_is_found_again_in_a_clone_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(vit(2))
    matched, _ = find(model)
    asked: list[ir.Value | None] = []
    constant = base.Scope.constant

    def spy(scope: base.Scope, value: ir.Value | None) -> Constant | str:
        asked.append(value)
        return constant(scope, value)

    monkeypatch.setattr(base.Scope, "constant", spy)
    match = matched[5]
    again = find_again(model.clone(), match)
    assert again.layer.name == match.layer.name
    assert again.nodes[0] is not match.nodes[0]
    assert [node.name for node in again.nodes] == [node.name for node in match.nodes]
    np.testing.assert_array_equal(again.layer.weight, match.layer.weight)
    assert 1 <= len(asked) <= 4
