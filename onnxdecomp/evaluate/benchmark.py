"""How fast models are against each other, on the providers they will run on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from onnxdecomp.core.layer import Array
from onnxdecomp.data.batches import rebatched, rows_of
from onnxdecomp.data.culprit import culprit
from onnxdecomp.data.random_inputs import bindings, trial_of
from onnxdecomp.data.read import Data, read_feeds, repeatable
from onnxdecomp.data.read import describe as describe_data
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.runtime import device as devices
from onnxdecomp.runtime import environment, jsonio, temporary_files
from onnxdecomp.runtime import providers as ep
from onnxdecomp.runtime.fatal import refuse_fatal, refuse_fatal_feed
from onnxdecomp.runtime.memory import peak_growth
from onnxdecomp.runtime.session import Feed, inputs_of, run
from onnxdecomp.runtime.setting import Setting, setting_of
from onnxdecomp.runtime.spinning import idling_of, pause
from onnxdecomp.runtime.timing import (
    ALONE_AFTER,
    LOOKS,
    Ratio,
    Summary,
    interleave,
    ratio_of_medians,
    summarise,
)

if TYPE_CHECKING:
    import onnxruntime as ort


Convert: TypeAlias = Callable[[Path, Setting, Path], Path]
"""Gives the file that is run under a setting: a file as it is, or a new one in the folder."""


@dataclass(frozen=True)
class ModelTiming:
    """One model under one setting.

    Attributes:
        model: The file.
        batch: Rows on the first axis of its first input; the model's own where that is fixed.
        shapes: What was fed.
        latency: Of single runs.
        throughput: Rows a second at the mean latency.
        ratio: Median latency over that of the first model; None for the first.
        nodes: Nodes that each provider ran, as the session says.
        peak_rss: Bytes by which the peak resident set of a fresh process grew that loaded the model and
            ran it (see onnxdecomp.runtime.memory); None where not measured.
        device_bytes: By which the memory in use on the card grew when it was loaded and run; None likewise.
    """

    model: str
    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    latency: Summary
    throughput: float
    ratio: Ratio | None
    nodes: Mapping[str, int]
    peak_rss: int | None
    device_bytes: int | None = field(default=None, metadata={jsonio.LEFT_OUT: True})


@dataclass(frozen=True)
class SettingTimings:
    """All models under one setting, in `rounds` interleaved rounds.

    Attributes:
        provider, threads: Where they ran; 0 threads is ONNX Runtime's own choice.
        batch: The batch size asked for.
        precision, profile, options: What else was asked of the provider, see onnxdecomp.runtime.setting.
        graph: Whether every run was replayed from a recorded graph (CUDA graphs), in all models.
        io_binding: Whether inputs and outputs stayed on the device.
        spinning: Whether idle threads waited busily from one operator to the next, as they do in deployment.
        rounds: Runs of each model.
        models: In the order given.
        device: The processor's or graphics card's name.
    """

    provider: str
    threads: int
    batch: int
    io_binding: bool
    spinning: bool
    rounds: int
    models: tuple[ModelTiming, ...]
    device: str = ""
    precision: str = ""
    profile: str = "default"
    options: Mapping[str, str] = field(default_factory=dict)
    graph: bool = False


@dataclass(frozen=True)
class BenchResult:
    """The timings of all settings."""

    settings: tuple[SettingTimings, ...]
    inputs: str

    def to_json(self) -> dict[str, Any]:
        """As plain values; every model's `ratio` is there as a `speedup` too."""
        result: dict[str, Any] = jsonio.plain(self)
        for setting, entry in zip(self.settings, result["settings"], strict=True):
            for timing, model in zip(setting.models, entry["models"], strict=True):
                model["speedup"] = speedup(timing.ratio)
        return result


def speedup(ratio: Ratio | None) -> dict[str, Any] | None:
    """How many times as fast: one over a ratio of latencies, with its interval."""
    if ratio is None:
        return None
    found: dict[str, Any] = jsonio.plain(
        Ratio(1 / ratio.value, 1 / ratio.high, 1 / ratio.low, ratio.confidence)
    )
    return found


def bench(
    models: Sequence[str | Path],
    *,
    providers: Sequence[str] = ("cpu",),
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    duration: float = 2.0,
    iterations: int | None = None,
    warmup: int = 3,
    data: Data | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    memory: bool = True,
    limit: float = 0.0,
    precision: str = "",
    profile: str = "default",
    options: Mapping[str, str] | None = None,
    convert: Convert | None = None,
    advance: Callable[[], object] = lambda: None,
) -> BenchResult:
    """Time models against the first of them, under every combination of provider, threads and batch.

    The sessions of one setting are all alive and warm, and their runs are interleaved in random order. On a
    single thread of the processor the time that it has run counts, and not what it has waited for others.
    With more than one thread and more than one model, idle threads do not spin: those of one session
    would take the cores from the other.

    Args:
        models: Files; the first is what the others are compared with.
        providers: Where they run, one setting after another.
        batch_sizes: Samples in a run. A size applies where the first axes of the inputs are free; other
            models run at their own, and data that have more rows of their own keep them at a batch size of 1.
        threads: Within an operator; 0 for ONNX Runtime's own choice.
        duration: Seconds of a setting, all models together.
        iterations: Runs of each model, in place of `duration`.
        warmup: Untimed runs before.
        data: Inputs (see onnxdecomp.data.read); random where None.
        shapes: Shapes of inputs by name, for random inputs.
        seed: Of the random inputs, of the order and of the bootstrap.
        memory: Measure `peak_rss`, in a process of its own for each model and setting.
        limit: Seconds up to which a setting is timed on beyond `duration` until every ratio is decided (see
            timing.Ratio).
        precision: Of all providers, see onnxdecomp.runtime.setting.
        profile: Likewise.
        options: Likewise.
        convert: Takes files to the precision asked for, where the provider does not.
        advance: Called after each setting, for a progress bar.

    Raises:
        ModelError: A model does not load, or does not run on any input tried.
        ProviderError: A provider did not start; a fallback to the CPU is never timed in its place.
        UsageError: The request makes no sense.
    """
    _check(models, batch_sizes, threads, duration, iterations)
    for model in models:
        refuse_fatal(Path(model), on_cpu="cpu" in map(ep.short_name, map(ep.ort_name, providers)))
    if data is not None:
        data = repeatable(data, max(batch_sizes))  # every model and setting reads it anew
    settings = []
    asked = partial(setting_of, precision=precision, profile=profile, options=options)
    for provider, count, batch in itertools.product(providers, threads, batch_sizes):
        settings.append(
            bench_under(
                models,
                asked(provider, count, batch),
                duration=duration,
                iterations=iterations,
                warmup=warmup,
                data=data,
                shapes=shapes,
                seed=seed,
                memory=memory,
                limit=limit,
                convert=convert,
            )
        )
        advance()
    source = f"random, seed {seed}" if data is None else describe_data(data)
    return BenchResult(tuple(settings), source)


def _check(
    models: Sequence[str | Path],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    duration: float,
    iterations: int | None,
) -> None:
    if not models:
        raise UsageError("no model to time")
    if min(batch_sizes, default=0) < 1:
        raise UsageError("a batch size must be 1 or more")
    if not threads:
        raise UsageError("no number of threads to time with")
    environment.check_threads(*threads)
    if not duration > 0 or (iterations is not None and iterations < 1):
        raise UsageError("the duration and the number of iterations must be above 0")


def bench_under(
    models: Sequence[str | Path],
    setting: Setting,
    *,
    duration: float = 2.0,
    iterations: int | None = None,
    warmup: int = 3,
    data: Data | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    memory: bool = True,
    limit: float = 0.0,
    convert: Convert | None = None,
) -> SettingTimings:
    """The same as `bench` under one setting.

    Raises:
        ModelError, ProviderError, UsageError: As for `bench`.
    """
    idling, device = idling_of(setting.threads, len(models)), devices.device_of(setting)
    load = partial(device.load, idling=idling, count=True)
    if setting.converted and convert is None:
        raise UsageError(f"nothing is given that takes models to {setting.converted}")
    with temporary_files.folder_if(bool(setting.converted)) as folder:
        files = [
            convert(Path(model), setting, folder) if convert and folder else Path(model) for model in models
        ]
        makers = [
            partial(feed_of, model=file, batch=setting.batch or 1, data=data, shapes=shapes, seed=seed)
            for file in files
        ]
        watched = memory and ep.provider_of(setting.provider).on_cuda
        loaded, used = [], [device.memory() if watched else None]
        for file, maker in zip(files, makers, strict=True):
            loaded.append(load(file, setting, maker))
            used.append(device.memory() if watched else None)
        if len({each.graph for each in loaded}) > 1:  # all alike, or it is no comparison
            setting = setting.without_graph
            loaded = [load(file, setting, maker) for file, maker in zip(files, makers, strict=True)]
        timings = interleave(
            [each.run for each in loaded],
            duration=duration,
            iterations=iterations,
            warmup=warmup,
            seed=seed,
            rest=pause(idling),
            before=ALONE_AFTER if len(models) > 1 else 0,
            limit=limit,
            decided=partial(_decided, seed=seed) if limit > duration else None,
            clock=device.clock,
            meter=device.meter(setting),
        )
        results = []
        for index, (model, file, ready) in enumerate(zip(models, files, loaded, strict=True)):
            feed, rows = ready.feed, rows_of(ready.feed, ready.inputs)
            latency = summarise(timings.samples[index])
            against = (timings.samples[index], timings.samples[0])
            results.append(
                ModelTiming(
                    model=str(model),
                    batch=rows,
                    shapes={name: array.shape for name, array in feed.items()},
                    latency=latency,
                    throughput=rows / latency.mean * 1e3,
                    ratio=ratio_of_medians(*against, seed=seed) if index else None,
                    nodes=ready.nodes,
                    peak_rss=peak_growth(file, feed, provider=setting.provider, threads=setting.threads)
                    if memory
                    else None,
                    device_bytes=_grown(used[index], used[index + 1]),
                )
            )
    return SettingTimings(
        provider=setting.provider,
        threads=setting.threads,
        batch=setting.batch or 1,
        io_binding=loaded[0].bound,
        spinning=idling != "sleep",
        rounds=len(timings.order),
        models=tuple(results),
        device=environment.device(setting.provider),
        precision=setting.precision,
        profile=setting.profile,
        options=setting.options,
        graph=loaded[0].graph,
    )


def _grown(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def feed_of(
    session: ort.InferenceSession,
    model: Path,
    *,
    batch: int,
    data: Data | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
) -> Feed:
    """One feed of `batch` rows, or of as many as the model wants; alike for models of one interface.

    Data are taken as they are at a batch size of 1: feeds of several rows keep them.
    """
    inputs = inputs_of(session)
    trial = trial_of(lambda feed: run(session, feed))
    if data is not None:
        feeds = read_feeds(data, inputs, samples=batch)
        first = next(iter(feeds))
        refuse_fatal_feed(model, first)
        # Too few samples are used again: their values hardly matter for time.
        if rows_of(first, inputs) == batch:
            feed = first
        else:
            items = tuple(itertools.islice(itertools.cycle(feeds), batch))
            feed = next(replace(feeds, items=items, labels=None).batches(batch))
            feed = feed if batch == 1 else rebatched(feed, inputs, batch)
        reason = trial(feed)
        if reason:
            if bad := culprit(feeds, lambda feed: run(session, feed)):
                raise UsageError(bad)
            rows = f" at batch {batch}" if batch > 1 else ""
            raise ModelError(f"{model} does not run on {feeds.source}{rows}: {reason}")
        return feed
    found = bindings(inputs, trial, count=1, batch=batch, shapes=shapes, seed=seed)
    if isinstance(found, str):
        raise ModelError(f"{model}: {found}; give its shapes with --input-shape or data with --data")
    return found[0].feed(inputs, (seed,))


def _decided(samples: Array, *, seed: int) -> bool:
    """Whether all ratios to the first are; looks share the chance of an error of one interval."""
    confidence = 1 - 0.05 / LOOKS
    ratios = (ratio_of_medians(row, samples[0], confidence=confidence, seed=seed) for row in samples[1:])
    return all(ratio.decided for ratio in ratios)


def describe(setting: SettingTimings) -> Iterator[str]:
    """Remarks on a setting that a reader of its numbers must know."""
    name = ep.provider_of(setting.provider).graph
    if setting.profile == "deploy" and name and not setting.graph:
        yield f"no run is recorded (CUDA graphs): not all models allow it; {name}=0"
    for timing in setting.models:
        if timing.batch != setting.batch:
            yield f"{timing.model} takes {timing.batch} at a time: batch {setting.batch} does not apply"
        elsewhere = {name: count for name, count in timing.nodes.items() if name != setting.provider}
        if elsewhere:
            where = ", ".join(f"{count} on {name}" for name, count in elsewhere.items())
            yield f"{timing.model}: of {sum(timing.nodes.values())} nodes, {where}"
