"""Which layers can be observed, what goes beside them, and how many are observed at once."""

from __future__ import annotations

from dataclasses import replace

import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxdecomp.calibration import statistics
from onnxdecomp.calibration.residual import branch
from onnxdecomp.calibration.statistics import (
    bounded,
    centred,
    hasty,
    packs,
    parted,
    shortened,
    sized,
    surveyed,
    unobservable,
)
from onnxdecomp.layers.find import find
from tests.builders.feeds import calibration, images, normal
from tests.builders.graphs import conv, from_x, gemm, loaded, match_of, value
from tests.builders.graphs import model as make
from tests.builders.layers import linear_layer
from tests.builders.models import MATMUL, MATRICES, PICTURE, gru, residual


def test_where_there_is_no_branch() -> None:
    weights = {
        "layer.w": normal(4, 4, 1, 1),
        "layer.b": normal(4),
        "k": normal(1, 4, 6, 6),
        "m": normal(4, 1, 1),
    }
    layer = conv("layer", "x", "c")
    relu = helper.make_node("Relu", ["x"], ["r"])
    pooled = helper.make_node("GlobalAveragePool", ["x"], ["p"])

    def add(a: str, b: str, op: str = "Add") -> onnx.NodeProto:
        return helper.make_node(op, [a, b], ["y"])

    there = from_x([layer, relu, add("r", "c")], weights, PICTURE)
    found = branch(match_of(there))
    assert found is not None
    assert found.name == "r"
    for nodes, outputs in [
        ([layer, relu, add("c", "r", "Mul")], ["y"]),  # no sum
        ([layer, add("c", "k")], ["y"]),  # with a constant
        ([layer, pooled, add("c", "p")], ["y"]),  # broadcast
        ([layer, add("c", "c")], ["y"]),  # with itself
        ([layer, relu, add("c", "r")], ["y", "c"]),  # seen from outside
        ([layer, relu, add("c", "r"), helper.make_node("Relu", ["c"], ["z"])], ["y", "z"]),  # used elsewhere
        ([layer], ["c"]),
    ]:
        assert branch(match_of(from_x(nodes, weights, PICTURE, *outputs))) is None


def test_which_layers_can_take_a_bias() -> None:
    bare = from_x([MATMUL], {"w": MATRICES["w"]}, ["N", 5])
    assert not centred(match_of(bare))
    assert centred(match_of(from_x([gemm(["x", "w", "c"])], MATRICES, ["N", 5])))
    no_bias = helper.make_node("Conv", ["x", "w"], ["y"], name="layer")
    assert centred(match_of(from_x([no_bias], {"w": normal(4, 4, 1, 1)}, PICTURE)))
    assert not centred(match_of(gru()))


def subgraph() -> ir.Model:
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"], name="layer")], "then", [], [value("t", None)]
    )
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "else", [], [value("e", None)])
    node = helper.make_node("If", ["flag"], ["y"], name="if", then_branch=then, else_branch=other)
    inputs = [value("x", ["N", 5]), value("flag", [], TensorProto.BOOL)]
    return loaded(make([node], inputs, [value("y", None)], {"w": normal(5, 5)}))


def einsum() -> ir.Model:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], name="layer", equation="ab,bc->ac")
    return from_x([node], {"w": MATRICES["w"]}, ["N", 5])


def table() -> ir.Model:
    node = helper.make_node("Gather", ["w", "x"], ["y"], name="layer")
    ids = value("x", ["N"], TensorProto.INT64)
    return loaded(make([node], [ids], [value("y", None)], {"w": normal(256, 16)}))


def wide(count: int) -> ir.Model:
    return from_x([MATMUL], {"w": normal(count, 1)}, ["N", count])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (subgraph(), "it stands in a subgraph or a function"),
        (einsum(), "the input of Einsum is not made of rows"),
        (table(), "the input of Gather is not made of rows"),
        (
            from_x([MATMUL], {"w": normal(2, 5, 7)}, [2, 3, 5]),
            "its weight is a stack of matrices",
        ),
        (wide(8192), None),
        (loaded(residual()), None),
        (gru(), None),
    ],
)
def test_what_cannot_be_observed_and_why(model: ir.Model, reason: str | None) -> None:
    matched = find(model)[0]
    assert matched
    assert {unobservable(match) for match in matched} == {reason}


@pytest.mark.parametrize(
    ("weight", "needed"), [((8192, 1), 12 * 8 * 8192 * 8193), ((4, 300_000), 12 * 8 * 4 * 300_004)]
)
def test_what_a_fit_needs_is_known_before(
    weight: tuple[int, int], needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = from_x([MATMUL], {"w": normal(*weight)}, ["N", weight[0]])
    (match,) = find(model)[0]
    monkeypatch.setattr(statistics, "budget", lambda: needed)
    assert unobservable(match) is None
    monkeypatch.setattr(statistics, "budget", lambda: needed - 1)
    size = f"{needed / 2**30:.1f} GiB"
    assert unobservable(match) == f"a fit to its inputs would take {size} of memory, more than {size}"


def test_batches_are_small_where_the_memory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = calibration([{"x": normal(1, 1)}] * 400, batch=50)
    monkeypatch.setattr(statistics, "budget", lambda: 3 * 64 * 1000)
    assert sized(settings, [], 1000).batch == 3
    assert sized(settings, [], 10_000).batch == 1


def test_bfloat16_activations_do_not_come_out() -> None:
    match = match_of(from_x([MATMUL], {"w": MATRICES["w"]}, ["N", 5]))
    match = replace(match, layer=replace(match.layer, dtype="bfloat16"))
    assert unobservable(match) == "ONNX Runtime gives no bfloat16 activations out"


SITE = match_of(from_x([MATMUL], {"w": MATRICES["w"]}, ["N", 5]))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=12),
    budget=st.integers(1, 60_000),
)
def test_packs_keep_to_the_budget(sizes: list[tuple[int, int]], budget: int) -> None:
    matched = [replace(SITE, layer=linear_layer(t, s)) for t, s in sizes]
    # Both halves hold D x D and T x D numbers of 8 bytes.
    taken = {id(match): 2 * 8 * s * (s + t) for match, (t, s) in zip(matched, sizes, strict=True)}
    found = list(packs(matched, budget))
    assert [match for pack in found for match in pack] == matched
    for index, pack in enumerate(found):
        total = sum(taken[id(match)] for match in pack)
        assert pack
        assert total <= budget or len(pack) == 1
        if index + 1 < len(found):  # as few as the order allows
            assert total + taken[id(found[index + 1][0])] > budget


@pytest.mark.parametrize(
    ("size", "count", "batch"), [(64, 400, 50), (64, 40, 5), (4096, 400, 1), (2048, 400, 4)]
)
def test_batches_are_small_enough(size: int, count: int, batch: int) -> None:
    """For an activation of 4 x size x size numbers."""
    match = replace(SITE, layer=replace(SITE.layer, input_shape=("N", 4, size, size)))
    settings = calibration([{"x": normal(1, 1)}] * count, batch=50)
    assert sized(settings, [match]).batch == batch
    assert sized(settings, []).batch == min(50, count // 8)
    assert sized(settings, [], 4 * size * size).batch == batch


@pytest.mark.parametrize(("count", "judged"), [(3, 3), (4, 1), (40, 10)])
def test_trials_are_judged_by_inputs_that_they_are_not_fitted_to(count: int, judged: int) -> None:
    whole = calibration(images(count))
    fitted, others = parted(whole)
    assert len(others.feeds) == judged
    drawn = [feed["x"].tobytes() for part in (fitted, others) for feed in part.feeds]
    assert len(set(drawn)) == count
    assert len(drawn) == (count if count > 3 else 2 * count)


def test_nothing_is_fitted_to_random_inputs_so_they_judge_all() -> None:
    whole = calibration(images(40), synthetic=True)
    assert parted(whole) == (whole, whole)


@pytest.mark.parametrize(("macs", "count"), [(10, 40), (10**10, 16), (4 * 10**9, 25)])
def test_trials_take_as_many_samples_as_there_is_time_for(macs: int, count: int) -> None:
    assert len(shortened(calibration(images(40)), macs).feeds) == count


@pytest.mark.parametrize(
    ("macs", "wanted", "tried", "weighed"), [(10**10, 1, 8, 24), (10**10, 4, 16, 40), (10**9, 1, 40, 40)]
)
def test_of_large_samples_with_rows_at_many_positions_a_few_are_enough(
    macs: int, wanted: int, tried: int, weighed: int
) -> None:
    whole = calibration(images(40))
    assert len(shortened(whole, macs, wanted).feeds) == tried
    found = surveyed(whole, macs, wanted)
    assert len(found.feeds) == weighed
    assert len(found.feeds) / found.batch >= 4  # else none of them are held out


def test_what_is_shortened_has_batches_to_hold_some_out() -> None:
    whole = calibration(images(400), batch=50)
    brief = shortened(whole, 10**9)
    assert (len(brief.feeds), brief.batch) == (100, 12)
    assert shortened(whole, 1) is whole


def test_fits_take_as_many_samples_as_give_them_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly drawn; all where a layer is applied at few positions, or is no convolution."""
    monkeypatch.setattr(statistics, "VARIED", 4)
    monkeypatch.setattr(statistics, "_MANY", 4)
    model = from_x(
        [conv("layer", "x", "y", pads=[1, 1, 1, 1])],
        {"layer.w": normal(2, 3, 3, 3), "layer.b": normal(2)},
        ["N", 3, "H", "W"],
    )
    matched = [match_of(model)]
    feeds = [{"x": normal(1, 3, 8, 8, seed=k)} for k in range(40)]

    def count(size: int, rows: int) -> int:
        whole = calibration(feeds, rows=rows)
        return len(bounded(whole, matched, {("", "layer"): (1, 3, size, size)}).feeds)

    assert count(16, 1) == 24 * 27 * 4 // 256 + 1
    assert count(64, 1) == 4
    assert count(64, 20 * 4096 // 4) == 20
    assert count(1, 1) == 40
    whole = calibration(feeds, rows=1)
    assert bounded(whole, matched, {}) is whole
    shapes = {("", "layer"): (1, 3, 64, 64)}
    drawn = [feed["x"].tobytes() for feed in bounded(whole, matched, shapes).feeds]
    assert drawn == [feeds[k]["x"].tobytes() for k in (0, 16, 22, 38)]  # one in each ten
    linear = match_of(from_x([MATMUL], MATRICES, ["N", 5]))
    assert bounded(whole, [linear], {("", "layer"): (1, 5)}) is whole


def test_hasty_fits_have_fewer_rows_and_rounds() -> None:
    whole = calibration(images(4))
    brief = hasty(whole)
    assert (brief.rows, brief.per_feature, brief.sweeps) < (whole.rows, whole.per_feature, whole.sweeps)
    assert set(brief.shrinkages) < set(whole.shrinkages)
    few = calibration(images(4), rows=5, shrinkages=(0.1,))
    assert (hasty(few).rows, hasty(few).shrinkages) == (5, (0.1,))


def test_hasty_fits_run_on_as_many_samples_as_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_FEWER", 20)
    whole = calibration(images(40))
    assert [len(hasty(whole, wanted).feeds) for wanted in (0, 30, 50)] == [20, 30, 40]
    assert hasty(whole, 30).batch == 3
    assert hasty(whole, 50).batch == whole.batch
