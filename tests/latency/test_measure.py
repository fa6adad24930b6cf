from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.latency import measure
from onnxdecomp.latency.cache import FILE, key_of, load, where
from onnxdecomp.latency.context import Neighbours
from onnxdecomp.latency.measure import MIN_ROUNDS, Request, time_chains
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.runtime.timing import ALONE_AFTER, Run, Timings
from tests.builders.layers import hollow_conv, hollow_linear

SHAPE = (1, 32, 6, 6)


def svd(layer: Layer, rank: int) -> Chain:
    return outline(get("svd"), layer, (rank,))


class Ticks:
    """Stands in for timing: the frame takes 1 ms, the dense layer 4 ms more, chains each 1 ms more."""

    def __init__(self) -> None:
        self.groups: list[int] = []

    def __call__(self, runs: Sequence[Run], seconds: float, rest: float, tells: Callable[[], int]) -> Array:
        assert min(seconds, rest, tells()) >= 0
        for run in runs:
            run()
        self.groups.append(len(runs) - 2)
        return np.array([1.0, 5.0, *(1.0 + index for index in range(len(runs) - 2))])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    made = Ticks()
    monkeypatch.setattr(measure, "typical_times", made)
    return made


def test_ratios_are_net_of_the_frame_and_in_the_order_asked_for(clock: Ticks) -> None:
    layer, other = hollow_conv(32, 32), hollow_conv(48, 32)
    asked = [
        Request(layer, svd(layer, 4), SHAPE),
        Request(other, svd(other, 4), SHAPE),
        Request(layer, svd(layer, 8), SHAPE),
        Request(layer, dense_chain(layer), SHAPE),
    ]
    seen: list[tuple[int, int]] = []
    timings = time_chains(asked, progress=lambda done, total: seen.append((done, total)))
    assert [timing.ratio for timing in timings] == [0.0, 0.0, 0.25, 1.0]
    assert [timing.dense_ms for timing in timings] == [4.0] * 4
    assert timings[2].ms == 1.0
    assert sorted(clock.groups) == [1, 2]
    assert seen == [(3, 4), (4, 4)]
    dense = dense_chain(layer).params
    assert [timing.numbers for timing in timings][2:] == [asked[2].chain.params / dense, 1.0]


def test_equal_chains_are_timed_once(clock: Ticks) -> None:
    layer = hollow_conv(32, 32)
    same = replace(layer, name="same")
    asked = [Request(named, svd(named, 4), SHAPE) for named in (layer, same)]
    asked.append(Request(layer, svd(layer, 4), SHAPE, Neighbours(True)))
    first, second, third = time_chains(asked)
    assert first == second
    assert clock.groups == [1, 1]
    assert not third.cached


def test_groups_are_small(clock: Ticks) -> None:
    layer = hollow_conv(32, 32)
    time_chains([Request(layer, svd(layer, rank), SHAPE) for rank in range(1, 31)])
    assert sum(clock.groups) == 30
    assert max(clock.groups) <= 16


def test_what_is_cached_is_not_timed_again(clock: Ticks, tmp_path: Path) -> None:
    file, layer = tmp_path / FILE, hollow_conv(32, 32)
    asked = [Request(layer, svd(layer, rank), SHAPE) for rank in (2, 4)]
    fresh = time_chains(asked, cache=file)
    again = time_chains([*asked, Request(layer, svd(layer, 6), SHAPE)], cache=file)
    assert [timing.cached for timing in fresh] == [False, False]
    assert again[:2] == [replace(timing, cached=True) for timing in fresh]
    assert not again[2].cached
    assert clock.groups == [2, 1]
    time_chains(asked, cache=file, setting=Setting(threads=2))
    assert clock.groups == [2, 1, 2]


def test_nothing_is_kept_of_a_device_without_a_name(
    clock: Ticks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxdecomp.runtime.environment.device", lambda provider: "unknown cpu device")
    layer = hollow_conv(32, 32)
    for _ in range(2):
        time_chains([Request(layer, svd(layer, 2), SHAPE)], cache=tmp_path / FILE)
    assert clock.groups == [1, 1]
    assert not (tmp_path / FILE).exists()


def test_a_cache_that_fails_is_a_note(clock: Ticks, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("no database")
    layer = hollow_conv(32, 32)
    notes: list[str] = []
    asked = [Request(layer, svd(layer, 2), SHAPE), Request(layer, svd(layer, 2), (2, *SHAPE[1:]))]
    timings = time_chains(asked, cache=tmp_path / FILE, note=notes.append)
    assert all(math.isfinite(timing.ratio) for timing in timings)
    assert [str(tmp_path / FILE) in note for note in notes] == [True, True]  # not read, and once not written


def test_what_cannot_be_timed_has_a_reason(clock: Ticks, tmp_path: Path) -> None:
    lstm = replace(hollow_linear(8, 8), op_type="LSTM")
    strange = replace(hollow_conv(32, 32), dtype="bfloat16")
    layer = hollow_conv(32, 32)
    refused, unknown, taken = time_chains(
        [
            Request(lstm, svd(lstm, 2), (2, 8)),
            Request(strange, svd(strange, 2), SHAPE),
            Request(layer, svd(layer, 2), SHAPE),
        ],
        cache=tmp_path / FILE,
    )
    assert "LSTM" in refused.reason
    assert "could not be measured" in unknown.reason
    assert math.isnan(refused.ratio)
    assert math.isnan(unknown.ms)
    assert taken.reason == ""
    on = where(Setting("cpu", 1))
    key = key_of(svd(strange, 2), dense_chain(strange), strange, SHAPE, Neighbours(), on)
    assert load([key], tmp_path / FILE) == ({}, None)


def test_nothing_to_time() -> None:
    assert time_chains([]) == []


def test_a_real_timing(tmp_path: Path) -> None:
    layer, shape = hollow_conv(64, 64), (1, 64, 16, 16)
    asked = [Request(layer, svd(layer, 16), shape, Neighbours(True, True, "Relu"))]
    (timing,) = time_chains(asked, cache=tmp_path / FILE, seconds=0.01)
    assert timing.dense_ms > 0
    assert timing.ratio >= 0
    (again,) = time_chains(asked, cache=tmp_path / FILE)
    assert again == replace(timing, cached=True)


def test_hopeless_chains_are_timed_twice_and_the_others_until_they_are_precise() -> None:
    count: Counter[str] = Counter()
    now = 0  # a clock of our own: sleeping takes longer than it should on a busy machine

    def run(name: str, seconds: float) -> Run:
        def once() -> None:
            nonlocal now
            count[name] += 1
            now += round(seconds * 1e9)

        return once

    runs = [run("frame", 1e-6), run("dense", 20e-3), run("slow", 80e-3), run("quick", 1e-3)]
    typical = measure.typical_times(runs, seconds=0.0, clock=lambda: now)
    rounds = 2 + MIN_ROUNDS
    short = rounds * (1 + ALONE_AFTER)
    assert count == {"frame": short, "dense": rounds * 2, "quick": short, "slow": 2}
    assert typical[2] > typical[1]
    assert len(typical) == 4


def test_a_noisy_group_is_timed_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []

    def noisy(runs: Sequence[Run], *, iterations: int, **_: object) -> object:
        rounds.append(iterations)
        rng = np.random.default_rng(len(rounds))
        return Timings(1e6 * rng.lognormal(0, 1, (len(runs), iterations)), ())

    monkeypatch.setattr(measure, "interleave", noisy)
    measure.typical_times([lambda: None] * 3, seconds=60)
    assert sum(rounds) == 2 + measure.MAX_ROUNDS
