from __future__ import annotations

import math

import numpy as np
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.runtime import metrics
from onnxdecomp.runtime.metrics import Comparison, score_rows


def test_hand_computed_values() -> None:
    comparison = Comparison("y")
    comparison.add(np.array([[3.0, 4.0]]), np.array([[3.0, 5.0]]))
    comparison.add(np.array([[0.0, 0.0]]), np.array([[2.0, 0.0]]))
    result = comparison.result()
    assert result.values == 4
    assert result.max_abs == 2
    assert result.rel_l2 == pytest.approx(math.sqrt(5 / 25))
    assert result.cosine == pytest.approx(29 / (5 * math.sqrt(9 + 25 + 4)))
    assert result.sqnr_db == pytest.approx(10 * math.log10(25 / 5))
    assert result.p99_abs == pytest.approx(np.percentile([0, 1, 2, 0], 99))
    assert result.top1_agreement == 1.0


def test_half_precision_is_summed_in_double() -> None:
    x = np.full(100_000, 60_000, np.float16)
    comparison = Comparison("y")
    comparison.add(x, x)
    result = comparison.result()
    assert result.rel_l2 == 0
    assert result.sqnr_db == math.inf
    assert result.cosine == pytest.approx(1)


def test_values_that_are_not_finite() -> None:
    comparison = Comparison("y")
    comparison.add(np.array([1.0, np.nan, 2.0, np.inf]), np.array([1.0, 5.0, np.inf, np.inf]))
    result = comparison.result()
    assert (result.nonfinite, result.nonfinite_original, result.values) == (1, 2, 1)
    assert result.rel_l2 == 0


def test_discrete_outputs_count_equal_values() -> None:
    for x, y in (
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])),
        (np.array(["a", "b", "c", "d"], object), np.array(["a", "b", "c", "x"], object)),
        (np.array([True, True, False, False]), np.array([True, True, False, True])),
    ):
        comparison = Comparison("y")
        comparison.add(x, y)
        result = comparison.result()
        assert result.agreement == 0.75
        assert result.rel_l2 == 0.25
        assert result.max_abs is None


def test_zero_original() -> None:
    comparison = Comparison("y")
    comparison.add(np.zeros(3), np.zeros(3))
    assert comparison.rel_l2 == 0
    comparison.add(np.zeros(3), np.ones(3))
    assert comparison.rel_l2 == math.inf
    assert comparison.result().cosine is None


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="'y' has shape"):
        Comparison("y").add(np.zeros(3), np.zeros(4))


def test_the_percentile_survives_thinning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_KEPT", 1000)
    comparison = Comparison("y")
    error = np.random.default_rng(0).random(40_000)
    for part in error.reshape(10, -1):
        comparison.add(np.zeros(part.size), part)
    assert sum(map(len, comparison._errors)) <= 1000
    assert comparison.result().p99_abs == pytest.approx(0.99, abs=0.01)


def test_what_looks_like_scores() -> None:
    assert score_rows(np.zeros((2, 5))) is not None
    rows = score_rows(np.zeros((2, 5, 1, 1)))
    assert rows is not None
    assert rows.shape == (2, 5)
    for array in (np.zeros((2, 1)), np.zeros((2, 5, 3)), np.zeros((2, 5), int), np.zeros(4)):
        assert score_rows(array) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_large_outputs_are_summed_block_by_block(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in one piece: also where values are not finite, in some blocks alone, or do not count."""
    rng = np.random.default_rng(0)
    x: Array = rng.normal(size=(7, 33)).astype(dtype)
    y: Array = (x + rng.normal(size=x.shape) / 9).astype(dtype)
    x[2, 5], y[3, 3], y[5, :9] = np.nan, np.inf, np.nan
    real = rng.random(x.shape) < 0.8
    results = []
    for block in (10, 1 << 15):
        monkeypatch.setattr(metrics, "_BLOCK", block)
        comparison = Comparison("y")
        comparison.add(x, y)
        comparison.add(x, y, real)
        results.append(comparison.result())
    parts, whole = results
    assert parts.values == whole.values
    assert (parts.nonfinite, parts.nonfinite_original) == (whole.nonfinite, whole.nonfinite_original)
    assert parts.nonfinite >= 10
    assert parts.rel_l2 == pytest.approx(whole.rel_l2, rel=1e-12)
    assert parts.cosine == pytest.approx(whole.cosine, rel=1e-12)
    assert (parts.max_abs, parts.p99_abs) == (whole.max_abs, whole.p99_abs)
    usable = np.isfinite(x) & np.isfinite(y)
    one, two = (np.concatenate([a[usable], a[usable & real]]).astype(np.float64) for a in (x, y))
    assert whole.rel_l2 == pytest.approx(np.linalg.norm(two - one) / np.linalg.norm(one), rel=1e-12)
