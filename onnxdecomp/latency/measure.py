"""Timing chains against the layers that they would replace.

A chain's latency is kept as its ratio to the dense layer's, timed in turns with it: what slows a shared
machine down slows both, and the ratio stays. What runs around the chain is timed too and taken off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import Shape
from onnxdecomp.latency.cache import Stored, Where, key_of, load, store, where
from onnxdecomp.latency.chain_model import SerializedModel, chain_model, frame_model, refusal
from onnxdecomp.latency.context import ALONE, Neighbours
from onnxdecomp.latency.few_timings import MOST, FewTimings
from onnxdecomp.latency.kernels import Kernel, chain_kernels
from onnxdecomp.latency.opened import runnables, together
from onnxdecomp.latency.room import fitting, room
from onnxdecomp.runtime import device as devices
from onnxdecomp.runtime.environment import UNKNOWN
from onnxdecomp.runtime.providers import provider_of
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.runtime.spinning import idling_of, pause
from onnxdecomp.runtime.timing import ALONE_AFTER, Clock, Run, interleave

Progress = Callable[[int, int], object]
"""Called as (chains done, chains in all)."""

MIN_ROUNDS, MAX_ROUNDS = 5, 100
"""Rounds of a group: as many as PRECISION takes, in steps of MIN_ROUNDS."""

PRECISION = 0.01
"""The standard error of a ratio at which a group has been timed long enough."""

HOPELESS = 2.0
"""The ratio above which a chain is not timed more than twice: nobody will want it."""

_TOGETHER = 16
"""Chains timed in turns with one dense layer."""

_BRANCHES = 64
"""Models timed in one session, at most: what one shows tells which of the next are worth timing."""

_LARGE = 1 << 25
"""Numbers in the weights of chains that are timed together, to bound the memory."""

SHORTEST_MS = 1e-3
"""Milliseconds below which a dense layer's latency is not told apart from nothing."""


_HERE = Setting()


@dataclass(frozen=True, eq=False)
class Request:
    """A chain to time.

    Attributes:
        layer: The layer that it would replace.
        chain: The chain; its numbers do not matter (see methods.base.outline).
        input_shape: The layer's activation, all sizes known; for a linear layer with the features last.
        around: What stands around the layer.
    """

    layer: Layer
    chain: Chain
    input_shape: Shape
    around: Neighbours = ALONE


@dataclass(frozen=True)
class Timing:
    """A chain's latency.

    Attributes:
        dense_ms: The dense layer's alone, milliseconds; NaN where not measured.
        ratio: The chain's over the dense layer's, not negative; NaN where not measured.
        numbers: The numbers that the chain stores over those of the dense layer.
        reason: Why it was not measured, a phrase for people; empty where it was.
        cached: Whether it was read from the cache.
        guessed: Whether it is what a model of the device says, fitted to what was measured of others.
    """

    dense_ms: float
    ratio: float
    numbers: float
    reason: str = ""
    cached: bool = False
    guessed: bool = False

    @property
    def ms(self) -> float:
        """The chain's latency alone, milliseconds."""
        return self.dense_ms * self.ratio


@dataclass(frozen=True, eq=False)
class _Job:
    """A request with its keys: of itself, and of the dense layer it is timed in turns with."""

    request: Request
    dense: Chain
    key: str
    group: str

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """Those of the chain alone."""
        return chain_kernels(self.request.chain, self.request.input_shape)

    @property
    def chain(self) -> Chain:
        return self.request.chain

    @property
    def input_shape(self) -> Shape:
        return self.request.input_shape

    @property
    def dtype(self) -> str:
        return self.request.layer.dtype

    @cached_property
    def own(self) -> tuple[Kernel, ...]:
        """Those of the dense layer alone."""
        return chain_kernels(self.dense, self.request.input_shape)


def time_chains(
    requests: Sequence[Request],
    *,
    setting: Setting = _HERE,
    precision: str = "float",
    cache: Path | None = None,
    seconds: float = 20.0,
    progress: Progress | None = None,
    note: Callable[[str], object] | None = None,
) -> list[Timing]:
    """The latency of each chain, in the order of the requests.

    Equal chains at equal shapes are timed once. A chain that cannot be timed has the reason in its place.

    Args:
        requests: What to time.
        setting: Where; idle threads wait as in benchmark.bench.
        precision: "float" times layers and chains as they are, others quantized.
        cache: The file of earlier timings (see cache.cache_file), or None for none; there is none for a
            device that has no name.
        seconds: About the time to take. However short, each chain runs MIN_ROUNDS times.
        progress: Called as the work goes on.
        note: Called with what a user should know, a sentence each time.

    Raises:
        ProviderError: The provider did not start.
        UsageError: There is no such provider.
    """
    on = where(setting, precision)
    jobs = [_job(request, on) for request in requests]
    known: dict[str, Stored | str] = {}
    if on.device.startswith(UNKNOWN):
        cache = None  # another device may be there the next time
    if cache is not None:
        stored, trouble = load((job.key for job in jobs), cache)
        known |= stored
        if trouble and note:
            note(trouble)
    before = frozenset(known)
    left = {job.key: job for job in jobs if job.key not in known and not refusal(job.request.layer)}
    few = None if provider_of(on.provider).synchronous or len(left) <= MOST else FewTimings()
    total, done = len(left), 0
    groups = list(_groups(left.values(), whole=few is not None))
    end = time.perf_counter() + seconds
    for pack in _packs(groups, several=few is not None and together(on)):
        remain = max(0.0, end - time.perf_counter())
        if few is not None and done and not remain:
            break
        asked = pack if few is None else [few.worth(group) for group in pack]
        timed = _time_in_parts(asked, on, remain * sum(map(len, pack)) / (total - done))
        known |= timed
        kept = {key: value for key, value in timed.items() if isinstance(value, Stored)}
        if few is not None:
            jobs_timed = [job for group in asked for job in group]
            few.learn(jobs_timed, {key: (value.dense_ms, value.ratio) for key, value in kept.items()})
        if cache is not None and (trouble := store(kept, cache)):
            cache = None
            if note:
                note(trouble)
        done += sum(map(len, pack))
        if progress:
            progress(done, total)
    guesses = {} if few is None else _guesses(few, [job for group in groups for job in group], known)
    if guesses and note:
        measured = len(left) - len(guesses)
        note(f"of {len(left)} chains {measured} were timed; a model of the device says the rest")
    return [_timing(job, known | guesses, before, guesses) for job in jobs]


def _guesses(few: FewTimings, jobs: Sequence[_Job], known: Mapping[str, Stored | str]) -> dict[str, Stored]:
    """What is thought of the jobs that were not timed."""
    timed: dict[str, list[tuple[_Job, Stored]]] = {}
    for job in jobs:
        if isinstance(found := known.get(job.key), Stored):
            timed.setdefault(job.group, []).append((job, found))
    made = {}
    for job in jobs:
        if job.key in known:
            continue
        near = timed.get(job.group, [])
        dense = near[0][1].dense_ms if near else max(few.ms(job.own), SHORTEST_MS)
        ratio = 1.0 if job.key == job.group else few.guess(job, [(one, at.ratio) for one, at in near])
        made[job.key] = Stored(dense, ratio)
    return made


def _job(request: Request, on: Where) -> _Job:
    around = request.around.on(on.provider, on.precision)
    request = replace(request, around=around)
    dense = dense_chain(request.layer)
    parts = (dense, request.layer, request.input_shape, around, on)
    return _Job(request, dense, key_of(request.chain, *parts), key_of(dense, *parts))


def _groups(jobs: Iterable[_Job], whole: bool = False) -> Iterator[list[_Job]]:
    """Jobs that are timed together: of one dense layer, few enough for the memory.

    Where only some are timed, all of a layer are one group, layers with chains first.
    """
    by_layer: dict[str, list[_Job]] = {}
    for job in jobs:
        by_layer.setdefault(job.group, []).append(job)
    if whole:
        yield from sorted(by_layer.values(), key=lambda same: len(same) == 1)
        return
    for same in by_layer.values():
        group: list[_Job] = []
        for job in same:
            numbers = sum(other.request.chain.params for other in (*group, job))
            if group and (len(group) == _TOGETHER or numbers > _LARGE):
                yield group
                group = []
            group.append(job)
        yield group


def _packs(groups: Sequence[list[_Job]], several: bool) -> Iterator[list[list[_Job]]]:
    """Groups that are opened at the same time: each alone, or with `several` as many as memory allows."""
    pack: list[list[_Job]] = []
    for group in groups:
        jobs = [job for other in (*pack, group) for job in other]
        most = sum(min(len(other), MOST) + 2 for other in (*pack, group))
        numbers = sum(job.request.chain.params for job in jobs)
        if pack and (not several or most > _BRANCHES or numbers > _LARGE):
            yield pack
            pack = []
        pack.append(group)
    if pack:
        yield pack


def _time_in_parts(groups: Sequence[Sequence[_Job]], on: Where, seconds: float) -> dict[str, Stored | str]:
    """As `_time_groups`, of as many at a time as the card has room for."""
    if not provider_of(on.provider).on_cuda:
        return _time_groups(groups, on, seconds)
    most = room(devices.device_of(on.setting).free())
    known: dict[str, Stored | str] = {}
    total = sum(map(len, groups))
    for part in fitting(groups, most, joint=together(on)):
        known |= _time_groups(part, on, seconds * sum(map(len, part)) / total)
    return known


def _time_groups(groups: Sequence[Sequence[_Job]], on: Where, seconds: float) -> dict[str, Stored | str]:
    """The timings of the jobs by key, or the reasons why there are none; each group in turns."""
    groups = [group for group in groups if group]
    models = [_models(group) for group in groups]
    opened = iter(runnables([model for own in models for model in own], on))
    known: dict[str, Stored | str] = {}
    for group, own in zip(groups, models, strict=True):
        known |= _time_group(group, [next(opened) for _ in own], on, seconds / len(groups))
    return known


def _models(group: Sequence[_Job]) -> list[SerializedModel | str]:
    """The frame, the dense layer, and the chain of each job that is not the dense layer itself."""
    first, dense = group[0].request, group[0].dense
    chains = [job.request.chain for job in group if job.key != job.group]
    frame = frame_model(first.layer, first.input_shape, first.around)
    placed = (chain_model(chain, first.layer, first.input_shape, first.around) for chain in (dense, *chains))
    return [frame, *placed]


def _time_group(
    group: Sequence[_Job], opened: Sequence[Run | str], on: Where, seconds: float
) -> dict[str, Stored | str]:
    """The timings of the jobs by key, or the reasons why there are none; `opened` as `_models` says."""
    frame_run, dense_run, *chains = opened
    if isinstance(frame_run, str) or isinstance(dense_run, str):
        reason = frame_run if isinstance(frame_run, str) else str(dense_run)
        return {job.key: reason for job in group}
    known: dict[str, Stored | str] = {}
    places: dict[str, int] = {}
    runs, own = [frame_run, dense_run], iter(chains)
    for job in group:
        if job.key == job.group:
            places[job.key] = 1
        elif isinstance(run := next(own), str):
            known[job.key] = run
        else:
            places[job.key] = len(runs)
            runs.append(run)
    rest, device = pause(idling_of(on.threads, len(runs))), devices.device_of(on.setting)
    ms = typical_times(runs, seconds, rest, device.meter(on.setting))
    frame = float(ms[0])
    dense_ms = max(float(ms[1]) - frame, SHORTEST_MS)
    for key, place in places.items():
        ratio = 1.0 if place == 1 else max(float(ms[place]) - frame, 0.0) / dense_ms
        known[key] = Stored(dense_ms, ratio)
    return known


def typical_times(
    runs: Sequence[Run], seconds: float, rest: float = 0.0, clock: Clock = time.perf_counter_ns
) -> Array:
    """The typical time of each run in milliseconds; the first is the frame, the second the dense layer.

    It is the mean of the middle half: on a busy machine runs of several threads come in two kinds, with
    all of their cores and without, and a median jumps between the two.

    Timed until the standard errors of all are small against the dense layer: on a quiet machine at once.
    What is much slower than the dense layer is not timed any more once that is seen.
    """
    from scipy.stats import trim_mean

    start = time.perf_counter()
    timed = partial(interleave, warmup=0, rest=rest, before=ALONE_AFTER, meter=clock)
    typical = timed(runs, iterations=2).samples.min(axis=1) / 1e6
    worth = np.flatnonzero(typical - typical[0] <= HOPELESS * (typical[1] - typical[0]))
    kept = np.union1d(worth, (0, 1))
    samples = np.empty((len(kept), 0))
    while True:
        turns = [runs[index] for index in kept]
        again = timed(turns, iterations=MIN_ROUNDS, seed=samples.shape[1])
        samples = np.concatenate((samples, again.samples / 1e6), axis=1)
        typical[kept] = trim_mean(samples, 0.25, axis=1)
        spread = np.median(np.abs(samples - typical[kept, None]), axis=1)
        # Of the median of normal numbers, whose standard deviation is 1.48 times the median deviation.
        errors = 1.253 * 1.483 * spread / math.sqrt(samples.shape[1])
        precise = float(errors.max()) < PRECISION * max(float(typical[1] - typical[0]), SHORTEST_MS)
        if precise or samples.shape[1] >= MAX_ROUNDS or time.perf_counter() - start > seconds:
            return np.asarray(typical)


def _timing(
    job: _Job, known: Mapping[str, Stored | str], before: Collection[str], guesses: Collection[str]
) -> Timing:
    numbers = job.request.chain.params / max(job.dense.params, 1)
    found = refusal(job.request.layer) or known[job.key]
    if isinstance(found, str):
        return Timing(math.nan, math.nan, numbers, found)
    return Timing(found.dense_ms, found.ratio, numbers, cached=job.key in before, guessed=job.key in guesses)
