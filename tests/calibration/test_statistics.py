"""Observing layers: the rows that they see now, and the outputs that they should have had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxdecomp.calibration.im2col import conv_rows, draw_positions, kernel_first, output_sizes
from onnxdecomp.calibration.look import Look, wide
from onnxdecomp.calibration.nonlinearity import Activation, Aim
from onnxdecomp.calibration.residual import branch
from onnxdecomp.calibration.statistics import (
    Calibration,
    centred,
    draw_of,
    look_at,
    observe,
    observe_unchanged,
    unobservable,
    window,
)
from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.moments import Moments, features, merged
from onnxdecomp.fitting.quadratic_loss import as_rows, problem
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from tests.builders.feeds import calibration, images, normal
from tests.builders.graphs import conv, from_x, gemm, loaded, match_of, value
from tests.builders.graphs import model as make
from tests.builders.models import MATMUL, MATRICES, PICTURE, gru, residual
from tests.builders.running import values

FEEDS = images()


def observed(
    match: LayerMatch, now: ir.Model, original: ir.Model, settings: Calibration
) -> tuple[Moments, Moments | None]:
    return observe(match, window(now, settings), window(original, settings), settings)


def check(found: Moments, rows: Array, wanted: Array) -> None:
    """The moments are those of these rows [g, n, D] and outputs [n, T]."""
    g, n, _ = rows.shape
    rows, wanted = rows.astype(np.float64), wanted.astype(np.float64)
    y = wanted.reshape(n, g, -1).swapaxes(0, 1)
    assert found.count == n
    pairs = {
        "xx": (found.xx, rows.swapaxes(1, 2) @ rows),
        "yx": (found.yx, y.swapaxes(1, 2) @ rows),
        "x": (found.x, rows.sum(1)),
        "y": (found.y, wanted.sum(0)),
        "yy": (found.yy, np.square(wanted).sum(0)),
    }
    for name, (ours, theirs) in pairs.items():
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1, np.abs(theirs).max()), err_msg=name)


def every_row(match: LayerMatch, x: Array) -> Array:
    sizes = output_sizes(match.layer, x)
    rows = conv_rows(match.layer, x, draw_positions(sizes, 10**6, np.random.default_rng(0)))
    return np.asarray(rows[:, :, np.argsort(kernel_first(match.layer))])


def pixels(y: Array) -> Array:
    """[N, T, *spatial] to [N P, T]."""
    return np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])


@pytest.mark.parametrize("name", ["stem", "first", "second"])
def test_a_layer_of_an_unchanged_model_wants_what_it_makes(name: str) -> None:
    model = loaded(residual())
    match = match_of(model, name)
    x, y = values(model, [str(match.x.name), str(match.output.name)], FEEDS)
    found = merged(*observed(match, model, model, calibration(FEEDS)))
    check(found, every_row(match, x), pixels(y))
    w = as_rows(match.layer.weight, match.layer)
    assert problem(found, w).relative(w) == pytest.approx(0, abs=1e-6)
    assert match.layer.bias is not None
    np.testing.assert_allclose(problem(found, w).bias(w), match.layer.bias, atol=1e-4)


@pytest.mark.parametrize("damaged", ["stem", "first"])
def test_a_layer_after_damage_makes_up_for_it(damaged: str) -> None:
    """Its rows come from the damaged model, its outputs from the original, and the branch's loss is added."""
    original, now = loaded(residual()), loaded(residual(damaged))
    match = match_of(now, "second")
    (r,) = values(now, ["r"], FEEDS)
    meant, should, lost = (*values(original, ["c", "s"], FEEDS), *values(now, ["s"], FEEDS))
    found = merged(*observed(match, now, original, calibration(FEEDS)))
    check(found, every_row(match, r), pixels(meant + should - lost))
    (t,) = values(original, ["t"], FEEDS)
    np.testing.assert_allclose(found.y, pixels(t - lost).sum(0), rtol=1e-3, atol=1e-2)
    assert np.any(should != lost) == (damaged == "stem")


def test_a_layer_with_no_branch_wants_its_own_output_only() -> None:
    original, now = loaded(residual()), loaded(residual("stem"))
    match = match_of(now, "first")
    assert branch(match) is None
    (s,), (h,) = values(now, ["s"], FEEDS), values(original, ["h"], FEEDS)
    found = merged(*observed(match, now, original, calibration(FEEDS)))
    check(found, every_row(match, s), pixels(h))


def test_a_fit_to_damaged_inputs_repairs_the_output() -> None:
    """The weight of least loss, put in, brings the sum nearer to the original's."""
    original, now = loaded(residual()), loaded(residual("stem"))
    match = match_of(now, "second")
    feeds = images(60)
    found = merged(*observed(match, now, original, calibration(feeds)))
    posed = problem(found, as_rows(match.layer.weight, match.layer))
    best, own = posed.best, as_rows(match.layer.weight, match.layer)
    (r, s), (t,) = values(now, ["r", "s"], feeds), values(original, ["t"], feeds)
    rows = every_row(match, r)[0].astype(np.float64)

    def error(v: Array) -> float:
        return float(np.square(rows @ v[0].T + posed.bias(v) + pixels(s) - pixels(t)).sum())

    assert error(best) < 0.9 * error(own)


def test_a_branch_that_is_the_layers_own_input() -> None:
    """y = conv(s) + s, where s is what the two models differ in."""
    pads = {"pads": [1, 1, 1, 1]}

    def model(scale: float) -> ir.Model:
        nodes = [
            helper.make_node("Mul", ["x", "scale"], ["s"]),
            conv("layer", "s", "c", **pads),
            helper.make_node("Add", ["s", "c"], ["y"]),
        ]
        weights = {
            "layer.w": normal(4, 4, 3, 3),
            "layer.b": normal(4),
            "scale": np.array(scale, np.float32),
        }
        return from_x(nodes, weights, PICTURE)

    original, now = model(1.0), model(0.8)
    match = match_of(now)
    assert branch(match) is match.x
    feeds = [{"x": normal(1, 4, 6, 6, seed=k)} for k in range(4)]
    (s,), (y,) = values(now, ["s"], feeds), values(original, ["y"], feeds)
    found = merged(*observed(match, now, original, calibration(feeds)))
    check(found, every_row(match, s), pixels(y - s))


FUSED = helper.make_node(
    "FusedMatMul", ["x", "w"], ["y"], name="layer", domain="com.microsoft", transA=1, alpha=2.0
)
LEFT = helper.make_node("MatMul", ["w", "x"], ["y"], name="layer")
LINEAR = {
    "MatMul": (MATMUL, (5, 7), (9, 5), "nk->nk", "nt->nt"),
    "MatMul of three axes": (MATMUL, (5, 7), (2, 9, 5), "bnk->bnk", "bnt->bnt"),
    "MatMul from the left": (LEFT, (7, 5), (2, 5, 9), "bkn->bnk", "btn->bnt"),
    "Gemm": (gemm(["x", "w"], alpha=0.5), (5, 7), (9, 5), "nk->nk", "nt->nt"),
    "Gemm, transA": (gemm(["x", "w"], transA=1, transB=1), (7, 5), (5, 9), "kn->nk", "nt->nt"),
    "Gemm from the left": (gemm(["w", "x"]), (7, 5), (5, 9), "kn->nk", "tn->nt"),
    "Gemm from the left, transB": (
        gemm(["w", "x"], transA=1, transB=1), (5, 7), (9, 5), "nk->nk", "tn->nt",
    ),
    "FusedMatMul, transA": (FUSED, (5, 7), (2, 5, 9), "bkn->bnk", "bnt->bnt"),
}  # fmt: skip
"""A node, the shapes of its weight and activation, and how activation and output become rows."""


@pytest.mark.parametrize(("node", "weight", "shape", "rows", "made"), LINEAR.values(), ids=LINEAR)
def test_linear_layers_however_their_operands_lie(
    node: onnx.NodeProto, weight: tuple[int, ...], shape: tuple[int, ...], rows: str, made: str
) -> None:
    x = normal(*shape)
    free: list[Any] = [f"d{axis}" for axis in range(len(shape))]
    proto = make([node], [value("x", free)], [value("y", None)], {"w": normal(*weight)})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = loaded(proto)
    match = match_of(model)
    feeds = [{"x": x}, {"x": 2 * x}]
    exact = [values(model, ["x", "y"], [feed]) for feed in feeds]
    found = merged(*observed(match, model, model, calibration(feeds, stackable=False)))
    all_rows = np.concatenate([np.einsum(rows, a).reshape(-1, 5) for a, _ in exact])
    wanted = np.concatenate([np.einsum(made, b).reshape(-1, 7) for _, b in exact])
    check(found, all_rows[None], wanted)


def test_a_linear_layers_bias_is_wanted_where_it_can_be_given() -> None:
    feeds = [{"x": normal(4, 5)}]
    bias_after = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "c"], ["y"], name="bias"),
    ]
    model = from_x(bias_after, MATRICES, ["N", 5])
    match = match_of(model)
    assert centred(match)
    found = merged(*observed(match, model, model, calibration(feeds)))
    check(found, feeds[0]["x"][None], feeds[0]["x"] @ MATRICES["w"] + MATRICES["c"])
    model = from_x([gemm(["x", "w", "m"])], {"w": MATRICES["w"], "m": normal(4, 1)}, [4, 5])
    match = match_of(model)
    assert not centred(match)
    found = merged(*observed(match, model, model, calibration(feeds)))
    check(found, feeds[0]["x"][None], feeds[0]["x"] @ MATRICES["w"])


def test_a_recurrent_layers_input_projection() -> None:
    model = gru()
    match = match_of(model)
    assert unobservable(match) is None
    feeds = [{"x": normal(6, 2, 5, seed=k)} for k in range(3)]
    found = merged(*observed(match, model, model, calibration(feeds, stackable=False)))
    rows = np.concatenate([feed["x"].reshape(-1, 5) for feed in feeds])
    check(found, rows[None], rows @ normal(2, 9, 5).reshape(18, 5).T)


@pytest.mark.parametrize("name", ["stem", "second"])
def test_rows_that_are_held_give_what_another_look_would(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer behind a branch, too; where rows take too much, none are held."""
    original, now = loaded(residual()), loaded(residual("stem"))
    match = match_of(now, name)
    weight = as_rows(match.layer.weight, match.layer) + 0.1
    aim = Aim(Activation(), weight, match.layer.bias)
    settings = calibration(FEEDS)
    windows = window(now, settings), window(original, settings)
    look = Look(match, None, draw_of(settings), hold=True)
    look_at([look], *windows, settings)
    found = look.aimed(aim)
    assert found is not None
    expected = merged(*observe(match, *windows, settings, aim=aim))
    np.testing.assert_allclose(found.yx, expected.yx, rtol=1e-9)
    assert np.any(np.abs(found.yx - merged(*look.halves()).yx) > 1e-3)
    monkeypatch.setattr("onnxdecomp.calibration.look._HELD", 10)
    look = Look(match, None, draw_of(settings), hold=True)
    look_at([look], *windows, settings)
    assert look.aimed(aim) is None


def test_half_precision_is_observed_in_float32() -> None:
    half = TensorProto.FLOAT16
    weight = MATRICES["w"].astype(np.float16)
    model = loaded(make([MATMUL], [value("x", ["N", 5], half)], [value("y", ["N", 7], half)], {"w": weight}))
    x = normal(6, 5).astype(np.float16)
    found = merged(*observed(match_of(model), model, model, calibration([{"x": x}])))
    wide = x.astype(np.float64)
    check(found, wide[None], wide @ weight.astype(np.float64))


def test_double_precision_stays() -> None:
    double = TensorProto.DOUBLE
    weight = np.random.default_rng(0).standard_normal((5, 7))
    model = loaded(
        make([MATMUL], [value("x", ["N", 5], double)], [value("y", ["N", 7], double)], {"w": weight})
    )
    x = np.random.default_rng(1).standard_normal((6, 5))
    found = merged(*observed(match_of(model), model, model, calibration([{"x": x}])))
    np.testing.assert_allclose(found.yx[0], (x @ weight).T @ x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("held_out", "every"), [(0.25, 4), (0.5, 2), (0.3, 3), (0.9, 2)])
def test_held_out_batches_are_others(held_out: float, every: int) -> None:
    model = from_x([MATMUL], {"w": MATRICES["w"]}, ["N", 5])
    feeds = [{"x": normal(1, 5, seed=k)} for k in range(20)]
    train, held = observed(match_of(model), model, model, calibration(feeds, batch=2, held_out=held_out))
    batches = [np.concatenate([feed["x"] for feed in feeds[k : k + 2]]) for k in range(0, 20, 2)]
    outside = [batch for index, batch in enumerate(batches) if index % every == every - 1]
    inside = [batch for index, batch in enumerate(batches) if index % every != every - 1]
    assert held is not None
    for found, part in ((train, inside), (held, outside)):
        x = np.concatenate(part)
        check(found, x[None], x @ MATRICES["w"])


@pytest.mark.parametrize("how", [{"batch": 10, "held_out": 0.5}, {"held_out": 0.0}])
def test_nothing_is_held_out_of_few_batches_or_on_request(how: Mapping[str, Any]) -> None:
    model = from_x([MATMUL], {"w": MATRICES["w"]}, ["N", 5])
    feeds = [{"x": normal(1, 5, seed=k)} for k in range(20)]
    train, held = observed(match_of(model), model, model, calibration(feeds, **how))
    assert held is None
    assert train.count == 20


def test_rows_are_drawn_as_many_as_it_takes() -> None:
    nodes = [conv("layer", "x", "y", pads=[1, 1, 1, 1])]
    weights = {"layer.w": normal(2, 3, 3, 3), "layer.b": normal(2)}
    model = loaded(make(nodes, [value("x", ["N", 3, 20, 20])], [value("y", None)], weights))
    match = match_of(model)
    feeds = [{"x": normal(1, 3, 20, 20, seed=k)} for k in range(8)]
    of = {rows: observed(match, model, model, calibration(feeds, rows=rows)) for rows in (10, 1000, 10**6)}
    counts = {rows: merged(*halves).count for rows, halves in of.items()}
    least = 24 * features(match.layer)
    assert least <= counts[10] <= least + 8
    assert 2 * least <= counts[1000] <= 2 * least + 8
    assert counts[10**6] == 8 * 400
    again = merged(*observed(match, model, model, calibration(feeds, rows=10)))
    np.testing.assert_array_equal(again.xx, merged(*of[10]).xx)
    other = merged(*observed(match, model, model, calibration(feeds, rows=10, seed=1)))
    assert np.any(other.xx != again.xx)


def test_several_layers_in_one_walk() -> None:
    model = loaded(residual())
    matched = find(model)[0]
    assert [match.layer.name for match in matched] == ["stem", "first", "second"]
    settings = calibration(images(16), rows=50)
    found = observe_unchanged(model, [*matched, matched[1]], settings)
    for match, (train, held) in zip([*matched, matched[1]], found, strict=True):
        alone, apart = observed(match, model, model, settings)
        assert held is not None
        assert apart is not None
        for ours, theirs in ((train, alone), (held, apart)):
            assert ours.count == theirs.count
            np.testing.assert_allclose(ours.xx, theirs.xx, rtol=1e-9)
            np.testing.assert_allclose(ours.yx, theirs.yx, rtol=1e-3, atol=1e-2)


def test_what_a_wide_layer_makes_follows_from_its_rows() -> None:
    """Of a head with a vocabulary no scores are made: the moments are as if they were."""

    def headed(seed: int) -> ir.Model:
        nodes = [
            helper.make_node("MatMul", ["x", "v"], ["h"], name="first"),
            helper.make_node("MatMul", ["h", "w"], ["s"], name="head"),
            helper.make_node("Add", ["s", "c"], ["y"], name="bias"),
        ]
        constants = {"v": normal(5, 6, seed=seed), "w": normal(6, 30), "c": normal(30)}
        return from_x(nodes, constants, ["N", 5])

    now, original = headed(1), headed(0)
    match = match_of(now, "head")
    assert wide(match.layer)
    assert not wide(match_of(now, "first").layer)
    feeds = [{"x": normal(4, 5, seed=k)} for k in range(8)]
    train, held = observed(match, now, original, calibration(feeds, stackable=False))
    assert held is not None
    x = np.concatenate([feed["x"] for feed in feeds])
    seen, meant = (x @ normal(5, 6, seed=seed) for seed in (1, 0))
    check(merged(train, held), seen[None], meant @ normal(6, 30) + normal(30))
    assert 0 < held.count < train.count
