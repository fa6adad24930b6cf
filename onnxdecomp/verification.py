"""Whether a model still gives the numbers of the original file, and by how much it misses them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np

from onnxdecomp import jsonio
from onnxdecomp.data.culprit import culprit
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.read import Data, read_feeds
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.layer import Array
from onnxdecomp.runtime.interface import differences, interface_of, lost_defaults
from onnxdecomp.runtime.metrics import Comparison, OutputError, ratio, score_rows
from onnxdecomp.runtime.random_inputs import random_feeds, trial_of
from onnxdecomp.runtime.session import inputs_of, open_session, outputs_of, run

Status: TypeAlias = Literal["passed", "failed", "skipped"]
Model: TypeAlias = str | Path | bytes

_IN_MEMORY = 64 << 20
"""Bytes of the original's outputs that are kept in memory; more go to a temporary file."""


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy of `output` on the labels of the data."""

    output: str
    samples: int
    original: float
    new: float


@dataclass(frozen=True)
class Verification:
    """The comparison of a model with the original.

    Attributes:
        status: "passed", "failed", or "skipped" where no input was found that the original runs on.
        reason: Why it is not "passed".
        original, new: The files.
        provider: What both ran on.
        data: Where the inputs came from.
        samples: Feeds compared.
        shapes: The different shapes of the feeds.
        max_error: The largest `rel_l2` of an output that passes; None where any does.
        interface: Differences of names, order, types and shapes; each is a failure.
        notes: Remarks that are no failure.
        outputs: Per output of the original that the new model has.
        rel_l2: Over all floating-point outputs together.
        worst: The largest `rel_l2` of a single output, and that output's name in `worst_output`.
        accuracy: Where the data have labels.
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
    threads: int = 1,
    max_error: float | None = 0.05,
    samples: int | None = None,
    batch: int = 32,
    advance: Callable[[], object] = lambda: None,
) -> Verification:
    """Run both models on the same inputs and compare every output.

    The sessions are open one after the other, never together; the original's outputs beyond 64 MiB wait
    in a temporary file. A state is not fed back: every feed stands alone.

    Args:
        original, new: Files, or serialised models.
        data: See onnxdecomp.data.read; without it the inputs are random, at two different sizes of
            the dimensions that the original leaves free.
        shapes: Shapes of inputs by name, for random inputs.
        seed: Of the random inputs.
        provider, threads: Where both run.
        max_error: The largest relative L2 error of an output that passes; None for any.
        samples: At most so many feeds of the data (all), or random ones per size (2, or 1 large one).
        batch: Samples without a batch axis are stacked to so many where the batch size is free.
        advance: Called after each run, for a progress bar.

    Raises:
        ModelError: A model does not load.
        ProviderError: The provider does not start.
        UsageError: The data or shapes do not fit the original.
    """
    if max_error is not None and not max_error >= 0:
        raise UsageError(f"the largest error allowed must be 0 or more, not {max_error}")
    if samples is not None and samples < 1:
        raise UsageError(f"the number of samples must be 1 or more, not {samples}")
    before, after = interface_of(original), interface_of(new)
    changed = differences(before, after)
    lost = lost_defaults(before, after)
    notes = (f"can no longer be overridden by the caller: {', '.join(lost)}",) if lost else ()

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

    where: dict[str, Any] = {"provider": provider, "threads": threads, "advance": advance}
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        feeds, size = _record(
            original,
            spool,
            data=data,
            shapes=shapes,
            seed=seed,
            samples=samples,
            batch=batch,
            **where,
        )
        if isinstance(feeds, str):
            return outcome("failed" if changed else "skipped", changed[0] if changed else feeds, "none")
        spool.seek(0)
        known = {"samples": len(feeds), "shapes": feeds.shapes()}
        names = [port.name for port in before.outputs]
        try:
            compared = _compare(new, spool, names, feeds, size=size, **where)
        except _RunError as failure:
            reason = "; ".join((*changed, str(failure)))
            return outcome("failed", reason, feeds.source, **known)
    comparisons, hits = compared
    results = tuple(comparison.result() for comparison in comparisons)
    floats = [c for c, r in zip(comparisons, results, strict=True) if r.agreement is None]
    worst = max(results, key=lambda r: r.rel_l2, default=None)
    failures = [*changed]
    failures += [f"{r.nonfinite} values of {r.name!r} are not finite" for r in results if r.nonfinite]
    if max_error is not None and worst is not None and not worst.rel_l2 <= max_error:
        failures.append(f"the error {worst.rel_l2:.3g} of {worst.name!r} is above {max_error:g}")
    return outcome(
        "failed" if failures else "passed",
        "; ".join(failures) or None,
        feeds.source,
        **known,
        outputs=results,
        rel_l2=ratio(math.fsum(c.error_energy for c in floats), math.fsum(c.energy for c in floats)),
        worst=worst.rel_l2 if worst else None,
        worst_output=worst.name if worst else None,
        accuracy=_accuracy(hits, feeds.labels),
    )


class _RunError(Exception):
    """The new model fails where the original works."""


def _record(
    original: Model,
    spool: IO[bytes],
    *,
    data: Data | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
    provider: str,
    threads: int,
    samples: int | None,
    batch: int,
    advance: Callable[[], object],
) -> tuple[Feeds | str, int]:
    """Run the original, its outputs into `spool`; returns the feeds, or why not, and the batch size."""
    session = open_session(original, provider=provider, threads=threads, low_memory=True)
    inputs = inputs_of(session)

    trial = trial_of(lambda feed: run(session, feed))
    if data is not None:
        feeds = read_feeds(data, inputs, samples=samples)
        size = batch if feeds.stackable and trial(next(feeds.batches(batch))) is None else 1
    else:
        made = random_feeds(inputs, trial, seed=seed, shapes=shapes, per_binding=samples)
        if isinstance(made, str):
            return made, 1
        feeds, size = made, 1
    for index, feed in enumerate(feeds.batches(size)):
        try:
            outputs = run(session, feed)
        except ModelError as error:
            found = culprit(feeds, lambda feed: run(session, feed))
            where = f"sample {index * size} of {feeds.source}"
            raise UsageError(found or f"the original fails on {where}: {error}") from error
        for output in outputs:
            _write(spool, output)
        advance()
    return feeds, size


def _compare(
    new: Model,
    spool: IO[bytes],
    names: Sequence[str],
    feeds: Feeds,
    *,
    size: int,
    provider: str,
    threads: int,
    advance: Callable[[], object],
) -> tuple[list[Comparison], _Hits]:
    session = open_session(new, provider=provider, threads=threads, low_memory=True)
    here = [spec.name for spec in outputs_of(session)]
    comparisons = {name: Comparison(name) for name in names if name in here}
    hits = _Hits([], [], "")
    for index, feed in enumerate(feeds.batches(size)):
        try:
            outputs = dict(zip(here, run(session, feed), strict=True))
        except ModelError as error:
            raise _RunError(f"the new model fails on sample {index * size}: {error}") from error
        originals = {name: _read(spool) for name in names}
        for name, comparison in comparisons.items():
            try:
                comparison.add(originals[name], outputs[name])
            except ValueError as error:
                raise _RunError(f"on sample {index * size} {error}") from error
        if feeds.labels is not None:
            hits.add(originals, outputs)
        advance()
    return list(comparisons.values()), hits


@dataclass
class _Hits:
    """The classes that both models name, by the first output that looks like scores."""

    original: list[Array]
    new: list[Array]
    output: str

    def add(self, originals: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        for name, array in originals.items():
            rows = score_rows(array)
            others = score_rows(outputs[name]) if name in outputs else None
            if rows is not None and others is not None:
                self.output = name
                self.original.append(rows.argmax(1))
                self.new.append(others.argmax(1))
                return


def _accuracy(hits: _Hits, labels: Array | None) -> Accuracy | None:
    """None where the labels do not count the rows of the scores."""
    if labels is None or not hits.original:
        return None
    original, new = np.concatenate(hits.original), np.concatenate(hits.new)
    if len(original) != len(labels):
        return None
    before, after = (float(np.mean(classes == labels)) for classes in (original, new))
    return Accuracy(hits.output, len(labels), before, after)


def _write(spool: IO[bytes], array: object) -> None:
    np.lib.format.write_array(spool, np.asarray(array), allow_pickle=True)


def _read(spool: IO[bytes]) -> Array:
    # Only what this process wrote into its own nameless file is unpickled here (arrays of strings).
    array: Array = np.lib.format.read_array(spool, allow_pickle=True)
    return array


def _label(model: Model) -> str:
    return "in memory" if isinstance(model, bytes) else str(model)
