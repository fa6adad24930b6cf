"""Timing on a shared machine: interleaved runs, order statistics, intervals from paired rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array

Run: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[], int]
"""Nanoseconds since some moment."""

MIN_ROUNDS = 5
"""Rounds however short the time is: fewer have no interval worth the name."""

_MAX_ROUNDS = 20_000

LOOKS = 5
"""Times that samples are looked at, at most, before timing ends because they say enough."""

NEGLIGIBLE = 0.01
"""A gain that is not told from none."""

ALONE_AFTER = 4
"""Runs in a row after which the next is as fast as if nothing else ran: seen with a network of 16 MB."""

_SHORT, _LONG = 5_000_000, 50_000_000
"""Nanoseconds of a run that takes all untimed runs before it, and of one to which they make no difference."""


@dataclass(frozen=True, eq=False)
class Timings:
    """Interleaved runs.

    Attributes:
        samples: [runs, rounds] nanoseconds.
        order: Per round, the indices of the runs in the order in which they ran.
    """

    samples: Array
    order: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Summary:
    """Order statistics of one model's latencies, in milliseconds.

    `quantiles` are those of 0, 1, … 100 %: the distribution in a bounded number of points.
    """

    unit: str
    count: int
    min: float
    mean: float
    stdev: float
    p50: float
    p90: float
    p95: float
    p99: float
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its confidence interval."""

    value: float
    low: float
    high: float
    confidence: float

    @property
    def decided(self) -> bool:
        """Whether the interval says that it is below 1, or not by more than is negligible."""
        return self.high < 1.0 or self.low > 1.0 - NEGLIGIBLE


def clock_of(provider: str, threads: int) -> Clock:
    """What tells how long a run takes.

    A single thread of the processor is asked how long it has run. The wall clock counts what it waits for
    other processes, too: with six of them for each core it gave two networks a ratio of 0.69 that is 0.94.

    Args:
        provider: The short name, see onnxdecomp.runtime.providers.
        threads: Threads within an operator.
    """
    # Elsewhere a thread's time moves on in steps of many milliseconds.
    fine = "clock_gettime" in time.get_clock_info("thread_time").implementation
    return time.thread_time_ns if fine and provider == "cpu" and threads == 1 else time.perf_counter_ns


def interleave(
    runs: Sequence[Run],
    *,
    duration: float = 2.0,
    iterations: int | None = None,
    warmup: int = 3,
    seed: int = 0,
    rest: float = 0.0,
    before: int = 0,
    limit: float = 0.0,
    decided: Callable[[Array], bool] | None = None,
    clock: Clock = time.perf_counter_ns,
    meter: Clock | None = None,
) -> Timings:
    """Time each of `runs` once per round, each round in a new random order.

    What disturbs the machine then disturbs all alike, and none always runs after the same other.

    Args:
        runs: What to time; each is run `warmup` times before.
        duration: Seconds after which no further round begins (at least MIN_ROUNDS are run).
        iterations: The number of rounds, in place of `duration`.
        warmup: Untimed runs of each.
        seed: Of the order.
        rest: Seconds of pause before each turn, in which the threads of the others go to sleep.
        before: Untimed runs at the beginning of each turn, where they are short: they wake the threads, and
            fetch into the caches what the others have driven out. A model served alone runs like the fifth.
        limit: Seconds after which it ends though nothing is decided.
        decided: Whether samples [runs, rounds] say what is to be known. It is asked after `duration`, and
            whenever the time has doubled, at most LOOKS times up to 16 durations: the chance of an error is
            that of all these looks together.
        clock: Tells when to end.
        meter: Tells how long a run takes, see `clock_of`; None: the same clock.
    """
    rng = np.random.default_rng(seed)
    for _ in range(warmup):
        for run in runs:
            run()
    samples: list[list[int]] = []
    order: list[tuple[int, ...]] = []
    begin, look = clock(), duration
    while len(order) < (iterations or _MAX_ROUNDS):
        passed = (clock() - begin) / 1e9
        if iterations is None and len(order) >= MIN_ROUNDS and passed >= look:
            if decided is None or passed >= limit or decided(_table(samples, len(runs))):
                break
            look = min(2 * max(look, passed), limit)
        turn = tuple(int(index) for index in rng.permutation(len(runs)))
        row = [0] * len(runs)
        for index in turn:
            row[index] = steady(runs[index], rest=rest, before=before, clock=meter or clock)
        samples.append(row)
        order.append(turn)
    return Timings(_table(samples, len(runs)), tuple(order))


def _table(samples: Sequence[Sequence[int]], runs: int) -> Array:
    """Rounds as [runs, rounds]."""
    return np.array(samples, np.int64).T.reshape(runs, len(samples))


def steady(
    run: Run, *, rest: float = 0.0, before: int = ALONE_AFTER, clock: Clock = time.perf_counter_ns
) -> int:
    """Nanoseconds of a run as it is alone: of the last of several where it is short, see `interleave`."""

    def timed() -> int:
        start = clock()
        run()
        return clock() - start

    if rest:
        time.sleep(rest)
    took = timed()
    for _ in range(before if took < _SHORT else min(before, 1) if took < _LONG else 0):
        took = timed()
    return took


def summarise(nanoseconds: Array) -> Summary:
    """Order statistics (linear interpolation between samples) of a vector of nanoseconds."""
    ms = np.asarray(nanoseconds, np.float64) / 1e6
    quantiles = tuple(float(value) for value in np.percentile(ms, range(101)))
    p50, p90, p95, p99 = (quantiles[percent] for percent in (50, 90, 95, 99))
    stdev = float(ms.std(ddof=1)) if len(ms) > 1 else 0.0
    return Summary("ms", len(ms), float(ms.min()), float(ms.mean()), stdev, p50, p90, p95, p99, quantiles)


def ratio_of_medians(
    new: Array, baseline: Array, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Ratio:
    """median(new) / median(baseline) with a percentile bootstrap interval (Efron 1979) over the rounds.

    Both are [rounds]; rounds are drawn as pairs, so that what slowed a whole round down cancels out. The
    rounds are taken as independent: slow drifts of the machine make the true interval wider.
    """
    a, b = np.asarray(new, np.float64), np.asarray(baseline, np.float64)
    value = float(np.median(a) / np.median(b))
    if len(a) < 2:
        return Ratio(value, math.nan, math.nan, confidence)
    from scipy.stats import bootstrap

    def statistic(x: Array, y: Array, axis: int = -1) -> Array:
        return np.asarray(np.median(x, axis=axis) / np.median(y, axis=axis))

    result = bootstrap(
        (a, b),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 1_000_000 // len(a)),  # bounds the memory: [batch, rounds] of float64, twice
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = (float(limit) for limit in result.confidence_interval)
    return Ratio(value, low, high, confidence)
