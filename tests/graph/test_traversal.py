"""Walking: every graph, names, stored tensors."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.graph.load import load
from onnxdecomp.graph.traversal import node_names, operands, places, slots, unique_name, value_names
from tests.builders import graphs, models


@pytest.fixture
def nested(tmp_path: Path) -> ir.Model:
    return load(graphs.saved(models.nested(), tmp_path / "m.onnx"))


def test_places_of_nested_graphs(nested: ir.Model) -> None:
    found = {place.path: [node.op_type for node in place.graph] for place in places(nested)}
    assert found == {
        "": ["Identity", "If"],
        "choose/then_branch": ["Loop"],
        "choose/then_branch/loop/body": ["MatMul", "Identity"],
        "choose/else_branch": ["MatMul"],
    }


def test_places_of_functions(tmp_path: Path) -> None:
    model = load(graphs.saved(models.with_function(), tmp_path / "m.onnx"))
    found = list(places(model))
    assert [place.path for place in found] == ["", "function:local::Dense"]
    assert found[1].function is next(iter(model.functions.values()))
    assert found[0].function is None


def test_an_overload_is_part_of_the_path(tmp_path: Path) -> None:
    proto = models.with_function(10)
    proto.functions[0].overload = "fast"
    for node in proto.graph.node:
        node.overload = "fast"
    model = load(graphs.saved(proto, tmp_path / "m.onnx"))
    assert [place.path for place in places(model)] == ["", "function:local::Dense::fast"]


def test_nodes_without_names_have_distinct_paths(tmp_path: Path) -> None:
    proto = models.nested()
    proto.graph.node[1].name = ""
    model = load(graphs.saved(proto, tmp_path / "m.onnx"))
    assert "If_1/else_branch" in [place.path for place in places(model)]


def test_names_of_all_graphs(nested: ir.Model) -> None:
    inner = {"i", "go", "state", "on", "next", "t", "o"}
    assert value_names(nested) == {"x", "flag", "y", "W0", "W", "times"} | inner
    assert node_names(nested) == {"name", "choose", "loop", "inner", "mm"}


def test_names_in_functions(tmp_path: Path) -> None:
    model = load(graphs.saved(models.with_function(), tmp_path / "m.onnx"))
    assert {"a", "C", "h", "r"} < value_names(model)
    assert {"weight", "leaky"} < node_names(model)


def test_operands_include_what_subgraphs_capture(nested: ir.Model) -> None:
    names = {value.name for value in operands(nested.graph[1])}
    assert {"flag", "x", "W", "times", "state", "go"} == names


@given(st.lists(st.sampled_from(["a", "a_1", "b", "a_2"]), max_size=12))
def test_unique_names(wanted: list[str]) -> None:
    taken = {"a", "b"}
    made = [unique_name(name, taken) for name in wanted]
    assert len(set(made)) == len(made)
    assert not {"a", "b"} & set(made)
    assert taken == {"a", "b"} | set(made)


def test_a_free_name_is_kept() -> None:
    assert unique_name("conv/first", {"conv"}) == "conv/first"


def test_slots_read_and_write(tmp_path: Path) -> None:
    model = load(graphs.saved(models.with_function(), tmp_path / "m.onnx"))
    (slot,) = slots(model)
    assert slot.tensor.shape == ir.Shape([4, 4])
    slot.put(ir.tensor([1.0], name="other"))
    assert next(iter(slots(model))).tensor.shape == ir.Shape([1])
