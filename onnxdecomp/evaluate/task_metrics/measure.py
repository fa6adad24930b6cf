"""A metric on some samples: models measured, the original once, and what has changed with its interval."""

from __future__ import annotations

import math
import pickle
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array, Dim
from onnxdecomp.data.feeds import Feeds, rows
from onnxdecomp.data.mask import Mask
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.evaluate.task_metrics.base import Batch, ModelRun, Score, TaskMetric
from onnxdecomp.evaluate.task_metrics.interval import interval
from onnxdecomp.graph.save import save
from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.session import Feed, open_session, outputs_of, run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Model: TypeAlias = str | Path | bytes | ir.Model

_IN_MEMORY = 64 << 20
"""Bytes of the original's outputs that are kept in memory; more go to a temporary file."""


@dataclass(frozen=True)
class MetricChange:
    """What a metric says of the original and of another model, on the same samples.

    Attributes:
        name: The metric's.
        samples: On how many.
        labels: Whether labels took part; else it compares with the original, or is the user's matter.
        original, new: Its values.
        lower_is_better: Whether it is a rate of errors or a distance.
        points: Whether it is a share of samples, whose changes are told in points.
        loss: By how much it got worse, in its own unit; below 0 where it is better.
        low, high: The 95 % interval of new - original, or None where nothing tells it.
    """

    name: str
    samples: int
    labels: bool
    original: float
    new: float
    lower_is_better: bool
    points: bool
    loss: float
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class Task:
    """A metric on samples: `score` of any model, `original` of the one that came in.

    Attributes:
        metric: The metric.
        model: The original.
        feeds: The samples, with labels where they have some.
        mask: Which positions are real.
        provider, threads: Where models are run.
        batch: Samples that run together where the batch size is free.
    """

    metric: TaskMetric
    model: Path | bytes
    feeds: Feeds
    mask: Mask | None = None
    provider: str = "cpu"
    threads: int = 1
    batch: int = 32

    def __post_init__(self) -> None:
        """Refuse what is known beforehand.

        Raises:
            UsageError: The metric needs labels and there are none.
        """
        if self.metric.labels == "needed" and self.feeds.labels is None:
            raise UsageError(
                f"--metric {self.metric.name} needs labels (there are none in {self.feeds.source}): give "
                "samples with labels by --eval"
            )

    @cached_property
    def original(self) -> Score:
        """Of the model that came in; measured once.

        Raises:
            UsageError: It is no finite number, or as `score`.
        """
        with self._opened(self.model) as session:
            found = self.metric.score(_Run(self, session, known=self.compares))
        if not math.isfinite(found.value):
            raise UsageError(f"--metric {self.metric.name} gave {found.value:g} for the original: no goal")
        return found

    def score(self, model: Model) -> Score:
        """Measure a model.

        Raises:
            UsageError, ModelError: See TaskMetric.
        """
        with self._opened(model) as session:
            return self.metric.score(_Run(self, session))

    def loss(self, model: Model) -> float:
        """By how much a model is worse than the original: below 0 if it is better, infinite if it broke."""
        found = self.metric.loss(self.original.value, self.score(model).value)
        return found if math.isfinite(found) else math.inf

    def change(self, model: Model) -> MetricChange:
        """What the metric says of a model beside the original."""
        before, after = self.original, self.score(model)
        ends = interval(before, after) if math.isfinite(after.value) else None
        low, high = ends if ends is not None else (None, None)
        return MetricChange(
            self.metric.name,
            sum(map(rows, self.feeds)),
            self.feeds.labels is not None and self.metric.labels != "unused",
            before.value,
            after.value,
            self.metric.lower_is_better,
            self.metric.points,
            self.metric.loss(before.value, after.value),
            low,
            high,
        )

    @property
    def compares(self) -> bool:
        """Whether the original's outputs are asked for."""
        metric = self.metric
        return metric.compares and not (metric.labels == "welcome" and self.feeds.labels is not None)

    @cached_property
    def declared(self) -> dict[str, Sequence[Dim]]:
        """The shapes that the original declares for its outputs."""
        with self._opened(self.model) as session:
            return {spec.name: spec.shape for spec in outputs_of(session)}

    @cached_property
    def size(self) -> int:
        """Samples that run together: one where the model takes no more, or does not keep them apart."""
        if not self.feeds.stackable or len(self.feeds) < 2:
            return 1
        with self._opened(self.model) as session:
            return self.batch if apart(session, self.feeds, self.batch) else 1

    @cached_property
    def _outputs(self) -> _Spooled:
        """The original's outputs."""
        spooled = _Spooled()
        with self._opened(self.model) as session:
            for feed in self.feeds.batches(self.size):
                spooled.add(_outputs(session, feed))
        return spooled

    def originals(self) -> Iterator[dict[str, Any]]:
        """The original's outputs, run after run; empty where nobody asks for them."""
        return self._outputs.read() if self.compares else iter(lambda: {}, None)

    @contextmanager
    def _opened(self, model: Model) -> Iterator[InferenceSession]:
        with temporary_files.folder() as folder:
            if isinstance(model, ir.Model):
                file: str | Path | bytes = save(model.clone(), folder / "model.onnx")
            else:
                file = model
            yield open_session(file, provider=self.provider, threads=self.threads)


class _Run(ModelRun):
    """A model in a session, on the samples of a task; with `known` the original, which has run on them."""

    def __init__(self, task: Task, session: InferenceSession, *, known: bool = False) -> None:
        self.task, self.feeds, self._session, self._known = task, task.feeds, session, known

    @property
    def session(self) -> InferenceSession:
        return self._session

    def batches(self) -> Iterator[Batch]:
        task, at = self.task, 0
        labels = task.feeds.labels
        each = None if labels is None else task.feeds.labels_each()
        feeds = task.feeds.batches(task.size)
        done = 0
        for feed, originals in zip(feeds, task.originals(), strict=False):
            count = rows(feed) if task.size > 1 else 1
            own = None
            if labels is not None and each is not None:
                end = at + sum(each[done : done + count])
                own, at, done = labels[at:end], end, done + count
            outputs = dict(originals) if self._known else _outputs(self._session, feed)
            yield Batch(feed, outputs, originals, own, self._real(feed))

    def _real(self, feed: Feed) -> Callable[[str, tuple[int, ...]], Array | None]:
        mask, declared = self.task.mask, self.task.declared
        if mask is None:
            return lambda name, shape: None
        return lambda name, shape: mask.values(feed, shape, declared.get(name))


class _Spooled:
    """Outputs of many runs, in memory or in a temporary file."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._count = 0
        weakref.finalize(self, self._file.close)

    def add(self, outputs: dict[str, Any]) -> None:
        pickle.dump(outputs, self._file, pickle.HIGHEST_PROTOCOL)
        self._count += 1

    def read(self) -> Iterator[dict[str, Any]]:
        self._file.seek(0)
        for _ in range(self._count):
            # Only what this process wrote into its own nameless file is unpickled here.
            yield pickle.load(self._file)


def apart(session: InferenceSession, feeds: Feeds, batch: int) -> bool:
    """Whether samples can run together: the model takes them, and no output is reduced over the batch.

    Such an output has the same shape however many samples there are, as a constant has, but other values.
    """
    try:
        many, one = (run(session, next(feeds.batches(count))) for count in (batch, 1))
    except ModelError:
        return False
    return all(
        a.shape != b.shape or np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(many, one, strict=True)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    )


def _outputs(session: InferenceSession, feed: Feed) -> dict[str, Any]:
    return dict(zip([spec.name for spec in outputs_of(session)], run(session, feed), strict=True))
