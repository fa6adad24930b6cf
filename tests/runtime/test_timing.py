from __future__ import annotations

import itertools
import time
from functools import partial

import numpy as np
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.runtime.timing import (
    LOOKS,
    MIN_ROUNDS,
    Ratio,
    clock_of,
    interleave,
    ratio_of_medians,
    summarise,
)


def test_every_round_runs_every_model_once_in_the_recorded_order() -> None:
    log: list[int] = []
    runs = [lambda index=index: log.append(index) for index in range(3)]
    timings = interleave(runs, iterations=20, warmup=2, seed=1)
    assert log[:6] == [0, 1, 2] * 2
    assert tuple(log[6:]) == tuple(itertools.chain(*timings.order))
    assert all(sorted(turn) == [0, 1, 2] for turn in timings.order)
    assert len(set(timings.order)) > 1
    assert timings.samples.shape == (3, 20)
    assert timings.order == interleave(runs, iterations=20, seed=1).order


def test_samples_belong_to_their_runs_and_the_duration_ends_it() -> None:
    now = 0

    def wait(amount: int) -> None:
        nonlocal now
        now += amount

    runs = [lambda: wait(10), lambda: wait(30)]
    timings = interleave(runs, duration=1e-6, warmup=0, clock=lambda: now)
    assert timings.samples.tolist() == [[10] * 25, [30] * 25]
    short = interleave(runs, duration=1e-9, clock=lambda: now)
    assert len(short.order) == MIN_ROUNDS


def test_what_a_run_has_waited_for_counts_for_the_end_alone() -> None:
    now = worked = 0

    def run() -> None:
        nonlocal now, worked
        now, worked = now + 100, worked + 10

    timings = interleave([run, run], duration=2e-6, warmup=0, clock=lambda: now, meter=lambda: worked)
    assert timings.samples.tolist() == [[10] * 10, [10] * 10]


def test_only_a_single_thread_of_the_processor_is_asked_what_it_has_run_for() -> None:
    assert clock_of("cpu", 2) is clock_of("cpu", 0) is clock_of("cuda", 1) is time.perf_counter_ns
    alone = clock_of("cpu", 1)
    before = alone(), time.perf_counter_ns()
    for _ in range(20):
        time.sleep(1e-3)
    ran, passed = alone() - before[0], time.perf_counter_ns() - before[1]
    assert (ran < passed / 2) == (alone is time.thread_time_ns)


def test_summary() -> None:
    summary = summarise(np.arange(1, 102) * 1_000_000)
    assert (summary.unit, summary.count, summary.min, summary.p50, summary.p90) == ("ms", 101, 1, 51, 91)
    assert (summary.p95, summary.p99, summary.mean) == (96, 100, 51)
    assert summary.stdev == pytest.approx(np.std(np.arange(101), ddof=1))


def test_the_interval_covers_the_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        load = rng.lognormal(0, 0.5, 150)  # a disturbance that both models of a round share
        a = 0.8 * load * rng.lognormal(0, 0.1, 150)
        b = load * rng.lognormal(0, 0.1, 150)
        ratio = ratio_of_medians(a, b, resamples=300, seed=seed)
        assert ratio.low <= ratio.value <= ratio.high
        covered += ratio.low <= 0.8 <= ratio.high
    assert covered >= 51  # 57 expected; below 51 has a chance of about one in a hundred


def test_a_clear_difference_excludes_one() -> None:
    rng = np.random.default_rng(0)
    ratio = ratio_of_medians(5 + rng.random(100), 10 + rng.random(100))
    assert ratio.high < 0.7


def test_pairs_cancel_what_rounds_share() -> None:
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 1, 200)
    paired = ratio_of_medians(load * 0.9, load)
    assert paired.low == pytest.approx(0.9)
    assert paired.high == pytest.approx(0.9)


def test_one_round_has_no_interval() -> None:
    ratio = ratio_of_medians(np.array([2]), np.array([4]))
    assert ratio.value == 0.5
    assert np.isnan(ratio.low)


def test_runs_before_the_timed_one_are_fewer_the_longer_they_are() -> None:
    now = 0
    log: list[int] = []

    def wait(amount: int) -> None:
        nonlocal now
        now += amount
        log.append(amount)

    amounts = (1_000, 10_000_000, 100_000_000)
    runs = [partial(wait, amount) for amount in amounts]
    timings = interleave(runs, iterations=6, warmup=1, rest=1e-6, before=4, clock=lambda: now)
    assert timings.samples.tolist() == [[amount] * 6 for amount in amounts]
    assert [log.count(amount) - 7 for amount in amounts] == [6 * 4, 6 * 1, 0]


def test_what_is_undecided_is_timed_on_until_it_is_or_a_limit() -> None:
    now = 0

    def wait() -> None:
        nonlocal now
        now += 1_000_000

    def rounds(decided_at: int) -> tuple[int, list[int]]:
        looks: list[int] = []

        def decided(samples: Array) -> bool:
            looks.append(len(samples[0]))
            return len(samples[0]) >= decided_at

        timings = interleave(
            [wait, wait], duration=0.1, limit=1.5, decided=decided, warmup=0, clock=lambda: now
        )
        return len(timings.order), looks

    assert rounds(1) == (50, [50])
    assert rounds(300) == (400, [50, 100, 200, 400])
    ended, looks = rounds(10_000)
    assert ended == 750
    assert len(looks) < LOOKS
    assert len(interleave([wait, wait], duration=0.1, limit=1.5, warmup=0, clock=lambda: now).order) == 50


def test_a_ratio_is_decided_where_it_is_a_gain_or_none_worth_the_name() -> None:
    ratios = [Ratio(0.9, 0.8, 0.99, 0.95), Ratio(1.1, 0.995, 1.3, 0.95), Ratio(0.99, 0.95, 1.01, 0.95)]
    assert [ratio.decided for ratio in ratios] == [True, True, False]
    assert not ratio_of_medians(np.array([2]), np.array([4])).decided
