from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.latency.layer_shares import Share, Shares
from onnxdecomp.latency.measure import Timing
from onnxdecomp.latency.predict import part_of_whole, predicted_ms, predicted_ratio, prediction_error

fractions = st.floats(0, 1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Shares, list[Timing]]:
    parts = draw(st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
    scale = draw(fractions) / sum(parts)
    layers = tuple(Share(part * scale, draw(fractions)) for part in parts)
    timings = [Timing(1.0, draw(st.floats(0, 2)), draw(st.floats(0, 2))) for _ in parts]
    return Shares(10.0, layers), timings


@given(cases())
def test_what_stays_costs_what_it_cost(case: tuple[Shares, list[Timing]]) -> None:
    shares, timings = case
    same = [Timing(timing.dense_ms, 1.0, 1.0) for timing in timings]
    failed = [Timing(math.nan, math.nan, 0.5, "no reason") for _ in timings]
    for chosen in ([None] * len(timings), same, failed):
        assert predicted_ratio(shares, chosen) == pytest.approx(1)


@given(cases())
def test_layers_add_up(case: tuple[Shares, list[Timing]]) -> None:
    shares, timings = case
    others = 1 - sum(share.part for share in shares.layers)
    parts = [part_of_whole(share, timing) for share, timing in zip(shares.layers, timings, strict=True)]
    assert predicted_ratio(shares, timings) == pytest.approx(others + sum(parts))
    assert predicted_ms(shares, timings) == pytest.approx(10 * (others + sum(parts)))
    for share, timing, part in zip(shares.layers, timings, parts, strict=True):
        bounds = sorted((timing.ratio, timing.numbers))
        assert share.part * bounds[0] - 1e-12 <= part <= share.part * bounds[1] + 1e-12


def test_a_cold_layer_costs_what_its_numbers_do() -> None:
    timing = Timing(1.0, 0.5, 0.1)
    assert part_of_whole(Share(0.4, 0.0), timing) == pytest.approx(0.2)
    assert part_of_whole(Share(0.4, 1.0), timing) == pytest.approx(0.04)


def test_one_choice_for_each_layer() -> None:
    with pytest.raises(ValueError, match="zip"):
        predicted_ratio(Shares(1.0, (Share(0.5, 0),)), [])


def test_prediction_error() -> None:
    assert prediction_error(1.1, 1.0) == pytest.approx(0.1)
    assert prediction_error(0.4, 0.5) == pytest.approx(0.2)
