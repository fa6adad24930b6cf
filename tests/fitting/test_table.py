"""Factors of tables for lookups, products and both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.table import TableFit, Uses, fit_table, table_chain


def a_table(rng: np.random.Generator, size: int = 40, width: int = 8) -> Array:
    return (rng.standard_normal((size, width)) * np.geomspace(1, 0.2, width)).astype(np.float32)


def a_second(rng: np.random.Generator, width: int = 8) -> Array:
    rows = rng.standard_normal((30, width)) * np.geomspace(0.1, 1, width)
    return np.asarray(rows.T @ rows / 30)


def lost(table: Array, found: TableFit, counts: Array, second: Array, smoothing: float) -> float:
    """The loss of both uses, each relative, by its definition."""
    shares = (1 - smoothing) * counts / counts.sum() + smoothing / len(counts)
    w, error = table.astype(np.float64), table - found.rows.astype(np.float64) @ found.basis
    looked_up = float(shares @ np.sum(error**2, 1)) / float(shares @ np.sum(w**2, 1))
    return looked_up + float(np.sum((error @ second) * error)) / float(np.sum((w @ second) * w))


@given(seed=st.integers(0, 99), rank=st.integers(1, 8), uses=st.sampled_from(["lookups", "products", "both"]))
@settings(max_examples=20)
def test_losses_are_what_they_are_said_to_be(seed: int, rank: int, uses: str) -> None:
    rng = np.random.default_rng(seed)
    table, second = a_table(rng), a_second(rng)
    counts = rng.integers(0, 4, len(table)).astype(float)
    given_counts = None if uses == "products" else counts
    found = fit_table(table, rank, Uses(given_counts, None if uses == "lookups" else second))
    error = table - found.rows @ found.basis
    assert found.rows.dtype == np.float32
    if uses == "products":
        assert found.looked_up is None
        expected = np.sum((error @ second) * error) / np.sum((table @ second) * table)
        assert found.multiplied == pytest.approx(expected, abs=1e-5)
    else:
        shares = 0.7 * counts / counts.sum() + 0.3 / len(counts)
        assert found.smoothing == 0.3
        expected = (shares @ np.sum(error**2, 1)) / (shares @ np.sum(table**2, 1))
        assert found.looked_up == pytest.approx(expected, abs=1e-5)
    if rank == 8:
        np.testing.assert_allclose(error, 0, atol=1e-5)


def test_a_single_use_has_its_known_optimum() -> None:
    rng = np.random.default_rng(3)
    table, second = a_table(rng), a_second(rng)
    w = table.astype(np.float64)
    # Of products: the tail of the spectrum of W G^(1/2).
    values = np.sort(np.linalg.eigvals(w.T @ w @ second).real)[::-1]
    found = fit_table(table, 3, Uses(None, second))
    assert found.multiplied == pytest.approx(values[3:].sum() / values.sum(), rel=1e-4)
    # Of lookups: that of the rows, each times the root of its share.
    counts = np.arange(len(table)) % 3.0
    shares = 0.7 * counts / counts.sum() + 0.3 / len(counts)
    values = np.linalg.eigvalsh(w.T @ (shares[:, None] * w))[::-1]
    assert fit_table(table, 3, Uses(counts)).looked_up == pytest.approx(
        values[3:].sum() / values.sum(), rel=1e-4
    )


@given(seed=st.integers(0, 99), rank=st.integers(1, 6))
@settings(max_examples=20)
def test_both_uses_together_are_never_worse_than_what_is_best_for_one(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    table, second = a_table(rng), a_second(rng)
    counts = rng.integers(0, 5, len(table)).astype(float)
    both = fit_table(table, rank, Uses(counts, second))
    assert both.looked_up is not None
    assert both.multiplied is not None
    least = lost(table, both, counts, second, 0.3)
    assert least == pytest.approx(both.looked_up + both.multiplied, abs=1e-4)
    basis = np.linalg.eigh(table.T @ table)[1][:, ::-1][:, :rank].T
    plain = TableFit(table @ basis.T, basis, None, None, 0.3)
    others = (fit_table(table, rank, Uses(counts)), fit_table(table, rank, Uses(None, second)), plain)
    assert all(least <= lost(table, other, counts, second, 0.3) * (1 + 1e-5) for other in others)


def test_frequent_words_are_kept_better() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((200, 16)).astype(np.float32)
    counts = np.zeros(200)
    counts[:10] = 50
    found = fit_table(table, 8, Uses(counts))
    errors = np.sum((table - found.rows @ found.basis) ** 2, 1)
    assert errors[:10].mean() < 0.4 * errors[10:].mean()


def test_many_frequencies_are_put_into_classes() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((300, 6)).astype(np.float32)
    counts = np.arange(300.0) ** 2
    found = fit_table(table, 3, Uses(counts, a_second(rng, 6)))
    shares = 0.7 * counts / counts.sum() + 0.3 / 300
    error = table - found.rows @ found.basis
    assert found.looked_up == pytest.approx(
        (shares @ np.sum(error**2, 1)) / (shares @ np.sum(table**2, 1)), rel=0.1
    )


def test_tokens_held_out_choose_the_smoothing() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((100, 12)).astype(np.float32)
    few, same, others = np.zeros(100), np.zeros(100), np.zeros(100)
    few[:4], same[:4], others[50:] = 9, 3, 1
    assert fit_table(table, 6, Uses(few), Uses(same)).smoothing == 0.1
    assert fit_table(table, 6, Uses(few), Uses(others)).smoothing == 1.0


@pytest.mark.parametrize("lookup", [True, False])
def test_chains_are_of_the_layers_orientation(lookup: bool) -> None:
    rng = np.random.default_rng(0)
    table = a_table(rng)
    found = fit_table(table, 5, Uses(np.ones(40), a_second(rng)))
    layer = Layer("l", "Gather" if lookup else "MatMul", table.T if lookup else table, lookup=lookup)
    approximation = found.rows @ found.basis
    np.testing.assert_allclose(
        table_chain(found, layer).dense(), approximation.T if lookup else approximation, atol=1e-6
    )


def test_a_bias_takes_the_means_error() -> None:
    rng = np.random.default_rng(0)
    table, mean = a_table(rng), rng.standard_normal(8)
    layer = Layer("l", "Gemm", table, bias=np.ones(40, np.float32))
    found = fit_table(table, 3, Uses(None, a_second(rng)))
    chain = table_chain(found, layer, mean)
    assert chain.bias is not None
    np.testing.assert_allclose(chain.dense() @ mean + chain.bias, table @ mean + 1, atol=1e-5)


@pytest.mark.parametrize("dead", ["counts", "second", "table"])
def test_what_says_nothing_does_no_harm(dead: str) -> None:
    rng = np.random.default_rng(0)
    table, counts, second = a_table(rng), np.ones(40), a_second(rng)
    if dead == "table":
        table[:] = 0
    (counts if dead == "counts" else second)[:] = 0
    found = fit_table(table, 3, Uses(counts, second), Uses(np.zeros(40)))
    assert np.isfinite(found.rows).all()
    assert np.isfinite(found.basis).all()
