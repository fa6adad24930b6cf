"""Channels in a search: their widths weighed, what layers cost at them, and the choice with chains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import onnxdecomp
from onnxdecomp.apply.apply_plan import carry_out
from onnxdecomp.calibration.statistics import Calibration, observe_unchanged
from onnxdecomp.channels import Channel, find_channels
from onnxdecomp.channels.new_numbers import NewNumbers
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import narrowed
from onnxdecomp.data.read import read_feeds
from onnxdecomp.decompositions.base import outline
from onnxdecomp.fitting.elimination import ReaderMoments
from onnxdecomp.fitting.quadratic_loss import as_rows
from onnxdecomp.fitting.select_units import select_units
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.runtime.providers import quantum
from onnxdecomp.runtime.session import TensorSpec, open_session
from onnxdecomp.search.channel_costs import recounted
from onnxdecomp.search.channel_effect import cut_copy
from onnxdecomp.search.channel_profiles import widths
from onnxdecomp.search.joint_options import joint_options
from onnxdecomp.search.keep_layers import CHANNEL, without
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.layer_profiles import LayerProfiles, profile_layers
from onnxdecomp.search.metrics.base import Sizes
from onnxdecomp.search.metrics.costs import Macs, Parameters
from onnxdecomp.search.plan import Plan, cost_of
from onnxdecomp.search.scope import Scope
from onnxdecomp.search.search_record import search_record
from onnxdecomp.search.select import Chosen, choose
from onnxdecomp.search.stored_parameters import tallied
from onnxdecomp.search.targets import parse_budgets
from onnxdecomp.search.tighten import tighter
from tests.builders.graphs import model
from tests.builders.models import thin_middle
from tests.builders.vit import vit
from tests.channels.transformers import attention

SIZES = Sizes(0, 0)
TOKENS = np.random.default_rng(4).standard_normal((40, 2, 5, 12)).astype(np.float32)


def branches() -> onnx.ModelProto:
    """x [N, 6, 5, 5] -> three convolutions beside each other -> Concat -> mixed -> last -> y [N, 4, 5, 5]."""
    rng = np.random.default_rng(3)
    shapes = {
        "wa": (8, 6, 3, 3),
        "wb": (12, 6, 1, 1),
        "wc": (8, 6, 1, 1),
        "wm": (16, 28, 3, 3),
        "wl": (4, 16, 1, 1),
    }
    stored = {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }
    nodes = [
        node
        for name, pads in (("a", 1), ("b", 0), ("c", 0))
        for node in (
            helper.make_node("Conv", ["x", f"w{name}"], [f"{name}0"], name=name, pads=[pads] * 4),
            helper.make_node("Relu", [f"{name}0"], [f"{name}1"]),
        )
    ]
    nodes += [
        helper.make_node("Concat", ["a1", "b1", "c1"], ["d"], axis=1),
        helper.make_node("Conv", ["d", "wm"], ["m0"], name="mixed", pads=[1] * 4),
        helper.make_node("Relu", ["m0"], ["m1"]),
        helper.make_node("Conv", ["m1", "wl"], ["y"], name="last"),
    ]
    return model(nodes, {"x": ["N", 6, 5, 5]}, {"y": ["N", 4, 5, 5]}, stored)


def opened(proto: onnx.ModelProto) -> tuple[ir.Model, list[LayerMatch], tuple[Channel, ...]]:
    found = ir.from_proto(proto)
    infer_shapes(found)
    matched = find(found)[0]
    return found, matched, find_channels(found, matched)[0]


def calibration(channels: int = 6, size: int = 5) -> Calibration:
    x = np.random.default_rng(0).standard_normal((48, channels, size, size)).astype(np.float32)
    spec = TensorSpec("x", ("N", channels, size, size), "float32")
    return Calibration(read_feeds({"x": x}, [spec]), batch=12, threads=1)


@pytest.fixture(scope="module")
def weighed() -> LayerProfiles:
    found, matched, channels = opened(branches())
    scope = Scope(methods=("svd", "tucker"), skip_below=0.0)
    return profile_layers(found, matched, scope, calibration(), channels=channels)


def total(plan: Plan) -> tuple[int, int]:
    """Parameters and MACs of all layers."""
    held = [(c.after if c.method or c.narrowed else c.before) for c in plan.choices]
    return sum(cost.params for cost in held if cost), sum(cost.macs for cost in held if cost)


def chosen(profiles: LayerProfiles, target: str) -> Chosen:
    found = choose(profiles, (), parse_budgets(target))
    assert isinstance(found, Chosen)
    return found


def test_widths_are_fractions_in_multiples_and_equal_in_blocks() -> None:
    channel = opened(branches())[2][1]
    assert (channel.width, channel.blocks) == (12, 1)
    assert widths(channel, 1) == [12, 10, 9, 8, 6, 4, 3, 2]
    assert widths(channel, 8) == [12, 8]
    assert widths(replace(channel, width=48, blocks=6), 4) == [48, 24]
    assert widths(replace(channel, width=48, blocks=6), 16) == [48]


@pytest.mark.parametrize(
    ("width", "blocks", "spatial", "expected"),
    [
        (144, 1, True, [144, 128, 112, 96, 80, 48, 32, 16]),
        (64, 1, True, [64, 48, 32, 16]),
        (48, 1, True, [48, 42, 36, 30, 24, 18, 12, 6]),  # a choice of three would be too small
        (256, 4, True, [256, 192, 128, 64]),  # of groups each fills blocks
        (384, 6, False, [384, 336, 288, 240, 192, 144, 96, 48]),  # of heads all together
        (32, 2, False, [32, 28, 24, 20, 16, 12, 8, 4]),
    ],
)
def test_widths_fill_what_kernels_work_in(
    width: int, blocks: int, *, spatial: bool, expected: list[int]
) -> None:
    whole = opened(branches() if spatial else attention("plain", False))[2][0]
    assert all((own.match.layer.conv is not None) == spatial for own in whole.producers)
    channel = replace(whole, width=width, blocks=blocks)
    found = widths(channel, 1, quantum=16)
    assert found == expected
    assert all(kept % blocks == 0 for kept in found)
    assert widths(channel, 1) == widths(channel, 1, quantum=1)
    assert widths(channel, 32, quantum=16) == widths(channel, 32)  # what was asked for comes first


def test_narrower_loses_more(weighed: LayerProfiles) -> None:
    assert [entry.channel.name for entry in weighed.channels] == ["a", "b", "c", "mixed"]
    for entry in weighed.channels:
        assert entry.reason == ""
        assert [level.kept for level in entry.levels] == widths(entry.channel, 1)
        assert entry.losses()[0] == 0
        for losses in ([level.loss for level in entry.levels], entry.losses()):
            assert losses == sorted(losses)
            assert losses[-1] > 0
        assert len(entry.effect.points) == 3


def test_a_copy_that_is_cut_loses_what_its_selection_says() -> None:
    found, _, channels = opened(branches())
    (channel,) = (c for c in channels if c.name == "mixed")
    (reader,) = channel.readers
    data = calibration()
    ((train, held),) = observe_unchanged(found, [reader.match], data)
    layer = reader.match.layer
    seen = ReaderMoments(train, held, as_rows(layer.weight, layer), reader.units)
    picked = select_units([seen], channel.width, 6)
    cut = cut_copy(found, channel, NewNumbers(picked.units, picked.readers))
    before, after = (open_session(ir.to_proto(m).SerializeToString()) for m in (found, cut))
    x = np.concatenate([feed["x"] for feed in data.feeds.batches(12)])
    y, z = (session.run(None, {"x": x})[0].astype(np.float64) for session in (before, after))
    energy = np.square(y - y.mean((0, 2, 3), keepdims=True)).sum()
    assert np.square(y - z).sum() / energy == pytest.approx(picked.loss, rel=1e-3)
    assert [channel.name for channel in find_channels(found, find(found)[0])[0]] == ["a", "b", "c", "mixed"]


def test_what_is_held_at_a_width_is_what_the_layer_would_be(weighed: LayerProfiles) -> None:
    options = joint_options(weighed)
    measures = [partial(m.of_layer, profiles=weighed, sizes=SIZES) for m in (Parameters(), Macs())]
    by_name = {entry.channel.name: entry for entry in weighed.channels}
    (place,) = (at for at, entry in enumerate(weighed.layers) if entry.match.layer.name == "last")
    layer = weighed.layers[place]
    for level, (pick,) in itertools.product((0, 3, 7), options.decisions[place]):
        small = narrowed(layer.match.layer, 4, by_name["mixed"].levels[level].kept)
        chain = dense_chain(small)
        if pick.candidate is not None:
            option = layer.candidates[pick.candidate].outline
            ranks = tuple(map(min, option.ranks, option.method.full_ranks(small)))
            chain = outline(option.method, small, ranks)
        cost = cost_of(chain, small)
        exact = options.exactly(pick, {by_name["mixed"]: level})
        assert [measure(exact) for measure in measures] == [cost.params, cost.macs]
    # A table for it says so where it was counted.
    (table,) = (t for t in options.tables(measures) if t.variables[0] == place and len(t.variables) == 2)
    assert table.cost.shape == (len(options.decisions[place]), 8, 2)
    assert table.cost[0, -1].tolist() == [4 * 2, 4 * 2 * 25]


def test_chains_cost_what_they_do_also_where_some_widths_refuse_them() -> None:
    """Of heads and what is in them one is cut: where both were, there would be no layer for a chain."""
    found, matched, channels = opened(attention("plain", False))
    scope = Scope(methods=("svd",), cuts=("width", "attention"), skip_below=0.0)
    data = replace(calibration(), feeds=read_feeds({"x": TOKENS}, [TensorSpec("x", (2, 5, 12), "float32")]))
    profiles = profile_layers(found, matched, scope, data, channels=channels)
    options = joint_options(profiles)
    macs = partial(Macs().of_layer, profiles=profiles, sizes=SIZES)
    both = 0
    for table in options.tables([macs]):
        number = table.variables[0]
        if number >= len(options.decisions):
            continue
        own = [options.channels[variable - len(options.decisions)] for variable in table.variables[1:]]
        for index, (pick,) in enumerate(options.decisions[number]):
            for at in itertools.product(*(range(len(entry.levels)) for entry in own)):
                overlap = sum(level > 0 for level in at) > 1
                both += overlap
                if not overlap and np.isfinite(table.loss[(index, *at)]):
                    exact = options.exactly(pick, dict(zip(own, at, strict=True)))
                    assert table.cost[(index, *at, 0)] == pytest.approx(float(macs(exact)), rel=0.1)
                assert np.isfinite(table.loss[(index, *(0 for _ in at))])
    assert both


def test_costs_of_a_layer_at_many_channels_add_up(weighed: LayerProfiles) -> None:
    options = joint_options(weighed)
    (place,) = (at for at, entry in enumerate(weighed.layers) if entry.match.layer.name == "mixed")
    assert len(options.narrowed(place).channels) == 4
    macs = partial(Macs().of_layer, profiles=weighed, sizes=SIZES)
    tables = [table for table in options.tables([macs]) if table.variables[0] == place]
    assert [len(table.variables) for table in tables] == [2, 3, 3, 3]
    first = len(options.decisions)
    rng = np.random.default_rng(0)
    picks = [pick for (pick,) in options.decisions[place]]
    for levels in [(0, 0, 0, 0), *rng.integers(0, 7, (6, 4)).tolist()]:
        # The layer itself: its cost is a product of the widths.
        costs = [t.cost[(0, *(levels[v - first] for v in t.variables[1:]), 0)] for t in tables]
        exact = options.exactly(picks[0], dict(zip(options.channels, levels, strict=True)))
        assert sum(costs) == pytest.approx(float(macs(exact)))


@pytest.mark.parametrize("target", ["macs=1.3x", "params=2x", "macs=2x,params=3x", "macs=4x"])
def test_budgets_are_kept_by_chains_and_widths_together(weighed: LayerProfiles, target: str) -> None:
    found, alone = chosen(weighed, target), choose(replace(weighed, channels=()), (), parse_budgets(target))
    before = [sum(entry.dense.params for entry in weighed.layers), sum(e.dense.macs for e in weighed.layers)]
    held = dict(zip(("params", "macs"), zip(before, total(found.plan), strict=True), strict=True))
    assert all(held[b.quantity][1] <= b.allowed(held[b.quantity][0]) for b in parse_budgets(target))
    assert found.bound <= found.loss * (1 + 1e-9)
    assert isinstance(alone, OutOfReach) or found.loss <= alone.loss * (1 + 1e-9)
    assert len(found.plan.channels) == 4
    assert Plan.from_json(found.plan.to_json()) == found.plan


def test_a_plan_says_what_becomes_of_channels_and_layers(weighed: LayerProfiles) -> None:
    plan = chosen(weighed, "params=3x").plan
    assert plan.cuts
    narrow = {name for cut in plan.cuts for name in (*cut.producers, *cut.readers)}
    assert {choice.layer for choice in plan.choices if choice.narrowed} == narrow
    for cut in plan.cuts:
        assert cut.method == "width"
        assert cut.before is not None
        assert cut.after is not None
        assert cut.after.params < cut.before.params
    assert {cut.reason for cut in chosen(weighed, "macs=1x").plan.channels} == {
        "the target is met with every layer as it is"
    }


def test_a_loss_is_a_limit_of_channels_and_layers_together(weighed: LayerProfiles) -> None:
    found = choose(weighed, (), (), max_loss=0.05)
    assert isinstance(found, Chosen)
    assert 0.025 < found.loss <= 0.05
    alone = choose(replace(weighed, channels=()), (), (), max_loss=0.05)
    assert isinstance(alone, Chosen)
    assert total(found.plan)[1] < total(alone.plan)[1]


@pytest.mark.parametrize(("left", "why"), [(("last",), "last is excluded by name"), ((), "")])
def test_layers_that_stay_bar_their_channels(left: Sequence[str], why: str) -> None:
    found, matched, channels = opened(branches())
    scope = Scope(methods=("svd",), skip_below=0.0, exclude=tuple(left), multiple=8)
    made = profile_layers(found, matched, scope, replace(calibration(), synthetic=True), channels=channels)
    reasons = {entry.channel.name: entry.reason for entry in made.channels}
    assert reasons == {"a": "fewer units are no multiple of 8", "b": "", "c": reasons["a"], "mixed": why}
    by_weights = next(entry for entry in made.channels if entry.channel.name == "b")
    assert by_weights.levels[1].loss > 0


def test_of_channels_with_units_in_common_one_is_cut(weighed: LayerProfiles) -> None:
    (entry,) = (own for own in weighed.channels if own.channel.name == "mixed")
    twice = replace(weighed, channels=(entry, replace(entry, channel=replace(entry.channel, name="again"))))
    found = choose(twice, (), (), max_loss=1.0)
    assert isinstance(found, Chosen)
    assert len(found.plan.cuts) == 1


def test_what_a_plan_counts_is_what_the_model_holds() -> None:
    found, matched, channels = opened(thin_middle())
    scope, data = Scope(methods=("tucker",), skip_below=0.0), calibration(8, 6)
    profiles = profile_layers(found, matched, scope, data, channels=channels[:1])
    plan = tallied(chosen(profiles, "params=5x").plan, matched)
    assert plan.cuts
    assert any(choice.narrowed for choice in plan.decomposed)
    done = carry_out(found, list(matched), plan, calibration=data)
    assert {cut.channel: len(cut.units) for cut in done.cuts} == {c.channel: c.kept for c in plan.cuts}
    held = [value.shape.numpy() for value in found.graph.initializers.values() if value.shape is not None]
    weights = [shape for shape in held if len(shape) > 1]  # the original has no biases
    assert sum(math.prod(shape) for shape in weights) == total(plan)[0]


def test_a_tighter_plan_gives_channels_more_width(weighed: LayerProfiles) -> None:
    made = chosen(weighed, "params=2x")
    record = search_record(weighed, made, ())
    assert record.channels is not None
    levels = {channel.channel: channel.levels for channel in record.channels}
    for entry in weighed.channels:
        own = levels[entry.channel.name]
        assert [(level.kept, level.output_loss) for level in own] == [
            (level.kept, loss) for level, loss in zip(entry.levels, entry.losses(), strict=True)
        ]
        assert [level.params for level in own] == sorted((level.params for level in own), reverse=True)
    for cut in made.plan.cuts:
        assert cut.after is not None
        (level,) = (level for level in levels[cut.channel] if level.kept == cut.kept)
        assert (level.params, level.macs) == (cut.after.params, cut.after.macs)
    half = tighter(made.plan, record, 0.5, "it lost too much")
    kept = {cut.channel: cut.kept for cut in half.channels}
    assert all(kept[cut.channel] >= cut.kept for cut in made.plan.channels)
    assert sum(kept.values()) > sum(cut.kept for cut in made.plan.channels)
    none = tighter(made.plan, record, 1e-9, "it lost too much")
    assert not none.changes
    assert {cut.reason for cut in none.channels if cut.channel in {c.channel for c in made.plan.cuts}} == {
        "it lost too much"
    }


def test_the_frontier_is_that_of_plans_with_cuts(weighed: LayerProfiles) -> None:
    """Each of its plans costs less than the one before, for more loss; the first is the original."""
    points = search_record(weighed, chosen(weighed, "params=2x"), ()).frontier
    first, *others = points
    assert (first.loss, first.macs, first.layers) == (0.0, 1.0, 0)
    assert len(others) > 2
    for before, after in itertools.pairwise(points):
        assert after.loss > before.loss
        assert after.macs < before.macs
    without_channels = search_record(replace(weighed, channels=()), chosen(weighed, "params=2x"), ()).frontier
    assert all(
        point.macs <= own.macs + 1e-9
        for point in others
        for own in without_channels
        if own.loss <= 0.9 * point.loss
    )


def test_a_plan_is_counted_anew_behind_other_cuts(weighed: LayerProfiles) -> None:
    matched, channels = opened(branches())[1:]
    plan = chosen(weighed, "macs=3x").plan
    assert recounted(plan, matched, channels).choices == plan.choices
    whole = without(plan, {(CHANNEL, cut.channel) for cut in plan.cuts}, "no")
    again = recounted(whole, matched, channels)
    assert not any(choice.narrowed for choice in again.choices)
    assert all((choice.after is None) == (choice.method is None) for choice in again.choices)
    assert total(again)[1] > total(plan)[1]


def test_shapes_in_constants_that_a_cut_leaves_out() -> None:
    """Each Reshape of a traced graph has a Constant of its own, which the cut copy does not have any more."""
    found = onnxdecomp.inspect(vit(1), method="width,attention", target="macs=1.2x")
    assert len(found.channels) > 2
    assert not [channel.reason for channel in found.channels if "error" in channel.reason]


@pytest.mark.parametrize("asked", ["", "1", "24"])
def test_a_search_for_macs_weighs_whole_blocks(tmp_path: Path, asked: str) -> None:
    """Of 96 units between two convolutions, unless told of other multiples."""
    rng = np.random.default_rng(3)
    weights = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
        for name, shape in {"up.w": (96, 4, 1, 1), "down.w": (4, 96, 1, 1)}.items()
    }
    nodes = [
        helper.make_node("Conv", ["x", "up.w"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "down.w"], ["y"], name="down"),
    ]
    made = model(nodes, {"x": ["N", 4, 5, 5]}, {"y": ["N", 4, 5, 5]}, weights)
    onnx.save(made, tmp_path / "net.onnx")
    found = onnxdecomp.inspect(
        tmp_path / "net.onnx", target="macs=1.5x", method="width", rank_multiple=asked or None
    )
    (channel,) = found.record["search"]["channels"]
    kept = [level["kept"] for level in channel["levels"]]
    block = int(asked or quantum("cpu"))
    assert kept[0] == 96
    assert len(kept) > 3
    assert all(own % block == 0 for own in kept)
    assert asked != "1" or any(own % quantum("cpu") for own in kept)


@pytest.mark.parametrize(("multiple", "step"), [(8, 1), (16, 2), (24, 3)])
def test_whole_heads_are_counted_by_their_features(multiple: int, step: int) -> None:
    """A head of 8 features is a whole block of 8, and two are one of 16."""
    graph = ir.from_proto(vit(1, 96, 12))
    infer_shapes(graph)
    channels = find_channels(graph, find(graph)[0])[0]
    (whole,) = (channel for channel in channels if channel.name.endswith(":blocks"))
    assert (whole.width, whole.features) == (12, 8)
    found = widths(whole, multiple)
    assert len(found) > 3
    assert all(number % step == 0 for number in found)
    if step == 1:
        assert found == widths(whole, 1)
    assert all(channel.features == 1 for channel in channels if channel is not whole)
