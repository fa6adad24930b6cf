"""Scores from fewer numbers per head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.rotate_scores import (
    ScoreMoments,
    pair_order,
    rotate_scores,
    score_losses,
    score_moments,
)

RNG = np.random.default_rng(0)
SIZE = 6
OWN, SHARED = (0, 1), (0, 0, 1, 1)


def drawn(heads: int, count: int, rank: int = SIZE, seed: int = 1) -> Array:
    """Vectors [1, heads, n, d] of falling variances around a mean, in a subspace of that rank per head."""
    mix = np.random.default_rng(seed).normal(size=(heads, SIZE, SIZE))
    inside = mix[:, :, :rank] @ np.linalg.pinv(mix[:, :, :rank])
    rows = (RNG.normal(size=(heads, count, SIZE)) * 0.7 ** np.arange(SIZE) + 0.3) @ mix
    return np.asarray(rows @ inside)[None]


def moments(query: Array, key: Array, groups: Sequence[int]) -> ScoreMoments:
    """Uncentred, of queries and keys that meet at random."""
    sums = np.zeros((key.shape[1], SIZE, SIZE))
    for head, of in enumerate(groups):
        sums[of] += query[0, head].T @ query[0, head] / query.shape[2]
    return ScoreMoments(sums, key[0].swapaxes(1, 2) @ key[0] / key.shape[2], query.shape[2])


@pytest.mark.parametrize("groups", [OWN, SHARED])
@pytest.mark.parametrize("kept", [1, 3, 5, 6])
def test_losses_are_those_of_the_scores(groups: Sequence[int], kept: int) -> None:
    query, key = drawn(len(groups), 300), drawn(2, 200, seed=2)
    of = moments(query, key, groups)
    found = rotate_scores(of, groups, kept)
    sets = list(groups)
    scores = query[0] @ key[0][sets].swapaxes(1, 2)
    less = query[0] @ found.query.swapaxes(1, 2)
    less = less @ (key[0] @ found.key.swapaxes(1, 2))[sets].swapaxes(1, 2)
    lost = np.sum((scores - less) ** 2) / np.sum(scores**2)
    assert found.loss == pytest.approx(lost, rel=1e-6, abs=1e-12)
    assert score_losses(of)[kept] == pytest.approx(lost, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("groups", [OWN, SHARED])
def test_no_other_maps_lose_less(groups: Sequence[int]) -> None:
    """Per set of keys, the singular values of the matrix of all its scores are the bound."""
    query, key = drawn(len(groups), 60), drawn(2, 50, seed=2)
    losses = score_losses(moments(query, key, groups))
    whole, tails = 0.0, np.zeros(SIZE + 1)
    for of in (0, 1):
        mine = np.concatenate([query[0, head] for head in range(len(groups)) if groups[head] == of])
        eigenvalues = np.linalg.eigvalsh((mine @ key[0, of].T).T @ (mine @ key[0, of].T))[::-1][:SIZE]
        tails += np.append(np.cumsum(eigenvalues[::-1])[::-1], 0)
        whole += eigenvalues.sum()
    np.testing.assert_allclose(losses, tails / whole, rtol=1e-6, atol=1e-9)
    assert losses[0] == pytest.approx(1)
    assert (np.diff(losses) <= 0).all()


def test_products_of_a_low_rank_are_recovered_at_it() -> None:
    query, key = drawn(2, 300, rank=3), drawn(2, 200, seed=2)
    found = rotate_scores(moments(query, key, OWN), OWN, 3)
    less = (query[0] @ found.query.swapaxes(1, 2)) @ (key[0] @ found.key.swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_allclose(less, query[0] @ key[0].swapaxes(1, 2), atol=1e-3)
    assert found.loss < 1e-6


@pytest.mark.parametrize("groups", [OWN, SHARED])
def test_queries_and_keys_are_balanced(groups: Sequence[int]) -> None:
    """Also where one of them was far larger; the mean query of several heads is as long as the key."""
    query, key = 100 * drawn(len(groups), 300), drawn(2, 200, seed=2)
    found = rotate_scores(moments(query, key, groups), groups, 4)
    heads = len(groups) // 2
    queries = np.mean((query[0] @ found.query.swapaxes(1, 2)) ** 2, axis=1)
    keys = np.mean((key[0] @ found.key.swapaxes(1, 2)) ** 2, axis=1)
    np.testing.assert_allclose(queries.reshape(2, heads, 4).mean(1), keys, rtol=1e-6)


def test_the_whole_size_changes_nothing() -> None:
    found = rotate_scores(moments(drawn(2, 300), drawn(2, 200), OWN), OWN, SIZE)
    np.testing.assert_array_equal(found.query, [np.eye(SIZE)] * 2)
    np.testing.assert_array_equal(found.key, [np.eye(SIZE)] * 2)
    assert found.loss == 0
    for kept in (0, SIZE + 1):
        with pytest.raises(ValueError, match="numbers per head"):
            rotate_scores(moments(drawn(2, 9), drawn(2, 9), OWN), OWN, kept)


def test_heads_of_nothing_are_no_obstacle() -> None:
    empty = np.zeros((1, 2, 20, SIZE))
    found = rotate_scores(moments(empty, drawn(2, 20), OWN), OWN, 2)
    assert np.isfinite(found.query).all()
    assert np.isfinite(found.key).all()
    assert found.loss == 0


@pytest.mark.parametrize("groups", [OWN, SHARED])
def test_moments_are_those_of_the_divergence(groups: Sequence[int]) -> None:
    """Where all queries of a head are alike the divergence's second order is exactly their product."""
    query, key = drawn(len(groups), 1).repeat(3, axis=2), drawn(2, 8, seed=2)
    scores = query[0] @ key[0][list(groups)].swapaxes(1, 2)
    raised = np.exp(scores - scores.max(axis=2, keepdims=True))
    p = raised / raised.sum(axis=2, keepdims=True)
    found = score_moments(query, key, groups, p[None])
    assert found.count == 3
    maps = rotate_scores(found, groups, 2)
    change = np.eye(SIZE) - maps.query.swapaxes(1, 2) @ maps.key[list(groups)]
    if len(groups) == 2:
        error = query[0] @ change @ key[0].swapaxes(1, 2)
        spread = np.sum(p * error**2, axis=2) - np.sum(p * error, axis=2) ** 2
        whole = np.sum(p * scores**2, axis=2) - np.sum(p * scores, axis=2) ** 2
        assert maps.loss == pytest.approx(spread.sum() / whole.sum(), rel=1e-6, abs=1e-9)
    shifted = score_moments(query, key + RNG.normal(size=SIZE), groups, p[None])
    np.testing.assert_allclose(shifted.key, found.key, atol=1e-9)


def test_padding_is_left_out_and_parts_add_up() -> None:
    query, key = drawn(2, 6), drawn(2, 6, seed=2)
    p = np.tile(np.array([0.25, 0.25, 0.25, 0.25, 0, 0]), (1, 2, 6, 1))
    p[:, :, 4:] = 0
    padded, real = score_moments(query, key, OWN, p), score_moments(query[:, :, :4], key[:, :, :4], OWN)
    np.testing.assert_allclose(padded.key, real.key)
    np.testing.assert_allclose(padded.query, real.query)
    other = score_moments(drawn(2, 5), drawn(2, 5, seed=2), OWN)
    both = real + other
    assert both.count == 9
    np.testing.assert_allclose(both.key, (4 * real.key + 5 * other.key) / 9)


PAIRS = np.array([[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize("common", [True, False])
def test_pairs_stay_by_what_the_scores_lose(common: bool) -> None:
    query, key = drawn(2, 300), drawn(2, 200, seed=2)
    found = pair_order(moments(query, key, OWN), PAIRS, common=common)
    scores = query[0] @ key[0].swapaxes(1, 2)
    for kept in range(4):
        at = found.coordinates(kept)
        assert at.shape == (2, 2 * kept)
        less = np.stack([query[0, h][:, at[h]] @ key[0, h][:, at[h]].T for h in (0, 1)])
        lost = np.sum((scores - less) ** 2) / np.sum(scores**2)
        assert found.losses[kept] == pytest.approx(lost, rel=1e-6, abs=1e-9)
    assert (np.diff(found.losses) <= 1e-12).all()
    if common:
        assert (found.order == found.order[0]).all()
        assert (found.coordinates(2) == np.sort(PAIRS[found.order[0, :2]].reshape(-1))).all()


def test_the_first_pair_that_goes_is_the_best_of_all() -> None:
    query, key = drawn(2, 300), drawn(2, 200, seed=2)
    of = moments(query, key, OWN)
    found = pair_order(of, PAIRS)
    forms = of.query * of.key
    lost = [forms[:, pair[:, None], pair].sum() / forms.sum() for pair in PAIRS]
    assert found.losses[2] == pytest.approx(min(lost))
    assert found.order[0, 2] == int(np.argmin(lost))
