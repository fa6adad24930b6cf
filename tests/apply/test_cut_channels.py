"""Cutting channels: what stays, what readers make up for, and what the layers behind are fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnxdecomp_passes.decompose import Decompose

from onnxdecomp.apply import cut_channels
from onnxdecomp.apply.apply_plan import CarriedOut, carry_out
from onnxdecomp.core.layer import Array
from onnxdecomp.errors import DefectError
from onnxdecomp.layers.find import find
from onnxdecomp.layers.lowering_check import Check
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.search.keep_layers import CHANNEL, key_of
from onnxdecomp.search.plan import Choice, Cut, Plan
from tests.builders.feeds import calibration, normal
from tests.builders.graphs import conv, loaded, value
from tests.builders.graphs import model as make
from tests.builders.running import values

HEADS, SIZE = 2, 4


def opened(proto: onnx.ModelProto) -> ir.Model:
    model = loaded(proto)
    infer_shapes(model)
    return model


def planned(proto: onnx.ModelProto, method: str, rank: str = "0.5") -> Plan:
    found, _ = Decompose(method=method, rank=rank, must_save="none", skip_below=0).plan(opened(proto))
    return found.plan


def carried_out(
    proto: onnx.ModelProto, plan: Plan, feeds: Sequence[dict[str, Array]] | None
) -> tuple[ir.Model, CarriedOut]:
    model = opened(proto)
    data = None if feeds is None else calibration(feeds, held_out=0.25)
    probe = None if feeds is None else feeds[0]
    return model, carry_out(model, find(model, freeze=True)[0], plan, calibration=data, probe=probe)


def error(proto: onnx.ModelProto, model: ir.Model, feeds: Sequence[dict[str, Array]]) -> float:
    meant, seen = (values(m, ["y"], feeds)[0] for m in (loaded(proto), model))
    return float(np.linalg.norm(seen - meant) / np.linalg.norm(meant))


def feed_forward() -> onnx.ModelProto:
    """Of 12 units the last six are copies of the first."""
    up, bias = normal(8, 12), normal(12, seed=1)
    up[:, 6:], bias[6:] = up[:, :6], bias[:6]
    nodes = [
        helper.make_node("MatMul", ["x", "up.w"], ["a"], "up"),
        helper.make_node("Add", ["a", "up.b"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "down.w"], ["d"], "down"),
        helper.make_node("Add", ["d", "down.b"], ["y"]),
    ]
    weights = {"up.w": up, "up.b": bias, "down.w": normal(12, 7, seed=2), "down.b": normal(7, seed=3)}
    return make(nodes, [value("x", ["N", 8])], [value("y", None)], weights)


ROWS = [{"x": normal(1, 8, seed=index)} for index in range(60)]


@pytest.mark.parametrize("feeds", [ROWS, None])
def test_units_that_others_can_stand_in_for_cost_nothing(feeds: list[dict[str, Array]] | None) -> None:
    """On calibration inputs, and by the weights alone."""
    proto = feed_forward()
    model, done = carried_out(proto, planned(proto, "width"), feeds)
    (cut,) = done.cuts
    assert len(set(cut.units.tolist())) == 6
    assert {unit % 6 for unit in cut.units.tolist()} == set(range(6))
    assert error(proto, model, ROWS) < (1e-4 if feeds else 5e-3)  # shrunk towards the weight
    assert (cut.loss is None) == (feeds is None)
    assert feeds is None or (cut.check is not None and cut.check < 1e-5)


def test_initializers_that_are_inputs_as_well_are_cut_where_they_are_frozen() -> None:
    proto = feed_forward()
    proto.graph.input.extend(value(one.name, list(one.dims)) for one in proto.graph.initializer)
    frozen = Decompose(
        method="width", rank="0.5", must_save="none", skip_below=0, freeze_initializers=True
    ).plan(opened(proto))[0]
    model, done = carried_out(proto, frozen.plan, None)
    assert [cut.channel for cut in done.cuts] == ["up"]
    assert {name: value.shape for name, value in model.graph.initializers.items()}["up.w"] == (8, 6)


@pytest.mark.parametrize(("multiple", "kept"), [("", 48), ("1", 45), ("32", 32)])
def test_a_fraction_fills_what_kernels_work_in(multiple: str, kept: int) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], "second"),
    ]
    weights = {"a": normal(8, 64), "b": normal(64, 8)}
    proto = make(nodes, [value("x", ["N", 8])], [value("y", None)], weights)
    asked = Decompose(method="width", rank="0.7", must_save="none", skip_below=0, rank_multiple=multiple)
    (cut,) = asked.plan(opened(proto))[0].plan.cuts
    assert cut.kept == kept


def test_readers_make_up_for_units_that_go() -> None:
    proto = feed_forward()
    plan = planned(proto, "width", rank="4")
    fitted, done = carried_out(proto, replace(plan, repair=False), ROWS)
    plain, _ = carried_out(proto, plan, None)
    assert error(proto, fitted, ROWS) < 0.9 * error(proto, plain, ROWS)
    (cut,) = done.cuts
    assert cut.loss is not None
    assert cut.held_out is not None
    assert 0 < cut.loss < cut.held_out < 1


def attention() -> onnx.ModelProto:
    """Heads whose values, and whose queries, have half the rank."""
    width = HEADS * SIZE
    weights: dict[str, Array] = {name: normal(6, width, seed=place) for place, name in enumerate("qkv")}
    weights |= {"o": normal(width, 6, seed=7), "scale": np.asarray(0.5, np.float32)}
    weights |= {f"{name}.b": normal(width, seed=20 + place) for place, name in enumerate("qkv")}
    for head in range(HEADS):
        own = slice(head * SIZE, (head + 1) * SIZE)
        basis = np.linalg.qr(normal(SIZE, SIZE // 2, seed=9 + head))[0]
        for name in "qv":
            for part in (name, f"{name}.b"):
                weights[part][..., own] = weights[part][..., own] @ basis @ basis.T
    weights |= {"split": np.array([0, 0, HEADS, SIZE]), "joined": np.array([0, 0, width])}
    nodes = []
    for name in "qkv":
        nodes += [
            helper.make_node("MatMul", ["x", name], [f"{name}0"], name),
            helper.make_node("Add", [f"{name}0", f"{name}.b"], [f"{name}1"]),
            helper.make_node("Reshape", [f"{name}1", "split"], [f"{name}2"]),
            helper.make_node(
                "Transpose", [f"{name}2"], [f"{name}3"], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
            ),
        ]
    nodes += [
        helper.make_node("MatMul", ["q3", "k3"], ["s"], "scores"),
        helper.make_node("Mul", ["s", "scale"], ["t"]),
        helper.make_node("Softmax", ["t"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v3"], ["a"], "context"),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["b", "joined"], ["c"]),
        helper.make_node("MatMul", ["c", "o"], ["y"], "o"),
    ]
    return make(nodes, [value("x", ["N", "T", 6])], [value("y", None)], weights)


SEQUENCES = [{"x": normal(1, 5, 6, seed=index)} for index in range(40)]


@pytest.mark.parametrize("feeds", [SEQUENCES, None])
def test_heads_of_low_rank_are_found(feeds: list[dict[str, Array]] | None) -> None:
    proto = attention()
    plan = planned(proto, "attention")
    assert {(cut.channel, cut.kept) for cut in plan.cuts} == {("q", 4), ("v", 4)}
    model, done = carried_out(proto, plan, feeds)
    assert [cut.units.tolist() for cut in done.cuts] == [[0, 1, 4, 5]] * 2
    assert error(proto, model, SEQUENCES) < 5e-4
    sizes = {match.layer.name: match.layer.weight.shape for match in find(model)[0]}
    assert sizes == {"q": (4, 6), "k": (4, 6), "v": (4, 6), "o": (6, 4)}


def test_layers_behind_a_map_are_fitted_to_the_original_under_that_map() -> None:
    """Queries that are repaired after their heads have become smaller stay what the keys expect."""
    proto = attention()
    plan = planned(proto, "attention", rank="4")
    alone, _ = carried_out(proto, replace(plan, repair=False), SEQUENCES)
    repaired, _ = carried_out(proto, plan, SEQUENCES)
    assert error(proto, repaired, SEQUENCES) < 1.02 * error(proto, alone, SEQUENCES)


def residual_stream() -> onnx.ModelProto:
    """A stream of 8 channels that two layers add to, then a depthwise convolution and a normalisation."""
    shapes = {
        "first": (8, 3, 3, 3),
        "inner": (10, 8, 3, 3),
        "second": (8, 10, 3, 3),
        "deep": (8, 1, 3, 3),
        "last": (5, 8, 3, 3),
    }
    weights = {f"{name}.w": normal(*shape) / np.float32(3) for name, shape in shapes.items()}
    weights |= {f"{name}.b": normal(shape[0]) for name, shape in shapes.items()}
    statistics = {"scale": 1.0, "shift": 0.1, "mean": 0.2, "variance": 1.5}
    weights |= {name: np.full(8, number, np.float32) for name, number in statistics.items()}
    padded = {"pads": [1, 1, 1, 1]}
    nodes = [
        conv("first", "x", "a", **padded),
        helper.make_node("Relu", ["a"], ["b"]),
        conv("inner", "b", "c", **padded),
        helper.make_node("Relu", ["c"], ["d"]),
        conv("second", "d", "e", **padded),
        helper.make_node("Add", ["b", "e"], ["f"]),
        conv("deep", "f", "g", group=8, **padded),
        helper.make_node("BatchNormalization", ["g", *statistics], ["h"]),
        helper.make_node("Relu", ["h"], ["i"]),
        conv("last", "i", "y", **padded),
    ]
    return make(nodes, [value("x", ["N", 3, 8, 8])], [value("y", ["N", 5, 8, 8])], weights)


IMAGES = [{"x": normal(1, 3, 8, 8, seed=index)} for index in range(24)]


def test_a_stream_that_several_layers_make_is_cut_alike_and_mended_behind() -> None:
    proto = residual_stream()
    plan = planned(proto, "width", rank="0.75")
    assert {(cut.channel, cut.kept) for cut in plan.cuts} == {("first", 6), ("inner", 8)}
    alone, _ = carried_out(proto, replace(plan, repair=False), IMAGES)
    mended, done = carried_out(proto, plan, IMAGES)
    assert [cut.channel for cut in done.cuts] == ["first", "inner"]
    assert error(proto, mended, IMAGES) < 1.02 * error(proto, alone, IMAGES)
    sizes = {match.layer.name: match.layer.weight.shape[:2] for match in find(mended)[0]}
    assert sizes == {"first": (6, 3), "inner": (8, 6), "second": (6, 8), "deep": (6, 1), "last": (5, 6)}


def test_chains_are_of_what_cuts_have_left() -> None:
    proto = residual_stream()
    plan = planned(proto, "width,svd", rank="0.75")
    assert {choice.layer for choice in plan.decomposed} == {"inner", "second", "first", "last"}
    model, done = carried_out(proto, plan, IMAGES)
    assert {one.match.layer.name for one in done.rewritten} >= {"inner", "second", "last"}
    for one in done.rewritten:
        assert one.chain.dense().shape[0] == one.match.layer.outputs
    assert error(proto, model, IMAGES) < 1


def test_a_cut_that_fails_leaves_its_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = residual_stream()
    plan = planned(proto, "width", rank="0.75")
    original = cut_channels.select

    def broken(model: ir.Model, cut: Cut, *rest: object) -> object:
        if cut.channel == "inner":
            raise ZeroDivisionError("inner")
        return original(model, cut, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("onnxdecomp.apply.apply_plan.select", broken)
    failed: list[tuple[str, str]] = []

    def told(choice: Choice | Cut, error: Exception) -> None:
        failed.append(key_of(choice))

    model = opened(proto)
    done = carry_out(model, find(model)[0], plan, calibration=calibration(IMAGES), on_failure=told)
    assert failed == [(CHANNEL, "inner")]
    assert [cut.channel for cut in done.cuts] == ["first"]
    assert error(proto, model, IMAGES) < 1


def test_a_cut_that_differs_is_told_by_its_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = feed_forward()
    monkeypatch.setattr(cut_channels, "check_cut", lambda *given: Check(rel_error=0.5, tolerance=1e-4))
    with pytest.raises(DefectError, match=r"differs by 0\.5") as caught:
        carried_out(proto, planned(proto, "width"), ROWS)
    assert caught.value.layer == (CHANNEL, "up")


def test_the_same_plan_gives_the_same_numbers() -> None:
    proto = residual_stream()
    plan = planned(proto, "width", rank="0.75")
    first, second = (ir.to_proto(carried_out(proto, plan, IMAGES)[0]).SerializeToString() for _ in range(2))
    assert first == second
