"""Paired differences: the interval holds the truth about as often as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bench.corpus import Corpus
from bench.intervals import answers_changed, paired_difference, paired_rate, shown


def test_interval_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        before = (rng.random(400) < 0.9).astype(float)
        flips = rng.random(400) < 0.05
        after = np.where(flips, 1 - before, before)
        found = paired_difference(before, after)
        truth = 0.05 * (0.1 - 0.9)
        covered += found.low <= truth <= found.high
    assert 50 <= covered <= 60


def test_no_difference_has_an_interval_of_nothing() -> None:
    scores = np.array([31.5, 28.0, 30.0])
    found = paired_difference(scores, scores)
    assert (found.mean, found.low, found.high, found.n) == (0, 0, 0, 3)


def test_answers_of_which_none_has_changed_leave_room_for_some() -> None:
    found = paired_difference(np.ones(500), np.ones(500))
    assert (found.mean, found.lost, found.won) == (0, 0, 0)
    # Where one answer in 150 changes for the worse, 500 images show none of them in 1 of 28 cases.
    assert -1 / 120 < found.low < -1 / 250
    assert found.high == -found.low


def test_answers_are_counted_in_both_directions() -> None:
    before, after = np.array([1.0, 1, 1, 0, 0]), np.array([1.0, 0, 0, 1, 0])
    found = paired_difference(before, after)
    assert (found.lost, found.won, found.n) == (2, 1, 5)
    assert found.mean == pytest.approx(-0.2)
    assert found.low < found.mean < found.high


def test_what_is_recorded_is_shown_and_what_is_not_is_said() -> None:
    found = paired_difference(np.array([30.0, 31.0, 29.0]), np.array([29.0, 31.0, 28.5]))
    assert shown(found.mean, found.to_json(), unit=" dB") == found.text(unit=" dB")
    answers = answers_changed(1000, 5, 2)
    assert shown(answers.mean, answers.to_json(), scale=100, unit=" points").startswith("-0.30 points (-0.")
    assert shown(-0.0018, None, scale=100, unit=" points") == "-0.18 points (interval not measured)"


def test_scores_of_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference(np.ones(3), np.ones(4))


def test_the_text_says_the_interval() -> None:
    found = paired_difference(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0]))
    assert found.text(100).startswith("-25.00 (")


def test_an_evaluation_keeps_the_scores_of_every_sample_in_pairs(corpus: Path, tmp_path: Path) -> None:
    opened = Corpus(corpus)
    model = onnx.load(opened.model("resnet20_cifar10"))
    classifier = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    classifier.CopyFrom(onnx.numpy_helper.from_array(np.zeros(classifier.dims, np.float32), classifier.name))
    onnx.save(model, tmp_path / "blind.onnx")
    found = opened.evaluate("resnet20_cifar10", tmp_path / "blind.onnx", most=100)
    change, before, after = found["change"], found["original"]["top1"], found["metric"]["top1"]
    assert change["n"] == 100
    assert change["mean"] == pytest.approx(after - before)
    assert change["mean"] < change["high"] < -0.5
    assert "change" not in opened.evaluate("resnet20_cifar10", most=2)


def test_a_rate_of_errors_counts_long_samples_for_more() -> None:
    words = np.array([10.0, 30.0, 10.0, 50.0])
    found = paired_rate(np.array([1.0, 0, 0, 0]), np.array([0.0, 3, 0, 5]), words)
    assert found.mean == pytest.approx(7 / 100)
    assert -0.1 <= found.low < found.mean < found.high <= 0.1
    with pytest.raises(ValueError, match="no pairs"):
        paired_rate(np.zeros(3), np.zeros(4), words)
