"""The problem: a quadratic that is the loss of a weight on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting import quadratic_loss as module
from onnxdecomp.fitting.moments import Gatherer, Moments
from onnxdecomp.fitting.quadratic_loss import Problem, as_rows, problem
from tests.builders.layers import linear_layer
from tests.builders.moments import LAYERS, asymmetric, correlated, gathered, outputs

FEW = settings(max_examples=15)
EACH = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def other_weight(layer: Layer, seed: int) -> Array:
    shape = as_rows(layer.weight, layer).shape
    return np.random.default_rng((seed, 2)).standard_normal(shape)


def applied(v: Array, rows: Array) -> Array:
    """V x of every row, [n, T]."""
    return (rows @ v.swapaxes(1, 2)).swapaxes(0, 1).reshape(rows.shape[1], -1)


def mean_square(y: Array) -> float:
    return float(np.square(y).sum(1).mean())


@EACH
@FEW
@given(seed=st.integers(0, 99), shrinkage=st.sampled_from([0.0, 1e-3, 0.5]), centred=st.booleans())
def test_the_loss_is_that_of_the_rows(layer: Layer, seed: int, shrinkage: float, centred: bool) -> None:
    rows, wanted = asymmetric(layer, 70, seed=seed)
    w, v = as_rows(layer.weight, layer), other_weight(layer, seed)
    posed = problem(gathered(layer, rows, wanted), w, shrinkage, centred=centred)
    if centred:
        rows, wanted = rows - rows.mean(1, keepdims=True), wanted - wanted.mean(0)
    strength = posed.pull / np.square(w).sum()
    variance = np.square(rows).mean()
    assert strength == pytest.approx((shrinkage + 1e-7) * variance, rel=1e-3)
    expected = mean_square(wanted - applied(v, rows)) + strength * np.square(v - w).sum()
    assert posed.loss(v) == pytest.approx(expected, rel=1e-9)
    assert posed.energy == pytest.approx(mean_square(wanted), rel=1e-9)
    assert posed.relative(v) == pytest.approx(expected / mean_square(wanted), rel=1e-9)


@EACH
@FEW
@given(seed=st.integers(0, 99), shrinkage=st.sampled_from([0.0, 1e-2]))
def test_the_best_weight(layer: Layer, seed: int, shrinkage: float) -> None:
    posed = problem(
        gathered(layer, *asymmetric(layer, 130, seed=seed)), as_rows(layer.weight, layer), shrinkage
    )
    best, step = posed.best, other_weight(layer, seed)
    np.testing.assert_allclose(posed.gradient(best), 0, atol=1e-8 * np.abs(posed.cross).max())
    least = posed.loss(best)
    assert least >= 0
    for size in (1e-2, -1e-2, 1.0):
        away = posed.loss(best + size * step)
        assert away == pytest.approx(least + size**2 * np.vdot(step @ posed.second, step), rel=1e-6)
        assert away > least


@EACH
@pytest.mark.parametrize("rows", [0, 1, 2, 100])
def test_some_rows_at_a_time_give_the_same(layer: Layer, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w = as_rows(layer.weight, layer)
    whole = problem(gathered(layer, *asymmetric(layer, 50)), w, 0.1)
    monkeypatch.setattr(module, "_BLOCK", rows * w.shape[2] + 1)
    again = problem(gathered(layer, *asymmetric(layer, 50)), w, 0.1)
    np.testing.assert_array_equal(again.cross, whole.cross)


@EACH
def test_the_gradient_is_half_the_slope(layer: Layer) -> None:
    posed = problem(gathered(layer, *asymmetric(layer, 50)), as_rows(layer.weight, layer), 0.1)
    v, step = other_weight(layer, 0), other_weight(layer, 1)
    slope = (posed.loss(v + step) - posed.loss(v - step)) / 2  # exact for a quadratic
    assert 2 * np.vdot(posed.gradient(v), step) == pytest.approx(slope, rel=1e-9)


@EACH
def test_the_bias_gives_the_outputs_their_mean(layer: Layer) -> None:
    rows, wanted = asymmetric(layer, 50)
    v = other_weight(layer, 0)
    posed = problem(gathered(layer, rows, wanted), as_rows(layer.weight, layer))
    made = applied(v, rows) + posed.bias(v)
    np.testing.assert_allclose(made.mean(0), wanted.mean(0), atol=1e-9 * np.abs(wanted).max())


def test_uncentred_there_is_no_bias_to_give() -> None:
    layer = LAYERS["linear"]
    posed = problem(gathered(layer, correlated(layer, 50)), as_rows(layer.weight, layer), centred=False)
    assert not posed.mean_in.any()
    assert not posed.bias(other_weight(layer, 0)).any()


@EACH
def test_the_layer_itself_is_exact_where_it_sees_what_it_saw(layer: Layer) -> None:
    w = as_rows(layer.weight, layer)
    posed = problem(gathered(layer, correlated(layer, 200)), w, 1e-2)
    np.testing.assert_allclose(posed.best, w, atol=1e-6)
    assert posed.relative(w) == pytest.approx(0, abs=1e-9)
    bias = layer.bias if layer.bias is not None else np.zeros(layer.outputs)
    np.testing.assert_allclose(posed.bias(w), bias, atol=1e-6)


def test_a_constant_output_is_as_bad_as_one() -> None:
    layer = LAYERS["linear"]
    w = as_rows(layer.weight, layer)
    assert problem(gathered(layer, correlated(layer, 200)), w).relative(0 * w) == pytest.approx(1, rel=1e-3)


def test_shrinkage_goes_towards_the_weight() -> None:
    layer = LAYERS["conv2d"]
    moments, w = gathered(layer, *asymmetric(layer, 20)), as_rows(layer.weight, layer)
    distances = [np.linalg.norm(problem(moments, w, s).best - w) for s in (1e-4, 1e-2, 1.0, 1e2, 1e4)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3 * distances[0]


@pytest.mark.parametrize("value", [0.0, 0.3, 100.1])
def test_rows_that_say_nothing_leave_the_weight(value: float) -> None:
    layer = LAYERS["linear"]
    w, v = as_rows(layer.weight, layer), other_weight(LAYERS["linear"], 0)
    rows = np.full((1, 500, 18), value, np.float32)
    posed = problem(gathered(layer, rows, outputs(layer, rows).astype(np.float32)), w, 1e-3)
    np.testing.assert_allclose(posed.best, w, rtol=1e-3, atol=1e-3)
    assert posed.relative(v) == pytest.approx(np.square(v - w).sum() / np.square(w).sum(), rel=1e-2)


@pytest.mark.parametrize("shift", [0.0, 30.0])
@pytest.mark.parametrize("shrinkage", [0.0, 1e-4])
def test_fewer_rows_than_features_in_float32(shift: float, shrinkage: float) -> None:
    """Rounding makes the second moment indefinite there; the rows can still be met."""
    layer = linear_layer(5, 300)
    rng = np.random.default_rng(0)
    common = shift * rng.standard_normal((1, 100, 1)) + shift
    rows = (rng.standard_normal((1, 100, 300)) + common).astype(np.float32)
    gatherer = Gatherer(1, 5, 300)
    wanted = outputs(layer, rows).astype(np.float32)
    gatherer.add(rows, wanted)
    posed = problem(gatherer.moments(), as_rows(layer.weight, layer), shrinkage)
    best = posed.best
    lost = wanted - applied(best, rows.astype(np.float64)) - posed.bias(best)
    assert mean_square(lost) < 1e-4 * posed.energy


@pytest.mark.parametrize(
    "layer",
    [linear_layer(5, 18), linear_layer(18, 5), LAYERS["conv2d grouped"]],
    ids=["wide", "tall", "grouped"],
)
def test_modes_are_the_principal_directions_of_the_best_outputs(layer: Layer) -> None:
    posed = problem(gathered(layer, *asymmetric(layer, 60)), as_rows(layer.weight, layer), 1e-3)
    assert len(posed.modes()) == layer.groups
    for modes, best, second in zip(posed.modes(), posed.best, posed.second, strict=True):
        outer, inner = best.shape
        assert modes.shape == (outer, min(outer, inner))
        spread = best @ second @ best.T
        variances = np.linalg.eigvalsh(spread)[::-1][: min(outer, inner)]
        # Orthonormal, uncorrelated, and the one of most variance first.
        np.testing.assert_allclose(modes.T @ modes, np.eye(modes.shape[1]), atol=1e-9)
        np.testing.assert_allclose(modes.T @ spread @ modes, np.diag(variances), atol=1e-8 * variances[0])
    few, own = posed.modes(2), posed.modes()[:, :, :2]
    np.testing.assert_allclose(few @ few.swapaxes(1, 2), own @ own.swapaxes(1, 2), atol=1e-9)


def test_what_rounding_left_below_zero_is_no_mode() -> None:
    cross = np.array([[[3.0, 0.0], [4.0, 0.0], [0.0, 0.0]]])
    posed = Problem(np.diag([1.0, -1e-12])[None], cross, 25.0, np.zeros((1, 2)), np.zeros(3), 0.0)
    np.testing.assert_allclose(np.abs(posed.modes()[0, :, 0]), [0.6, 0.8, 0.0], atol=1e-9)


@pytest.mark.parametrize("rounding", [-1e-13, 0.0, 1e-13])
def test_variances_that_are_rounding_count_as_none(rounding: float) -> None:
    """Four rows of a feature and an output that are always 3."""
    sums, squares = np.full((1, 1), 12.0), np.full((1, 1, 1), 36.0 * (1 + rounding))
    moments = Moments(4, squares, squares.copy(), sums, sums[0], squares[0, 0])
    w = np.array([[[0.5]]])
    posed = problem(moments, w, 100.0)
    assert posed.energy == 0
    assert posed.second.item() > 0
    assert posed.pull == pytest.approx(posed.second.item() * 0.25, rel=0.2)
    assert posed.relative(0 * w) == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(("small", "part"), [(1.5, 0.0), (2.5, 0.4)])
def test_directions_like_the_negative_one_count_as_never_seen(small: float, part: float) -> None:
    second = np.diag([8.0, -1.0, small])
    posed = Problem(second[None], np.ones((1, 1, 3)), 1.0, np.zeros((1, 3)), np.zeros(1), 0.0)
    np.testing.assert_allclose(posed.best, [[[0.125, 0.0, part]]], atol=1e-12)


@pytest.mark.parametrize("long", [3, 4])
def test_positive_systems_are_solved_either_way(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG", long)
    rng = np.random.default_rng(0)
    root, right = rng.standard_normal((4, 4)), rng.standard_normal((4, 2))
    matrix = root @ root.T
    np.testing.assert_allclose(matrix @ module.solved_positive(matrix, right), right, atol=1e-9)
    with pytest.raises(np.linalg.LinAlgError):
        module.solved_positive(-matrix, right)
    with pytest.raises(np.linalg.LinAlgError):
        module.solved_positive(np.diag([1.0, 1.0, -1.0, 1.0]), right)


def test_no_weight_and_no_outputs_lose_nothing() -> None:
    nothing = np.zeros((1, 2, 3))
    posed = Problem(np.eye(3)[None], nothing, 0.0, np.zeros((1, 3)), np.zeros(2), 0.0)
    assert posed.relative(nothing) == 0


@pytest.mark.parametrize(("features", "dtype"), [(511, np.float64), (512, np.float32)])
def test_of_many_features_products_are_less_precise(features: int, dtype: type) -> None:
    nothing = np.zeros((1, 1, features))
    posed = Problem(np.eye(features)[None], nothing, 0.0, nothing[0], np.zeros(1), 0.0)
    assert posed.single.dtype == dtype
    assert posed.single is posed.single
    np.testing.assert_array_equal(posed.single, posed.second)


@pytest.mark.parametrize("features", [40, 600])
def test_losses_that_are_only_compared_are_nearly_the_loss(features: int) -> None:
    layer = linear_layer(features, 7, seed=3)
    posed = problem(gathered(layer, *asymmetric(layer, 80)), as_rows(layer.weight, layer), 1e-2)
    for v in (posed.best, other_weight(layer, 1)):
        assert posed.about(v) == pytest.approx(posed.relative(v), rel=1e-5, abs=1e-5)
    nothing = np.zeros((1, 2, 3))
    assert Problem(np.eye(3)[None], nothing, 0.0, np.zeros((1, 3)), np.zeros(2), 0.0).about(nothing) == 0
