"""Layers behind a selection, or behind random numbers, are compared with the original row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import onnxdecomp
from onnxdecomp.calibration.pinned_values import pinned, pins_of
from onnxdecomp.calibration.statistics import observe, window
from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.moments import merged
from onnxdecomp.fitting.quadratic_loss import as_rows, problem
from onnxdecomp.quantization.distance import distance
from tests.builders.feeds import calibration, normal
from tests.builders.graphs import loaded, match_of, value
from tests.builders.graphs import model as make

FEEDS = [{"x": normal(1, 8, seed=index)} for index in range(40)]


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, name=f"{kind}_{outputs[0]}", **attributes)


SCORES = [
    node("ReduceMax", ["f"], ["s"], axes=[1], keepdims=0),
    node("Greater", ["s", "limit"], ["g"]),
]
BY_TOPK = [
    *SCORES,
    node("Cast", ["g"], ["counted"], to=TensorProto.INT64),
    node("ReduceSum", ["counted", "axis"], ["k"], keepdims=1),
    node("TopK", ["s", "k"], ["best", "index"], axis=0),
    node("Gather", ["f", "index"], ["rows"], axis=0),
]
BY_NONZERO = [
    *SCORES,
    node("NonZero", ["g"], ["z"]),
    node("Transpose", ["z"], ["zt"]),
    node("GatherND", ["f", "zt"], ["rows"]),
]
BY_COMPRESS = [*SCORES, node("Compress", ["f", "g"], ["rows"], axis=0)]
BY_CHANCE = [node("RandomNormalLike", ["f"], ["e"]), node("Add", ["f", "e"], ["rows"])]
KINDS = {"topk": BY_TOPK, "nonzero": BY_NONZERO, "compress": BY_COMPRESS, "chance": BY_CHANCE}


def network(kind: str, damage: float = 0.0, *, inside: bool = False) -> onnx.ModelProto:
    """y = rows(x w) v; the selection may stand in a branch of an If."""
    nodes = KINDS[kind]
    if inside:
        branch = helper.make_graph(nodes, "then", [], [value("rows", None)])
        other = helper.make_graph([node("Identity", ["f"], ["all"])], "else", [], [value("all", None)])
        nodes = [node("If", ["yes"], ["rows_"], then_branch=branch, else_branch=other)]
    weights: dict[str, Array] = {
        "w": normal(8, 12) + np.float32(damage) * normal(8, 12, seed=5),
        "v": normal(12, 10),
        "limit": np.array(4.0, np.float32),
        "axis": np.array([0]),
        "yes": np.array(True),
    }
    rows = "rows_" if inside else "rows"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["f"], name="body"),
        *nodes,
        helper.make_node("MatMul", [rows, "v"], ["y"], name="head"),
    ]
    return make(nodes, [value("x", ["N", 8])], [value("y", None), value("f", ["N", 12])], weights)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("topk", {"counted", "index", "k"}),
        ("nonzero", {"z"}),
        ("compress", {"g"}),
        ("chance", {"e"}),
    ],
)
def test_what_is_pinned(kind: str, names: set[str]) -> None:
    assert set(pinned(loaded(network(kind)))) == names


def test_a_network_without_choices_has_no_pins() -> None:
    model = loaded(make([node("Relu", ["x"], ["y"])], [value("x", ["N", 8])], [value("y", ["N", 8])]))
    assert pins_of(model, calibration(FEEDS).feeds, batch=4) == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside", [False, True])
def test_a_head_is_fitted_to_rows_that_are_counterparts(kind: str, inside: bool) -> None:
    """On rows of one and the same choice the head's own weight is nearly the best."""
    original, damaged = (loaded(network(kind, by, inside=inside)) for by in (0.0, 0.05))
    settings = calibration(FEEDS)
    pins = pins_of(original, settings.feeds, batch=settings.batch, threads=1)
    now, then = (window(model, settings, pins) for model in (damaged, original))
    match = match_of(damaged, "head")
    moments = merged(*observe(match, now, then, settings))
    assert moments.count > 0
    own = as_rows(match.layer.weight, match.layer)
    assert problem(moments, own, centred=False).relative(own) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_every_search_comes_to_an_end_and_names_the_output(kind: str) -> None:
    found = onnxdecomp.compress(
        ir.from_proto(network(kind)),
        target="macs=1.2x",
        calib={"x": np.concatenate([feed["x"] for feed in FEEDS])},
        bench=False,
        simplify="none",
    )
    assert found.changed
    assert any("'y'" in note for note in found.notes)
    assert not any("'f'" in note for note in found.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_quantization_is_judged_on_the_originals_choice(kind: str) -> None:
    """A harmless change gives other rows, and other noise, which say nothing of it."""
    original, other = (ir.from_proto(network(kind, by)) for by in (0.0, 0.02))
    assert 0 < distance(original, other, calibration(FEEDS).feeds) < 0.1
