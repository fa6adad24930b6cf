from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from onnxdecomp.core.layer import Array
from onnxdecomp.tensor import linalg, randomized_svd
from onnxdecomp.tensor.linalg import column_basis, gram, left_basis, singular_values, two_factors
from onnxdecomp.tensor.tenalg import unfold


def with_spectrum(rows: int, columns: int, values: Array, seed: int = 0) -> Array:
    """A float32 matrix with these singular values."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((n, len(values))))[0] for n in (rows, columns))
    matrix: Array = ((left * values) @ right.T).astype(np.float32)
    return matrix


def excess(matrix: Array, factors: tuple[Array, Array], rank: int) -> float:
    """How far the error of the factors is above the best one's, relative to it."""
    values = scipy.linalg.svdvals(matrix.astype(np.float64))
    missed = np.linalg.norm(matrix.astype(np.float64) - factors[0].astype(np.float64) @ factors[1])
    return float(missed / np.linalg.norm(values[rank:])) - 1


@pytest.mark.parametrize("shape", [(300, 800), (800, 300)])
@pytest.mark.parametrize("rank", [20, 200, 300])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_single_precision_truncation_is_the_best(shape: tuple[int, int], rank: int, decay: float) -> None:
    matrix = with_spectrum(*shape, np.arange(1, 301) ** -decay)
    a, b = two_factors(matrix, rank)
    assert a.dtype == b.dtype == np.float32
    if rank == 300:
        assert np.linalg.norm(a @ b - matrix) < 1e-5 * np.linalg.norm(matrix)
    else:
        assert abs(excess(matrix, (a, b), rank)) < 1e-4
    basis = column_basis(matrix, rank)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-5)


def test_spectrum_below_single_precision_takes_double() -> None:
    # The float32 Gram matrix knows nothing of what lies 5 decades below the largest singular value.
    values = np.append(1.0, np.logspace(-4.5, -5.5, 299))
    matrix = with_spectrum(300, 700, values)
    assert excess(matrix, two_factors(matrix, 100), 100) < 1e-2
    single = linalg._eigh(gram(matrix, 0, np.float32).astype(np.float32), 300)[1][:, :100]
    assert excess(matrix, (single, single.T @ matrix), 100) > 0.1, "float32 would have done"


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_weights_do_not_leave_the_range(scale: float) -> None:
    matrix = (with_spectrum(300, 400, np.arange(1, 301) ** -0.5) * scale).astype(np.float32)
    a, b = two_factors(matrix, 50)
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    assert excess(matrix, (a, b), 50) < 1e-4


def test_partial_basis_is_a_part_of_the_whole() -> None:
    tensor = np.random.default_rng(0).standard_normal((260, 30, 40)).astype(np.float32)
    whole, values = left_basis(tensor)
    part, leading = left_basis(tensor, 0, 12)
    assert part.shape == (260, 12)
    np.testing.assert_allclose(leading, values[:12], rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(part * whole[:, :12], axis=0)), 1, atol=1e-3)


def test_gram_of_any_axis_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = np.random.default_rng(0).standard_normal((5, 70, 3, 2))
    monkeypatch.setattr(linalg, "_BLOCK_ELEMENTS", 60)
    monkeypatch.setattr(linalg, "_BLOCK_COLUMNS", 1)
    for axis in range(4):
        matrix = unfold(tensor, axis)
        np.testing.assert_allclose(gram(tensor, axis), matrix @ matrix.T, rtol=1e-12)
        single = gram(tensor.astype(np.float32), axis, np.float32)
        np.testing.assert_allclose(single, matrix @ matrix.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(320, 900), (900, 320)])
@pytest.mark.parametrize("decay", [0.7, 1.0])
def test_sketch_is_within_its_tolerance(shape: tuple[int, int], decay: float) -> None:
    matrix = with_spectrum(*shape, np.arange(1, 321) ** -decay)
    found = randomized_svd.leading_factors(matrix, 6)
    assert found is not None
    basis, rows = found
    assert basis.shape == (shape[0], 6)
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(rows, basis.T @ matrix, atol=1e-4)
    assert 0 <= excess(matrix, found, 6) + 1e-6 < 1e-3
    again = randomized_svd.leading_factors(matrix, 6)
    assert again is not None
    assert again[0].tobytes() == basis.tobytes()


def test_sketch_gives_up_on_a_flat_spectrum_and_on_an_exact_rank() -> None:
    flat = np.random.default_rng(0).standard_normal((640, 900)).astype(np.float32)
    assert randomized_svd.leading_factors(flat, 20) is None
    assert randomized_svd.leading_factors(with_spectrum(320, 400, np.ones(6)), 6) is None


def test_two_factors_of_a_large_matrix_are_sketched_or_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomized_svd, "_LARGE", 300)
    taken: list[bool] = []

    def spied(matrix: Array, rank: int) -> tuple[Array, Array] | None:
        found = randomized_svd.leading_factors(matrix, rank)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(linalg, "leading_factors", spied)
    flat = np.random.default_rng(0).standard_normal((900, 640)).astype(np.float32)
    for matrix in (flat, with_spectrum(900, 640, np.arange(1, 641) ** -1.0)):
        assert abs(excess(matrix, two_factors(matrix, 20), 20)) < 1e-3
    assert taken == [False, True]


def test_whole_spectrum_of_a_large_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "_SINGLE_VALUES", 300)
    for values in (np.linspace(1, 0.1, 300), np.logspace(0, -4, 300)):  # single, then double precision
        matrix = with_spectrum(300, 500, values)
        np.testing.assert_allclose(singular_values(matrix), values, rtol=2e-3)


@pytest.mark.parametrize("shape", [(200, 320), (320, 200)])
def test_beyond_the_largest_gram_matrix_all_is_sketched(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linalg, "_MOST", 150)
    monkeypatch.setattr(linalg, "_SMALL", 1)
    monkeypatch.setattr(linalg, "gram", None)
    values = np.logspace(0, -4, 200)
    matrix = with_spectrum(*shape, values)
    assert excess(matrix, two_factors(matrix, 30), 30) < 0.01
    basis, found = left_basis(matrix, rank=30)
    np.testing.assert_allclose(found, values[:30], rtol=1e-3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(30), atol=1e-5)
    whole, _ = left_basis(matrix)
    np.testing.assert_allclose(whole.T @ whole, np.eye(shape[0]), atol=1e-5)
    spectrum = singular_values(matrix)
    assert spectrum.shape == (200,)
    np.testing.assert_allclose(np.linalg.norm(spectrum), np.linalg.norm(values), rtol=1e-4)


def test_an_estimated_spectrum_keeps_the_sum_of_squares() -> None:
    values = np.logspace(0, -2, 200)
    found = randomized_svd.estimated_spectrum(with_spectrum(200, 320, values), 50)
    np.testing.assert_allclose(found[:50], values[:50], rtol=2e-2)
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(values), rtol=1e-4)
    assert (np.diff(found) <= 1e-9).all()
