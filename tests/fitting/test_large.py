"""Layers of many outputs, as heads over a vocabulary have: what is taken is never of both large sides."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
import scipy.linalg

from onnxdecomp.decompositions.registry import get
from onnxdecomp.fitting import quadratic_loss as problems
from onnxdecomp.fitting.fit import dense_rows, fit
from onnxdecomp.fitting.refit_kept import repair
from onnxdecomp.tensor import linalg
from onnxdecomp.tensor.linalg import left_basis
from tests.builders.layers import conv_layer, linear_layer
from tests.builders.moments import asymmetric, correlated, gathered, outputs

T = TypeVar("T")


def peak(work: Callable[[], T]) -> tuple[T, int]:
    """What the work gives, and the most bytes that it held."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["svd", "kronecker"])
def test_a_head_of_many_words(name: str) -> None:
    """At T = 20,000 a matrix of T x T takes 3.2 GB."""
    layer = linear_layer(20_000, 16, seed=2)
    moments = gathered(layer, *asymmetric(layer, 64))
    method = get(name)
    found, most = peak(lambda: fit(method, layer, method.fraction_ranks(layer, 0.5), moments))
    assert found.loss <= found.plain_loss < 1
    assert most < 300 << 20


def test_a_head_of_many_words_is_repaired() -> None:
    layer = linear_layer(20_000, 16, seed=2)
    rows, wanted = asymmetric(layer, 64)
    train, held = (gathered(layer, rows[:, part], wanted[part]) for part in (slice(32), slice(32, 64)))
    _, most = peak(lambda: repair(layer, train, held))
    assert most < 300 << 20


@pytest.mark.parametrize("name", ["tucker", "svd", "tproduct"])
def test_a_convolution_of_many_outputs(name: str) -> None:
    layer = conv_layer(20_000, 4, (3,), seed=3)
    method = get(name)
    rows = correlated(layer, 64)
    moments = gathered(layer, rows, outputs(layer, rows))
    found, most = peak(lambda: fit(method, layer, method.fraction_ranks(layer, 0.5), moments))
    assert dense_rows(found.chain, layer).shape == (1, 20_000, 12)
    assert most < 300 << 20


def test_the_cheapest_ranks_of_many_outputs() -> None:
    layer = conv_layer(20_000, 4, (3,), seed=3)
    ranks, most = peak(lambda: get("tucker").ranks_for_error(layer, 0.3))
    assert 1 <= max(ranks) <= 12
    assert most < 300 << 20


@pytest.mark.parametrize("wanted", [3, 8, 20, None])
def test_a_tall_matrix_has_the_basis_of_its_small_side(wanted: int | None) -> None:
    matrix = np.random.default_rng(0).standard_normal((9000, 8)) * np.geomspace(1, 1e-3, 8)
    if wanted is None:
        matrix = matrix[:300].repeat(40, axis=1)[:, :290]  # of size enough, and all directions asked for
    basis, values = left_basis(matrix, 0, wanted)
    columns = len(matrix) if wanted is None else wanted
    assert basis.shape == (len(matrix), columns)
    np.testing.assert_allclose(basis.T @ basis, np.eye(columns), atol=1e-10)
    left, exact, _ = scipy.linalg.svd(matrix, full_matrices=False)
    few = min(columns, 8)
    np.testing.assert_allclose(values[:few], exact[:few], rtol=1e-6)
    np.testing.assert_allclose(np.abs(basis[:, :few].T @ left[:, :few]), np.eye(few), atol=1e-6)
    np.testing.assert_array_equal(left_basis(matrix, 0, wanted)[0], basis)


def test_a_large_system_is_solved_or_refused_like_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    root, right = rng.standard_normal((30, 40)), rng.standard_normal((30, 3))
    solutions = []
    for long in (30, 29):
        monkeypatch.setattr(problems, "LONG", long)
        solutions.append(problems.solved_positive(root @ root.T, right))
        np.testing.assert_allclose(root @ root.T @ solutions[-1], right, atol=1e-9)
        with pytest.raises(np.linalg.LinAlgError):
            problems.solved_positive(-root @ root.T, right)
    np.testing.assert_allclose(solutions[0], solutions[1], rtol=1e-8)


@pytest.mark.parametrize("rank", [3, 40])
def test_a_large_basis_is_that_of_a_small_one(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)
    small = left_basis(matrix, 0, rank)
    monkeypatch.setattr(linalg, "LONG", 299)
    large = left_basis(matrix, 0, rank)
    for one, two in zip(small, large, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4)
