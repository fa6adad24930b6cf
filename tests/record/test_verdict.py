from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from onnxdecomp.record.schema.checks import Numbers, RecordedMetric
from onnxdecomp.record.schema.timing import Speedup
from onnxdecomp.record.verdict import judged


def faster(value: float, low: float, high: float, *, batch: int = 1, threads: int = 2) -> Speedup:
    return Speedup(
        value=value, low=low, high=high, confidence=0.95, provider="cpu", batch=batch, threads=threads
    )


NUMBERS = Numbers(
    speedup=faster(2.4, 2.3, 2.5), smaller=1.9, fewer_params=2.0, fewer_macs=3.0, accuracy=None, error=0.01
)


def numbers(speed: tuple[float, float, float] | None, **other: Any) -> Numbers:
    return replace(NUMBERS, speedup=None if speed is None else faster(*speed), **other)


@pytest.mark.parametrize(
    ("speed", "worth", "because"),
    [
        ((2.4, 2.3, 2.5), True, []),
        ((1.02, 0.99, 1.05), False, ["it is no faster than the original beyond the uncertainty"]),
        ((0.8, 0.7, 0.9), False, ["it is slower than the original"]),
        ((1.16, 0.93, 1.39), None, ["whether it is faster is undecided: the machine was too noisy"]),
        ((0.9, 0.7, 1.1), False, ["it is no faster than the original beyond the uncertainty"]),
        (None, True, ["latency was not measured"]),
    ],
)
def test_what_is_worth_it(
    speed: tuple[float, float, float] | None, worth: bool | None, because: list[str]
) -> None:
    found = judged(numbers(speed))
    assert found.worth is worth
    assert all(given.startswith(said) for given, said in zip(found.because, because, strict=False))
    assert len(found.because) >= len(because)
    assert found.text.startswith("Not worth it for speed: ") is not worth


def test_the_sentence() -> None:
    found = judged(numbers((2.412, 2.3, 2.5), accuracy=-0.006))
    assert found.text == "2.41x as fast on CPU, 1.90x smaller, 3.00x fewer MACs, −0.60 points of accuracy."
    found = judged(numbers((2.412, 2.3, 2.5), smaller=0.5))
    assert "2.00x larger" in found.text
    assert "output error 0.01" in found.text


def test_neither_faster_nor_smaller() -> None:
    assert judged(numbers(None, smaller=0.9)).worth is False


def test_a_wide_interval_is_told_in_place_of_its_value() -> None:
    found = judged(numbers((2.7, 2.2, 3.4)))
    assert found.worth is True
    assert found.text.startswith("2.20 to 3.40x as fast on CPU")
    assert "disturbed" in found.because[0]


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        ((30.7, 3.71, 199.55), "Faster on CPU, by how much is undecided (3.71 to 199.55x), "),
        ((1.1, 0.4, 3.0), "Faster or slower on CPU, by how much is undecided (0.40 to 3.00x), "),
    ],
)
def test_a_factor_that_nobody_could_time_is_undecided(speed: tuple[float, float, float], said: str) -> None:
    assert judged(numbers(speed)).text.startswith(said)


def test_settings_in_which_nothing_is_won_are_named() -> None:
    everywhere = [
        faster(2.4, low, 3.0, batch=batch, threads=1) for batch, low in ((1, 2.3), (4, 1.5), (16, 0.9))
    ]
    found = judged(numbers((2.4, 2.3, 2.5)), everywhere)
    assert found.because == ("it is not shown to be faster on CPU, batch 16, 1 thread",)


def test_speed_for_much_accuracy_is_left_open() -> None:
    found = judged(numbers((2.4, 2.3, 2.5), accuracy=-0.045))
    assert (found.worth, found.because) == (
        None,
        ("whether that is worth 4.50 points of accuracy is open",),
    )
    assert found.text.startswith("2.40x as fast")
    assert judged(numbers((0.8, 0.7, 0.9), accuracy=-0.045)).worth is False


METRIC = RecordedMetric(
    name="spearman",
    samples=80,
    labels=True,
    original=0.82,
    new=0.81,
    change=-0.01,
    low=-0.02,
    high=0.001,
    loss=0.01,
    lower_is_better=False,
    points=False,
)


def test_a_metric_stands_in_place_of_the_error() -> None:
    found = judged(numbers((2.4, 2.3, 2.5), metric=METRIC))
    assert found.text.endswith("3.00x fewer MACs, spearman 0.81 (−0.01).")
    assert found.worth is True
    broken = replace(METRIC, new=None, change=None, loss=None)
    assert judged(numbers((2.4, 2.3, 2.5), metric=broken)).text.endswith("spearman no number.")


def test_speed_for_many_points_of_a_metric_is_left_open() -> None:
    dear = replace(
        METRIC, name="token-agreement", original=1.0, new=0.95, change=-0.05, loss=0.05, points=True
    )
    found = judged(numbers((2.4, 2.3, 2.5), metric=dear))
    assert (found.worth, found.because) == (
        None,
        ("whether that is worth 5.00 points of token-agreement is open",),
    )
    assert judged(numbers((2.4, 2.3, 2.5), metric=replace(dear, points=False))).worth is True
