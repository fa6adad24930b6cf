"""Layers that calibration inputs do not come to: found in all graphs, kept, and never made up for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxdecomp.calibration.reachability import unreached, valueless
from onnxdecomp.core.layer import Array
from onnxdecomp.core.patterns import names_of
from onnxdecomp.errors import UsageError
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.quantization.int8 import int8
from onnxdecomp.quantization.scheme import scheme_for
from onnxdecomp.workflow import compress
from onnxdecomp.workflow.result import Result
from tests.builders.feeds import calibration, normal
from tests.builders.graphs import loaded, value
from tests.builders.graphs import model as make

node = helper.make_node
WEIGHTS = {name: normal(24, 24, seed=seed) for seed, name in enumerate(("w", "v", "u"))}
I64 = TensorProto.INT64


def body(name: str, *nodes: onnx.NodeProto, out: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [value(out, None)])


def branches(nested: bool = False) -> onnx.ModelProto:
    """x goes through `first`, then through `taken` where its sum is above 0, else through `other`.

    `nested` puts `other` into an If of its own, in whose other branch `deep` stands.
    """
    other = [node("MatMul", ["h", "v"], ["b"], name="other")]
    if nested:
        both = ("other", "deep")
        inner = [body(n, node("MatMul", ["h", "v"], [f"{n}o"], name=n), out=f"{n}o") for n in both]
        other = [node("If", ["c"], ["b"], name="inner", then_branch=inner[0], else_branch=inner[1])]
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="first"),
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node(
            "If",
            ["c"],
            ["y"],
            name="if",
            then_branch=body("t", node("MatMul", ["h", "u"], ["a"], name="taken"), out="a"),
            else_branch=body("e", *other, out="b"),
        ),
    ]
    weights = {**WEIGHTS, "zero": np.array(0, np.float32)}
    return make(nodes, [value("x", ["N", 24])], [value("y", ["N", 24])], weights)


def looped() -> onnx.ModelProto:
    """`first` once, `inside` as often as trips says."""
    inputs = [value("i", [], I64), value("go", [], TensorProto.BOOL), value("was", ["N", 24])]
    nodes = [node("MatMul", ["was", "v"], ["is"], name="inside"), node("Identity", ["go"], ["on"])]
    outputs = [value("on", [], TensorProto.BOOL), value("is", ["N", 24])]
    loop = helper.make_graph(nodes, "loop", inputs, outputs)
    main = [
        node("MatMul", ["x", "w"], ["h"], name="first"),
        node("Loop", ["trips", "", "h"], ["y"], name="loop", body=loop),
    ]
    return make(main, [value("x", ["N", 24]), value("trips", [], I64)], [value("y", None)], WEIGHTS)


def cached() -> onnx.ModelProto:
    """`old` reads what is past, of any length, `new` the rest."""
    nodes = [
        node("MatMul", ["past", "w"], ["a"], name="old"),
        node("MatMul", ["x", "v"], ["b"], name="new"),
        node("Concat", ["a", "b"], ["y"], axis=0),
    ]
    return make(nodes, [value("past", ["P", 24]), value("x", ["N", 24])], [value("y", ["M", 24])], WEIGHTS)


def convolved() -> onnx.ModelProto:
    """Samples above 0 go through a convolution, with a Relu and a normalisation behind it."""
    nodes = [
        node("ReduceSum", ["x", "axes"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("Compress", ["x", "c"], ["some"], axis=0),
        node("Conv", ["some", "k"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        node("Relu", ["h"], ["r"]),
        node("BatchNormalization", ["r", "one", "none", "none", "one"], ["n"]),
        node("Conv", ["n", "k"], ["p"], name="second", pads=[1, 1, 1, 1]),
        node("ReduceSum", ["p"], ["q"], keepdims=1),
        node("MatMul", ["f", "w"], ["g"], name="head"),
        node("Add", ["g", "total"], ["y"]),
    ]
    nodes.insert(8, node("Reshape", ["q", "flat"], ["total"]))
    weights: dict[str, Array] = {
        "axes": np.array([1, 2, 3]),
        "flat": np.array([1]),
        "zero": np.array(0, np.float32),
        "one": np.ones(8, np.float32),
        "none": np.zeros(8, np.float32),
        "k": normal(8, 8, 3, 3),
        "w": WEIGHTS["w"],
    }
    inputs = [value("x", ["N", 8, 6, 6]), value("f", ["N", 24])]
    return make(nodes, inputs, [value("y", None)], weights)


def recurrent() -> onnx.ModelProto:
    """An LSTM over as many steps as the past has, beside a layer."""
    nodes = [
        node("LSTM", ["past", "W", "R"], ["", "h"], name="lstm", hidden_size=8),
        node("Squeeze", ["h", "zero"], ["a"]),
        node("MatMul", ["x", "p"], ["b"], name="new"),
        node("Add", ["a", "b"], ["y"]),
    ]
    weights = {"W": normal(1, 32, 24), "R": normal(1, 32, 8), "zero": np.array([0]), "p": normal(24, 8)}
    inputs = [value("past", ["P", 1, 24]), value("x", [1, 24])]
    return make(nodes, inputs, [value("y", [1, 8])], weights)


def called() -> onnx.ModelProto:
    """A function of the model's own holds an If with a layer in each branch."""
    inner = branches()
    body = [node("Constant", [], [w.name], value=w) for w in inner.graph.initializer]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "block", ["x"], ["y"], [*body, *inner.graph.node], opsets)
    main = [
        node("block", ["x"], ["z"], name="call", domain="own"),
        node("MatMul", ["z", "w"], ["out"], name="last"),
    ]
    return make(main, {"x": ["N", 24]}, {"out": ["N", 24]}, {"w": WEIGHTS["w"]}, functions=[function])


ABOVE = [{"x": np.abs(normal(3, 24, seed=seed))} for seed in range(8)]
BELOW = [{"x": -feed["x"]} for feed in ABOVE]
PAST = [{"x": normal(3, 24, seed=seed), "past": normal(0, 24)} for seed in range(8)]
TRIPS = [{"x": feed["x"], "trips": np.array(0)} for feed in ABOVE]
IMAGES = [{"x": -np.abs(normal(2, 8, 6, 6, seed=s)), "f": normal(2, 24, seed=s)} for s in range(8)]
STEPS = [{"x": normal(1, 24, seed=seed), "past": normal(0, 1, 24)} for seed in range(8)]

CASES: Mapping[str, tuple[onnx.ModelProto, Sequence[Mapping[str, Array]], set[str]]] = {
    "branch": (branches(), ABOVE, {"other"}),
    "both branches": (branches(), [*ABOVE, *BELOW], set()),
    "the last input": (branches(), [*ABOVE, BELOW[0]], set()),
    "nested": (branches(nested=True), BELOW, {"taken", "other"}),
    "a function": (called(), ABOVE, {"other"}),
    "no trips": (looped(), TRIPS, {"inside"}),
    "some trips": (looped(), [*TRIPS, {**TRIPS[0], "trips": np.array(2)}], set()),
    "empty cache": (cached(), PAST, {"old"}),
    "cache filled later": (cached(), [*PAST, {**PAST[0], "past": normal(2, 24)}], set()),
    "no samples for a convolution": (convolved(), IMAGES, {"conv", "second"}),
    "samples for it": (convolved(), [*IMAGES, {**IMAGES[0], "x": -IMAGES[0]["x"]}], set()),
    "no steps": (recurrent(), STEPS, {"lstm"}),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_that_no_input_reaches_are_found(name: str) -> None:
    proto, feeds, idle = CASES[name]
    model = loaded(proto)
    infer_shapes(model)
    matched, _ = find(model)
    found = unreached(model, matched, calibration(feeds, stackable=False).feeds)
    assert {match.layer.name for match, alone in zip(matched, found, strict=True) if alone} == idle
    assert len(matched) > len(idle)
    # Nothing is asked of the names of the model that came in.
    assert {n.name for n in model.graph} == {n.name for n in proto.graph.node}


def compressed(name: str, **options: Any) -> Result:
    proto, feeds, _ = CASES[name]
    calib = list(feeds)
    return compress.compress(proto, calib=calib, bench=False, simplify="none", skip_below=0, **options)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("branch", "macs=1.2x"),
        ("no trips", "macs=1.2x"),
        ("empty cache", "macs=1.2x"),
        ("no samples for a convolution", "macs=1.005x"),
        ("no steps", "params=1.05x"),
    ],
)
def test_a_search_keeps_what_no_input_reaches_and_names_it(name: str, target: str) -> None:
    result = compressed(name, target=target, method="svd")
    _, _, idle = CASES[name]
    kept = {layer.name: layer.reason for layer in result.layers if layer.status == "kept"}
    assert idle <= set(kept)
    assert {kept[layer] for layer in idle} == {"no calibration input reaches it"}
    (note,) = (note for note in result.notes if "no calibration input reaches them" in note)
    shown = {names_of(layer)[-1] for layer in result.layers if layer.name in idle}
    assert shown == set(note.partition("reaches them: ")[2].split(", "))
    assert result.plan.decomposed


@pytest.mark.parametrize("name", CASES)
def test_ranks_given_by_hand_are_fitted_to_the_weight_alone(name: str) -> None:
    result = compressed(name, rank="0.5", method="svd", must_save="none")
    _, _, idle = CASES[name]
    assert all(layer.status == "decomposed" for layer in result.layers)
    losses = {layer.name: layer.loss for layer in result.layers}
    assert all(losses[layer] is None for layer in idle)
    reasons = {layer.reason for layer in result.layers if layer.name in idle}
    assert all(reason.startswith("fitted to its weight alone: ") for reason in reasons)
    if name in ("empty cache", "no steps"):
        assert reasons == {"fitted to its weight alone: no calibration input reaches it"}
    named = [note for note in result.notes if "fitted to their weights alone" in note]
    assert len(named) == bool(idle)
    assert all(layer in note for note in named for layer in idle)


def test_values_without_numbers_are_not_quantized() -> None:
    def found(name: str) -> set[str]:
        proto, feeds, _ = CASES[name]
        return valueless(loaded(proto), calibration(feeds, stackable=False).feeds)

    assert found("empty cache") == {"a", "y"}  # what comes out of the Concat is full, what goes in is not
    assert found("cache filled later") == set()
    assert {"some", "h", "r", "n", "p"} <= found("no samples for a convolution")
    assert not {"g", "y"} & found("no samples for a convolution")


@pytest.mark.parametrize("name", ["empty cache", "no samples for a convolution"])
def test_int8_makes_up_no_ranges(name: str) -> None:
    proto, feeds, _ = CASES[name]
    own = onnx.ModelProto.FromString(
        proto.SerializeToString()
    )  # the quantizer's names go down to the tensors
    made = int8(loaded(own), calibration(feeds, stackable=False).feeds, scheme_for("cpu"))
    quantized = {str(n.inputs[0].name) for n in made.graph if n.op_type == "QuantizeLinear" and n.inputs[0]}
    assert quantized
    assert not quantized & {"past", "a", "some", "h", "r", "n", "p"}


def test_a_target_that_only_idle_layers_could_meet_names_them() -> None:
    with pytest.raises(UsageError, match=r"at most macs=.* no calibration input reaches them: conv, second"):
        compressed("no samples for a convolution", target="macs=2x", method="svd")


def test_a_layer_whose_work_is_not_used_is_judged_by_its_own_loss() -> None:
    """A dense expert whose gate is closed on all inputs runs, and shows nothing at the output."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="open"),
        node("MatMul", ["x", "v"], ["b"], name="closed"),
        node("Mul", ["b", "gate"], ["g"]),
        node("Add", ["a", "g"], ["y"]),
    ]
    inputs = [value("x", ["N", 24]), value("gate", ["N", 1])]
    model = make(nodes, inputs, [value("y", ["N", 24])], WEIGHTS)
    feeds = [{**feed, "gate": np.zeros((3, 1), np.float32)} for feed in ABOVE]
    options: dict[str, Any] = {"bench": False, "simplify": "none", "skip_below": 0, "method": "svd"}
    result = compress.compress(model, calib=feeds, target="macs=1.3x", **options)
    ranks = {choice.layer: choice.ranks for choice in result.plan.choices}
    assert result.plan.decomposed
    assert not ranks["closed"] or ranks["closed"][0] > 4
