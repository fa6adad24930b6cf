"""Heads of a smaller size: what their bases lose, and the output projection fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.elimination import ReaderMoments
from onnxdecomp.fitting.rotate_heads import HeadBases, head_bases, rotate_values, rotated
from onnxdecomp.tensor.linalg import left_basis, singular_values
from tests.fitting.test_unit_order import RNG, gathered, outputs

HEADS, SIZE = 3, 4
OWN = (0, 1, 2)


def seen(count: int, sets: int = HEADS, heads: int = HEADS, rank: int = SIZE) -> Array:
    """Values of each head [1, n, H d], correlated across heads, in a subspace of that rank per set."""
    mix = np.random.default_rng(3).normal(size=(heads * SIZE, heads * SIZE))
    rows = RNG.normal(size=(count, heads * SIZE)) @ (mix * 0.9 ** np.arange(heads * SIZE)[:, None]) + 0.5
    inside = np.random.default_rng(4).normal(size=(sets, SIZE, rank))
    project = inside @ np.linalg.pinv(inside)
    apart = rows.reshape(count, heads, SIZE)
    groups = np.arange(heads) * sets // heads
    return np.asarray(np.einsum("nhd,hed->nhe", apart, project[groups]).reshape(1, count, -1))


def reader(x: Array, weight: Array, held_out: Array | None = None) -> ReaderMoments:
    bias = np.arange(weight.shape[1]) * 0.1
    halves = [
        None if rows is None else gathered(rows, outputs(rows, weight) + bias) for rows in (x, held_out)
    ]
    assert halves[0] is not None
    return ReaderMoments(halves[0], halves[1], weight, np.zeros((1, weight.shape[2]), int), bias)


def lost(one: ReaderMoments, found: HeadBases, size: int) -> float:
    """What the least squares weight on these directions loses, from the raw moments."""
    m = rotated(one, found.bases[found.groups, :size]).train
    mean = m.x[0] / m.count
    second = m.xx[0] / m.count - np.outer(mean, mean)
    cross = m.yx[0] / m.count - np.outer(m.y / m.count, mean)
    energy = float(np.sum(m.yy / m.count - (m.y / m.count) ** 2))
    return (energy - float(np.sum(cross * (cross @ np.linalg.pinv(second))))) / energy


WEIGHT = RNG.normal(size=(1, 9, HEADS * SIZE))


@pytest.mark.parametrize(
    ("groups", "heads"), [(OWN, 3), ((0, 0, 1, 1), 4), ((0, 1, 0, 1), 4), ((0, 0, 0), 3), ((0,), 1)]
)
def test_losses_are_those_of_the_least_squares_fit(groups: Sequence[int], heads: int) -> None:
    sets = 1 + max(groups)
    weight = RNG.normal(size=(1, 9, heads * SIZE))
    one = reader(seen(3000, sets, heads), weight, seen(1000, sets, heads))
    found = head_bases(one, groups, shrinkage=0.0)
    assert found.bases.shape == (sets, SIZE, SIZE)
    assert found.held_out is not None
    np.testing.assert_allclose(found.bases @ found.bases.swapaxes(1, 2), [np.eye(SIZE)] * sets, atol=1e-9)
    for size in range(SIZE + 1):
        own = lost(one, found, size)
        assert found.losses[size] == pytest.approx(own, rel=1e-3, abs=1e-5)
        assert found.held_out[size] == pytest.approx(own, rel=0.4, abs=1e-4)
    for losses in (found.losses, found.held_out):
        assert (np.diff(losses) <= 0).all()


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_no_other_directions_lose_less(kept: int) -> None:
    """Neither random ones nor each head's best on its own, which would be exact without correlation."""
    one = reader(seen(3000), WEIGHT)
    found = head_bases(one, OWN)
    own = rotate_values(one, OWN, kept, bases=found, shrinkages=(0.0,)).output.loss
    assert own <= found.losses[kept] * 1.001 + 1e-7
    others = [np.linalg.qr(RNG.normal(size=(HEADS, SIZE, SIZE)))[0] for _ in range(100)]
    mean = one.train.x[0] / one.train.count
    second = one.train.xx[0] / one.train.count - np.outer(mean, mean)
    alone = []
    for head in range(HEADS):
        at = slice(head * SIZE, (head + 1) * SIZE)
        colour = np.linalg.cholesky(second[at, at])
        basis, _ = left_basis((WEIGHT[0][:, at] @ colour).T)
        alone.append(np.linalg.qr(np.linalg.inv(colour).T @ basis)[0].T)
    assert own < min(lost(one, replace(found, bases=bases), kept) for bases in [*others, np.stack(alone)])


def test_one_head_is_reduced_rank_regression() -> None:
    """The optimum is known: the singular values of the outputs that are cut off."""
    x = seen(3000, 1, 1)
    weight = RNG.normal(size=(1, 9, SIZE))
    found = head_bases(reader(x, weight), (0,), shrinkage=0.0)
    y = outputs(x, weight)
    squares = singular_values(y - y.mean(0))[:SIZE] ** 2
    best = np.append(np.cumsum(squares[::-1])[::-1], 0) / squares.sum()
    np.testing.assert_allclose(found.losses, best, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("groups", "sets"), [(OWN, 3), ((0, 0, 1, 1), 2)])
def test_values_of_a_low_rank_are_recovered_at_it(groups: Sequence[int], sets: int) -> None:
    heads = len(groups)
    x = seen(3000, sets, heads, rank=2)
    weight = RNG.normal(size=(1, 9, heads * SIZE))
    found = rotate_values(reader(x, weight, x[:, :999]), groups, 2, shrinkages=(0.0,))
    assert found.output.loss < 1e-6
    apart = x.reshape(-1, heads, SIZE)
    less = np.einsum("nhd,hkd->nhk", apart, found.maps[list(groups)]).reshape(1, len(apart), -1)
    assert found.output.bias is not None
    y = outputs(x, weight) + np.arange(9) * 0.1
    np.testing.assert_allclose(outputs(less, found.output.weight) + found.output.bias, y, atol=1e-2)


def test_products_of_a_low_rank_are_recovered_at_it() -> None:
    """O does not read all of what each head holds."""
    weight = np.concatenate([RNG.normal(size=(9, 2)) @ RNG.normal(size=(2, SIZE)) for _ in OWN], axis=1)[None]
    found = head_bases(reader(seen(3000), weight), OWN, shrinkage=1e-6)
    assert found.losses[2] < 1e-5
    assert found.losses[1] > 1e-3


def test_the_whole_size_changes_nothing() -> None:
    x = seen(2000)
    found = rotate_values(reader(x, WEIGHT, x[:, :500]), OWN, SIZE)
    np.testing.assert_array_equal(found.maps, [np.eye(SIZE)] * HEADS)
    np.testing.assert_array_equal(found.output.weight, WEIGHT)
    np.testing.assert_array_equal(found.output.bias, np.arange(9) * 0.1)


def test_the_readers_own_numbers_stay_as_they_were() -> None:
    x, weight = seen(2000), WEIGHT.copy()
    one = reader(x, weight, x[:, :500])
    before = one.train.xx.copy()
    head_bases(one, OWN)
    np.testing.assert_array_equal(weight, WEIGHT)
    np.testing.assert_array_equal(one.train.xx, before)


@pytest.mark.parametrize(("groups", "kept"), [((0,) * 5, 1), (OWN, 0), (OWN, 5)])
def test_sizes_that_cannot_be(groups: Sequence[int], kept: int) -> None:
    with pytest.raises(ValueError, match=r"features|numbers per head"):
        rotate_values(reader(seen(100), WEIGHT), groups, kept)
