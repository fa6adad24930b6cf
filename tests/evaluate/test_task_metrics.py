"""The metrics that are built in, against values that were computed by hand, and what a perfect model gets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.base import Batch, ModelRun, Score
from onnxdecomp.evaluate.task_metrics.embeddings import ranks
from onnxdecomp.evaluate.task_metrics.interval import interval
from onnxdecomp.evaluate.task_metrics.registry import BUILT_IN, task_metric
from onnxdecomp.evaluate.task_metrics.text import collapsed, edits


class Given(ModelRun):
    """Outputs that are given, in one batch or one by one."""

    def __init__(
        self, new: Any, *, original: Any = None, labels: Any = None, mask: Any = None, each: int = 1000
    ) -> None:
        self.new, self.original = np.asarray(new), None if original is None else np.asarray(original)
        self.labels = None if labels is None else np.asarray(labels)
        self.mask, self.each = None if mask is None else np.asarray(mask, bool), each
        self.feeds = Feeds((), "given", self.labels)

    @property
    def session(self) -> Any:
        raise NotImplementedError

    def batches(self) -> Iterator[Batch]:
        for start in range(0, len(self.new), self.each):
            rows = slice(start, start + self.each)
            originals = {} if self.original is None else {"y": self.original[rows]}
            labels = None if self.labels is None else self.labels[rows]
            yield Batch(
                {}, {"y": self.new[rows], "ids": np.zeros(3, np.int64)}, originals, labels, self.real(rows)
            )

    def real(self, rows: slice) -> Any:
        def of(name: str, shape: tuple[int, ...]) -> Array | None:
            assert name == "y"
            if self.mask is None:
                return None
            mask = self.mask[rows]
            return np.broadcast_to(mask.reshape(*mask.shape, *(1,) * (len(shape) - mask.ndim)), shape)

        return of


def measured(name: str, new: Any, **given: Any) -> Score:
    whole = task_metric(name).score(Given(new, **given))
    apart = task_metric(name).score(Given(new, **given, each=2))
    assert apart.value == pytest.approx(whole.value)
    return whole


def test_top1_is_the_share_of_labels_that_have_the_largest_score() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    found = measured("top1", scores, labels=[1, 0, 0, 1])
    assert found.value == 0.5
    assert found.samples is not None
    assert found.samples.tolist() == [1, 1, 0, 0]


def test_psnr_of_pictures_in_bytes_and_in_fractions() -> None:
    wanted = np.zeros((2, 1, 2, 2))
    wanted[0, 0, 0, 0] = 200.0
    found = measured("psnr", wanted + [[[[5.0]]], [[[10.0]]]], labels=wanted)
    by_hand = [20 * math.log10(255) - 10 * math.log10(25), 20 * math.log10(255) - 10 * math.log10(100)]
    assert found.samples is not None
    assert found.samples.tolist() == pytest.approx(by_hand)
    assert found.value == pytest.approx(sum(by_hand) / 2)
    assert measured("psnr", wanted / 255 + 0.1, labels=wanted / 255).value == pytest.approx(20.0)
    flat = np.full((1, 4), -1.0)  # no range: its size
    assert measured("psnr", flat, original=flat).value == 100
    assert measured("psnr", flat + 0.1, original=flat).value == pytest.approx(20.0)
    wide = np.array([[-3.0, 5.0]])  # a peak of 8
    assert measured("psnr", wide + 0.8, original=wide).value == pytest.approx(20.0)
    spectrum = np.array([[0.5, 2.0], [30.5, 7.25]])  # within 0 and 255, and no picture in bytes
    assert measured("psnr", spectrum + 3.0, original=spectrum).value == pytest.approx(20.0)


def spearman(one: Array, two: Array) -> float:
    return float(scipy.stats.spearmanr(one, two).statistic)


def test_spearman_with_ratings_of_pairs() -> None:
    """Four pairs at angles of 0, 30, 60 and 90 degrees; two ratings are in the wrong order."""
    angles = np.deg2rad([0, 30, 60, 90])
    embeddings = np.zeros((8, 2))
    embeddings[::2] = [1, 0]
    embeddings[1::2] = np.stack([np.cos(angles), np.sin(angles)], 1)
    in_order = np.repeat([5.0, 4.0, 2.0, 0.5], 2)
    assert measured("spearman", embeddings, labels=in_order).value == 1.0
    swapped = np.repeat([5.0, 2.0, 4.0, 0.5], 2)
    assert measured("spearman", 7 * embeddings, labels=swapped).value == pytest.approx(0.8)  # 1 - 6*2/(4*15)
    assert measured("spearman", embeddings, labels=-in_order).value == pytest.approx(-1.0)


def test_spearman_of_means_over_real_positions() -> None:
    draw = np.random.default_rng(0)
    states, mask = draw.normal(size=(6, 4, 3)), np.ones((6, 4), bool)
    mask[:, 2:] = [[k % 2 == 0, False] for k in range(6)]
    padded = np.where(mask[..., None], states, 1e3 * draw.normal(size=states.shape))
    assert measured("spearman", padded, original=states, mask=mask).value == 1.0
    assert measured("spearman", padded, original=states).value < 0.9
    pooled = np.stack([row[own].mean(0) for row, own in zip(states, mask, strict=True)])
    assert measured("spearman", pooled, original=pooled).value == 1.0


def test_spearman_with_the_original_is_the_mean_over_the_samples() -> None:
    draw = np.random.default_rng(1)
    new, old = draw.normal(size=(2, 9, 5))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (new, old)]
    by_hand = [spearman(*(np.delete(rows[k] @ rows.T, k) for rows in unit)) for k in range(9)]
    assert measured("spearman", new, original=old).value == pytest.approx(np.mean(by_hand))


@given(arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 5)))
def test_ranks_of_equal_numbers_are_the_mean_of_theirs(values: Array) -> None:
    assert ranks(values).tolist() == scipy.stats.rankdata(values).tolist()


def test_token_agreement_counts_real_positions() -> None:
    original = np.zeros((2, 3, 2))
    original[..., 0] = 1
    new = original.copy()
    new[0, 0], new[1, 2] = [0, 1], [0, 1]
    assert measured("token-agreement", new, original=original).value == pytest.approx(4 / 6)
    mask = [[1, 1, 0], [1, 1, 0]]
    assert measured("token-agreement", new, original=original, mask=mask).value == pytest.approx(3 / 4)
    assert measured("token-agreement", new[:, 0, :, None], original=original[:, 0, :, None]).value == 0.5


def test_kl_of_scores_and_of_probabilities() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    by_hand = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    rows = {"original": np.array([p, p, p]), "new": np.array([q, p, q])}
    assert measured("kl", rows["new"], original=rows["original"]).value == pytest.approx(2 / 3 * by_hand)
    scores = {name: np.log(values) + [[3.0], [-4.0], [0.5]] for name, values in rows.items()}
    assert measured("kl", scores["new"], original=scores["original"]).value == pytest.approx(2 / 3 * by_hand)
    assert task_metric("kl").lower_is_better


def test_wer_and_cer_of_texts() -> None:
    wanted, found = ["the cat sat", "on a mat"], ["the cat sat down", "on mat"]
    assert measured("wer", found, labels=wanted).value == pytest.approx(2 / 6)
    assert measured("cer", found, labels=wanted).value == pytest.approx((5 + 2) / (11 + 8))
    assert measured("cer", np.array(found, object)[:, None], labels=wanted).value == pytest.approx(7 / 19)
    assert task_metric("wer").lower_is_better


def test_cer_of_tokens_and_of_scores_that_are_collapsed() -> None:
    wanted = np.array([[3, 1, 2, -1], [2, 2, -1, -1]])
    tokens = np.array([[3, 1, 2, -1, -1], [2, 1, 1, -1, -1]])
    assert measured("cer", tokens, labels=wanted).value == pytest.approx(2 / 5)
    paths = [[3, 3, 0, 1, 2], [2, 2, 0, 2, 0]]
    assert [collapsed(np.array(path)) for path in paths] == [[3, 1, 2], [2, 2]]
    scores = np.eye(4)[np.array(paths)]
    assert measured("wer", scores, labels=wanted).value == 0.0
    assert measured("cer", scores[::-1], labels=wanted).value == pytest.approx((2 + 2) / 5)


@pytest.mark.parametrize(
    ("one", "two", "count"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("ab", "ba", 2),
    ],
)
def test_edits(one: str, two: str, count: int) -> None:
    assert edits(one, two) == edits(two, one) == count
    assert edits([*one], [*two]) == count


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edits_are_a_distance(one: str, two: str, three: str) -> None:
    assert (edits(one, two) == 0) == (one == two)
    assert edits(one, three) <= edits(one, two) + edits(two, three)
    assert abs(len(one) - len(two)) <= edits(one, two) <= max(len(one), len(two))


BEST: Mapping[str, float] = {"psnr": 100.0, "spearman": 1.0, "token-agreement": 1.0, "kl": 0.0}


@pytest.mark.parametrize("name", BEST)
@given(arrays(np.float32, (5, 4), elements=st.floats(-10, 10, width=32)))
def test_the_original_itself_gets_the_best(name: str, outputs: Array) -> None:
    found = measured(name, outputs, original=outputs)
    assert found.value == pytest.approx(BEST[name], abs=1e-9)
    other = measured(name, outputs[:, ::-1], original=outputs)
    metric = task_metric(name)
    assert metric.loss(found.value, other.value) >= -1e-9
    assert metric.loss(other.value, found.value) <= 1e-9


@pytest.mark.parametrize(
    ("name", "new", "given", "says"),
    [
        ("top1", np.zeros((4, 2)), {}, "needs labels"),
        ("top1", np.zeros((4, 2)), {"labels": [0, 1, 1]}, "3 labels do not fit 4 rows"),
        ("top1", np.zeros((4, 2, 2)), {"labels": [0] * 4}, "no scores of classes"),
        ("top1", np.zeros((4, 2)), {"labels": ["a"] * 4}, "labels are class indices"),
        ("top1:z", np.zeros((4, 2)), {"labels": [0] * 4}, "outputs are y, ids"),
        ("top1:ids", np.zeros((4, 2)), {"labels": [0] * 4}, "'ids' is none"),
        ("psnr", np.zeros((4, 2)), {"labels": [0] * 4}, "are no references"),
        ("spearman", np.ones((4, 2)), {"labels": [1, 2, 3, 3]}, "labels rate pairs"),
        ("spearman", np.ones((4, 2)), {"labels": [1, 1, 3, 3]}, "at least 3 pairs, not 2"),
        ("spearman", np.ones((2, 2)), {"original": np.ones((2, 2))}, "at least 3 samples"),
        ("kl", np.ones((2, 2)), {"original": np.ones((2, 3))}, "has shape"),
        ("kl", np.ones((2, 1)), {"original": np.ones((2, 1))}, "holds no scores"),
        ("kl", np.ones((2, 2, 2)), {"original": np.ones((2, 2, 2)), "mask": np.zeros((2, 2))}, "padding"),
        ("wer", np.zeros((2, 3)), {"labels": ["a", "b"]}, "neither text, nor token"),
        ("wer", np.zeros((2, 3), np.int64), {"labels": ["a", "b"]}, "not both text"),
        ("cer", ["a", "b"], {"labels": ["", ""]}, "the labels are empty"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, new: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        task_metric(name).score(Given(new, **given))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_metric_has_a_summary_and_is_found_by_its_name() -> None:
    for name, kind in BUILT_IN.items():
        assert task_metric(name) == kind()
        assert task_metric(f"{name}:y").name == f"{name}:y"
        assert kind.summary
    with pytest.raises(UsageError, match="did you mean 'spearman'"):
        task_metric("spearmann")


def scores(values: Sequence[float], weights: Sequence[float] | None = None) -> Score:
    held, of = np.array(values, float), None if weights is None else np.array(weights, float)
    return Score(float(held.sum() / (len(held) if of is None else of.sum())), held, of)


def test_intervals_of_right_answers_are_not_empty_where_none_changed() -> None:
    same = interval(scores([1] * 100), scores([1] * 100))
    assert same is not None
    assert -0.03 < same[0] < 0 < same[1] < 0.03
    worse = interval(scores([1] * 100), scores([0] * 30 + [1] * 70))
    assert worse is not None
    assert worse[0] == pytest.approx(-0.39, abs=0.02)
    assert worse[1] == pytest.approx(-0.20, abs=0.02)


def test_intervals_of_means_and_rates_hold_the_change() -> None:
    draw = np.random.default_rng(0)
    before, more = draw.normal(30, 5, 200), draw.normal(-0.5, 1, 200)
    found = interval(scores(before.tolist()), scores((before + more).tolist()))
    assert found is not None
    half = 1.96 * more.std() / math.sqrt(200)
    assert found == pytest.approx((more.mean() - half, more.mean() + half), abs=0.03)
    lengths = draw.integers(1, 9, 50).astype(float)
    rate = interval(scores([0] * 50, lengths.tolist()), scores((lengths / 4).tolist(), lengths.tolist()))
    assert rate == pytest.approx((0.25, 0.25))


def test_no_interval_where_nothing_tells_it() -> None:
    assert interval(Score(0.5), Score(0.4)) is None
    assert interval(scores([1, 2]), scores([1, 2, 3])) is None
    assert interval(scores([1, 2], [1, 1]), scores([1, 2], [1, 2])) is None


def test_the_interval_of_a_correlation_is_drawn() -> None:
    draw = np.random.default_rng(0)
    ratings = draw.normal(size=60)
    made = [np.stack([np.ones(60), ratings + noise * draw.normal(size=60)], 1) for noise in (0.1, 1.5)]
    found = []
    for second in made:
        embeddings = np.zeros((120, 2))
        embeddings[::2], embeddings[1::2] = [0, 1], second
        found.append(measured("spearman", embeddings, labels=np.repeat(ratings, 2)))
    ends = interval(*found)
    assert ends is not None
    assert ends[0] < found[1].value - found[0].value < ends[1] < 0
