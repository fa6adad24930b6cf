"""Whether a model still gives the numbers of the original file, and by how much it misses them."""

from __future__ import annotations

import math
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from onnxdecomp.core.names import some
from onnxdecomp.data.comparable_outputs import Compared, chosen_by_data, unsteady
from onnxdecomp.data.culprit import culprit
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.mask import Mask, masked_inputs
from onnxdecomp.data.random_inputs import random_feeds, trial_of
from onnxdecomp.data.read import Data, read_feeds
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.evaluate.accuracy import Accuracy, Hits, accuracy
from onnxdecomp.evaluate.task_metrics.base import TaskMetric
from onnxdecomp.evaluate.task_metrics.measure import MetricChange, Task, apart
from onnxdecomp.evaluate.task_metrics.registry import MetricSource, task_metric
from onnxdecomp.runtime import jsonio, providers
from onnxdecomp.runtime.environment import check_threads
from onnxdecomp.runtime.fatal import refuse_fatal_feed, refuse_fatal_on_cpu
from onnxdecomp.runtime.interface import Port, differences, interface_of, lost_defaults
from onnxdecomp.runtime.metrics import OutputError, ratio
from onnxdecomp.runtime.session import inputs_of, open_session, outputs_of, run

Status: TypeAlias = Literal["passed", "failed", "skipped"]
Model: TypeAlias = str | Path | bytes

_IN_MEMORY = 64 << 20
"""Bytes of the original's outputs that are kept in memory; more go to a temporary file."""

_TWO = 2
"""Samples that tell whether more of them can run together."""

_TWICE = 2
"""Feeds that the original runs on a second time, to see which outputs differ by themselves."""


@dataclass(frozen=True)
class Verification:
    """The comparison of a model with the original.

    Attributes:
        status: "passed", "failed", or "skipped" where no input was found that the original runs on, or no
            output can be compared.
        reason: Why it is not "passed".
        original, new: The files.
        provider: What both ran on.
        data: Where the inputs came from.
        samples: Feeds compared.
        shapes: The different shapes of the feeds.
        max_error: The largest `rel_l2` of an output that passes; None where any does.
        interface: Differences of names, order, types and shapes; each is a failure.
        notes: Remarks that are no failure: outputs that were left out, and why, among them.
        outputs: Per output of the original that the new model has, and per tensor of a sequence; those
            that can be compared.
        rel_l2: Over all floating-point outputs together.
        worst: The largest `rel_l2` of a single output, and that output's name in `worst_output`.
        accuracy: Where the data have labels.
        metric: What a metric of the task says of both, where one is asked for.
    """

    status: Status
    reason: str | None
    original: str
    new: str
    provider: str
    data: str
    samples: int = 0
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    max_error: float | None = None
    interface: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    outputs: tuple[OutputError, ...] = ()
    rel_l2: float | None = None
    worst: float | None = None
    worst_output: str | None = None
    accuracy: Accuracy | None = None
    metric: MetricChange | None = None

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def to_json(self) -> dict[str, Any]:
        """As plain values; numbers that are not finite are None."""
        result: dict[str, Any] = jsonio.plain(self)
        return result


def verify(
    original: Model,
    new: Model,
    *,
    data: Data | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    provider: str = "cpu",
    options: Mapping[str, str] | None = None,
    threads: int = 1,
    max_error: float | None = 0.05,
    samples: int | None = None,
    batch: int = 32,
    mask: str = "",
    metric: MetricSource | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Verification:
    """Run both models on the same inputs and compare every output.

    What differs between two runs of the original (random numbers), and what has another number of rows since
    the data choose them, is left out, and a note names it. Where nothing is left the status is "skipped".

    The sessions are open one after the other, never together; the original's outputs beyond 64 MiB wait
    in a temporary file. A state is not fed back: every feed stands alone.

    Args:
        original: A file, or a serialised model.
        new: What is compared with it, likewise.
        data: See onnxdecomp.data.read; without it the inputs are random, at two different sizes of
            the dimensions that the original leaves free.
        shapes: Shapes of inputs by name, for random inputs.
        seed: Of the random inputs.
        provider: Where both run.
        options: Of the provider, by ONNX Runtime's names.
        threads: Within an operator.
        max_error: The largest relative L2 error of an output that passes; None for any.
        samples: At most so many feeds of the data (all), or random ones per size (2, or 1 large one).
        batch: Samples without a batch axis are stacked to so many where the batch size is free.
        mask: The inputs whose zeros say which positions are padding, which no error counts: names, "none", or
            "" for those with the usual names (see onnxdecomp.data.mask).
        metric: A metric of the task to measure both with, on the data: a name, `module:callable` or a
            function (see docs/guides/metrics.md).
        advance: Called after each run, for a progress bar.

    Raises:
        ModelError: A model does not load.
        ProviderError: The provider does not start.
        UsageError: The data or shapes do not fit the original, or the metric does not fit them.
    """
    _check(max_error, samples, threads)
    wanted = _wanted(metric, data)
    before, after = interface_of(original), interface_of(new)
    if providers.ort_name(provider) == providers.ort_name("cpu"):
        refuse_fatal_on_cpu(original)
        refuse_fatal_on_cpu(new)
    changed = differences(before, after)
    lost = lost_defaults(before, after)
    notes: tuple[str, ...] = (f"can no longer be overridden by the caller: {some(lost)}",) if lost else ()

    def outcome(status: Status, reason: str | None, source: str, **fields: Any) -> Verification:
        return Verification(
            status,
            reason,
            _label(original),
            _label(new),
            provider,
            source,
            max_error=max_error,
            interface=changed,
            notes=notes,
            **fields,
        )

    where: dict[str, Any] = {"provider": provider, "options": options, "threads": threads, "advance": advance}
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        made = _record(
            original,
            spool,
            data=data,
            shapes=shapes,
            seed=seed,
            samples=samples,
            batch=batch,
            mask=mask,
            **where,
        )
        if isinstance(made, str):
            return outcome("failed" if changed else "skipped", changed[0] if changed else made, "none")
        feeds = made.feeds
        spool.seek(0)
        known = {"samples": len(feeds), "shapes": feeds.shapes()}
        try:
            compared, hits = _compare(new, spool, before.outputs, made, original, **where)
        except _RunError as failure:
            reason = "; ".join((*changed, str(failure)))
            return outcome("failed", reason, feeds.source, **known)
    if made.mask is not None and made.mask.note:
        notes += (made.mask.note,)
    notes += compared.notes
    comparisons = compared.comparisons
    results = tuple(comparison.result() for comparison in comparisons)
    floats = [c for c, r in zip(comparisons, results, strict=True) if r.agreement is None]
    infinite = [r for r in results if r.nonfinite_original]
    notes += tuple(
        f"{r.nonfinite_original} values of {r.name!r} are not finite in the original: they were not compared"
        for r in infinite
    )
    worst = max(results, key=lambda r: r.rel_l2, default=None)
    failures = [*changed]
    failures += [f"{r.nonfinite} values of {r.name!r} are not finite" for r in results if r.nonfinite]
    if max_error is not None and worst is not None and not worst.rel_l2 <= max_error:
        failures.append(f"the error {worst.rel_l2:.3g} of {worst.name!r} is above {max_error:g}")
    status: Status = "failed" if failures else "passed"
    if not failures and compared.left_out and not results:
        status, failures = "skipped", ["no output can be compared with the original's", *compared.notes]
    elif not failures and infinite and not any(r.values for r in results):
        status, failures = "skipped", ["no value that the original gives is finite"]
    found = outcome(
        status,
        "; ".join(failures) or None,
        feeds.source,
        **known,
        outputs=results,
        rel_l2=ratio(math.fsum(c.error_energy for c in floats), math.fsum(c.energy for c in floats)),
        worst=worst.rel_l2 if worst else None,
        worst_output=worst.name if worst else None,
        accuracy=accuracy(hits, feeds.labels),
    )
    return measured(found, _task(wanted, original, made, provider, threads, batch), new)


def _check(max_error: float | None, samples: int | None, threads: int) -> None:
    if max_error is not None and not max_error >= 0:
        raise UsageError(f"the largest error allowed must be 0 or more, not {max_error}")
    if samples is not None and samples < 1:
        raise UsageError(f"the number of samples must be 1 or more, not {samples}")
    check_threads(threads)


def _wanted(metric: MetricSource | None, data: Data | None) -> TaskMetric | None:
    if metric is not None and data is None:
        raise UsageError("--metric needs inputs to measure it on: give them with --data")
    return None if metric is None else task_metric(metric)


def _task(
    metric: TaskMetric | None, original: Model, made: _Recorded, provider: str, threads: int, batch: int
) -> Task | None:
    if metric is None:
        return None
    model = original if isinstance(original, bytes) else Path(original)
    return Task(metric, model, made.feeds, made.mask, provider, threads, batch)


def measured(found: Verification, task: Task | None, new: Model) -> Verification:
    """The comparison with what a metric says; a model that does not run, or has another interface, has none.

    Raises:
        UsageError: The metric does not fit the outputs or labels.
    """
    ran = bool(found.samples) and not found.interface and (found.status != "failed" or bool(found.outputs))
    if task is None or not ran:
        return found
    return replace(found, metric=task.change(new if isinstance(new, bytes) else Path(new)))


class _RunError(Exception):
    """The new model fails where the original works."""


@dataclass(frozen=True, eq=False)
class _Recorded:
    """The original's run.

    Attributes:
        feeds: The inputs.
        size: Feeds that run together.
        mask: Which of their positions count.
        unsteady: Outputs that differ between two runs, with the reason.
        varying: Outputs whose shapes differ although those of the inputs do not.
    """

    feeds: Feeds
    size: int
    mask: Mask | None
    unsteady: Mapping[str, str]
    varying: frozenset[str]


def _record(
    original: Model,
    spool: IO[bytes],
    *,
    data: Data | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
    provider: str,
    options: Mapping[str, str] | None,
    threads: int,
    samples: int | None,
    batch: int,
    mask: str,
    advance: Callable[[], object],
) -> _Recorded | str:
    """Run the original, its outputs into `spool`; a reason where it runs on nothing."""
    session = open_session(original, provider=provider, options=options, threads=threads, low_memory=True)
    inputs = inputs_of(session)
    names = [spec.name for spec in outputs_of(session)]
    masked = masked_inputs(inputs, mask)
    masked = None if data is None else masked  # random inputs have no padding

    trial = trial_of(lambda feed: run(session, feed))
    if data is not None:
        feeds = read_feeds(data, inputs, samples=samples)
        refuse_fatal_feed(original, next(iter(feeds)))
        size = batch if feeds.stackable and apart(session, feeds, min(batch, _TWO)) else 1
    else:
        made = random_feeds(inputs, trial, seed=seed, shapes=shapes, per_binding=samples)
        if isinstance(made, str):
            return made
        feeds, size = made, 1
    differing: dict[str, str] = {}
    made_of: dict[object, list[object]] = {}
    varying: set[str] = set()
    for index, feed in enumerate(feeds.batches(size)):
        try:
            outputs = run(session, feed)
            if index < _TWICE:
                # One sample of a batch tells what differs by itself.
                one = feed if size == 1 else {name: array[:1] for name, array in feed.items()}
                first = outputs if size == 1 else run(session, one)
                differing |= unsteady(names, first, run(session, one))
        except ModelError as error:
            found = culprit(feeds, lambda feed: run(session, feed))
            where = f"sample {index * size} of {feeds.source}"
            raise UsageError(found or f"the original fails on {where}: {error}") from error
        sizes = [getattr(output, "shape", None) for output in outputs]
        alike = made_of.setdefault(tuple((name, array.shape) for name, array in feed.items()), sizes)
        varying |= {name for name, one, two in zip(names, sizes, alike, strict=True) if one != two}
        pickle.dump(outputs, spool, pickle.HIGHEST_PROTOCOL)
        advance()
    return _Recorded(feeds, size, masked, differing, frozenset(varying))


def _compare(
    new: Model,
    spool: IO[bytes],
    ports: Sequence[Port],
    made: _Recorded,
    original: Model,
    *,
    provider: str,
    options: Mapping[str, str] | None,
    threads: int,
    advance: Callable[[], object],
) -> tuple[Compared, Hits]:
    session = open_session(new, provider=provider, options=options, threads=threads, low_memory=True)
    here = [spec.name for spec in outputs_of(session)]
    names = [port.name for port in ports]
    both = [name for name in names if name in here]
    compared = Compared(
        both,
        declared={port.name: port.shape for port in ports},
        mask=made.mask,
        left_out={name: reason for name, reason in made.unsteady.items() if name in both},
        by_data=lambda name: name in made.varying or chosen_by_data(original, name),
    )
    hits = Hits([], [], "")
    for index, feed in enumerate(made.feeds.batches(made.size)):
        try:
            outputs = dict(zip(here, run(session, feed), strict=True))
        except ModelError as error:
            raise _RunError(f"the new model fails on sample {index * made.size}: {error}") from error
        # Only what this process wrote into its own nameless file is unpickled here.
        originals = dict(zip(names, pickle.load(spool), strict=True))
        try:
            tensors = compared.add(feed, [originals[name] for name in both], [outputs[name] for name in both])
        except ValueError as error:
            raise _RunError(f"on sample {index * made.size} {error}") from error
        if made.feeds.labels is not None:
            hits.add(tensors)
        advance()
    return compared, hits


def _label(model: Model) -> str:
    return "in memory" if isinstance(model, bytes) else str(model)
