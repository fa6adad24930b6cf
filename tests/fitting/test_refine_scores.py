"""Maps of queries and keys fitted to the pairs that meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from onnxdecomp.fitting.refine_scores import AttentionSample, attention_loss, refine_scores
from onnxdecomp.fitting.rotate_scores import ScoreMaps, rotate_scores, score_moments

SIZE = 6
OWN, SHARED = (0, 1), (0, 0, 1, 1)


def samples(groups: Sequence[int], count: int, seed: int, *, alike: float = 1.0) -> list[AttentionSample]:
    """Attention of samples whose queries and keys lie near one of four subspaces, `alike` of it."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(7)
    subjects = fixed.normal(size=(4, SIZE, 2)) @ fixed.normal(size=(4, 2, SIZE)) * alike
    subjects = subjects + (1 - alike + 0.1) * fixed.normal(size=(SIZE, SIZE))
    wq, wk = fixed.normal(size=(len(groups), SIZE, SIZE)), fixed.normal(size=(2, SIZE, SIZE))
    found = []
    for index in range(count):
        rows = rng.normal(size=(5 + index % 3, SIZE)) @ subjects[index % 4] / 4
        query, key = rows @ wq, rows @ wk
        scores = query @ key[list(groups)].swapaxes(1, 2)
        p = np.exp(scores - scores.max(axis=2, keepdims=True))
        found.append(AttentionSample(query, key, p / p.sum(axis=2, keepdims=True)))
    return found


def closed(found: Sequence[AttentionSample], groups: Sequence[int], kept: int) -> ScoreMaps:
    parts = [score_moments(s.query[None], s.key[None], groups, s.probabilities[None]) for s in found]
    return rotate_scores(sum(parts[1:], parts[0]), groups, kept)


@pytest.mark.parametrize("groups", [OWN, SHARED])
@pytest.mark.parametrize("kept", [2, 4])
def test_less_is_lost_on_pairs_that_meet(groups: Sequence[int], kept: int) -> None:
    train, held_out, others = (samples(groups, 60, seed) for seed in (0, 1, 2))
    start = closed(train, groups, kept)
    found = refine_scores(start, train, held_out, groups)
    was, now = (attention_loss(maps, others, groups).mean() for maps in (start, found))
    assert now < 0.9 * was
    assert found.loss == pytest.approx(attention_loss(found, [*train, *held_out], groups).mean())
    assert found.query.shape == (len(groups), kept, SIZE)
    assert found.key.shape == (2, kept, SIZE)


def test_the_loss_is_that_of_the_divergence() -> None:
    """To second order: maps that change little, of which half the variance is what p diverges by."""
    some = samples(OWN, 8, 0)
    rng = np.random.default_rng(5)
    near = np.eye(SIZE) + 1e-3 * rng.normal(size=(2, SIZE, SIZE))
    maps = ScoreMaps(near, np.tile(np.eye(SIZE), (2, 1, 1)), 0.0)
    diverged, whole = np.zeros(2), np.zeros(2)
    for one in some:
        scores = one.query @ one.key.swapaxes(1, 2)
        new = np.exp(one.query @ near.swapaxes(1, 2) @ one.key.swapaxes(1, 2))
        new /= new.sum(axis=2, keepdims=True)
        p = one.probabilities
        diverged += 2 * np.sum(p * np.log(p / new), axis=(1, 2))
        whole += np.sum(p * scores**2, axis=(1, 2)) - np.sum(np.sum(p * scores, axis=2) ** 2, axis=1)
    np.testing.assert_allclose(attention_loss(maps, some, OWN), diverged / whole, rtol=0.02)


def seen(some: Sequence[AttentionSample], seed: int = 3) -> list[AttentionSample]:
    """The samples behind layers that have lost something: the original's scores are wanted."""
    rng = np.random.default_rng(seed)
    turns = np.eye(SIZE) + 0.4 * rng.normal(size=(2, SIZE, SIZE))
    return [
        AttentionSample(s.query @ turns[0], s.key @ turns[1], s.probabilities, (s.query, s.key)) for s in some
    ]


@pytest.mark.parametrize("kept", [4, SIZE])
def test_the_scores_of_the_original_are_come_up_to(kept: int) -> None:
    """What layers before have lost is made up for as far as maps can, on samples not fitted to."""
    train, held_out, others = (seen(samples(OWN, 60, seed)) for seed in (0, 1, 2))
    start = closed(train, OWN, kept)
    found = refine_scores(start, train, held_out, OWN)
    few, more = ([replace(sample, wanted=None) for sample in some] for some in (train, held_out))
    own = refine_scores(start, few, more, OWN)
    was, blind, now = (attention_loss(maps, others, OWN).mean() for maps in (start, own, found))
    assert now < 0.7 * min(was, blind)
    assert found.held_out == pytest.approx(attention_loss(found, held_out, OWN).mean())


def test_maps_that_do_no_better_elsewhere_are_not_taken() -> None:
    """Two samples to fit to, others of another kind."""
    train, held_out = samples(OWN, 2, 0), samples(OWN, 40, 1, alike=0.0)
    start = closed(held_out, OWN, 3)
    found = refine_scores(start, train, held_out, OWN)
    was, now = (attention_loss(maps, held_out, OWN) for maps in (start, found))
    assert (now <= was).all()
    assert (found.key == start.key).all(axis=(1, 2)).any()


def test_exact_maps_stay_exact_and_padding_does_not_count() -> None:
    train, held_out = samples(OWN, 12, 0), samples(OWN, 12, 1)
    whole = ScoreMaps(np.tile(np.eye(SIZE), (2, 1, 1)), np.tile(np.eye(SIZE), (2, 1, 1)), 0.0)
    found = refine_scores(whole, train, held_out, OWN)
    np.testing.assert_allclose(found.query.swapaxes(1, 2) @ found.key, [np.eye(SIZE)] * 2, atol=1e-9)
    (one,) = train[:1]
    longer = AttentionSample(
        np.pad(one.query, ((0, 0), (0, 2), (0, 0)), constant_values=9.0),
        np.pad(one.key, ((0, 0), (0, 2), (0, 0)), constant_values=9.0),
        np.pad(one.probabilities, ((0, 0), (0, 2), (0, 2))),
    )
    maps = closed(train, OWN, 3)
    np.testing.assert_allclose(attention_loss(maps, [longer], OWN), attention_loss(maps, [one], OWN))
    one_more = (refine_scores(maps, [*train[1:], s], held_out, OWN) for s in (one, longer))
    first, second = one_more
    np.testing.assert_allclose(first.query, second.query, rtol=1e-6, atol=1e-9)
