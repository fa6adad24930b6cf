"""A metric that is the user's own function: `module:callable`, `file.py:callable`, or one in Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.data.callables import guarded, importing
from onnxdecomp.data.feeds import Feeds, rows
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.base import Labels, ModelRun, Score, TaskMetric
from onnxdecomp.runtime.memory_budget import budget, gibibytes
from onnxdecomp.runtime.session import Feed

LOWER = "higher_is_better"
"""An attribute of the function: False says that lower values are better."""

SESSION = "session"
"""The name of the first parameter of a function that runs the model itself."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What a user's function gets as `data`.

    Attributes:
        feeds: What the model is to be given, one sample after the other; iterated anew each time.
        labels: As the data have them, or None.
    """

    feeds: Feeds
    labels: Array | None

    def __len__(self) -> int:
        return sum(map(rows, self.feeds))

    def __iter__(self) -> Iterator[Feed]:
        return iter(self.feeds)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """The inputs by name, [samples, ...]; a list of arrays where their shapes differ."""
        return gathered(list(self.feeds))


@dataclass(frozen=True)
class UserMetric(TaskMetric):
    """A function f(outputs, data), or f(session, data), that gives a number or one number for each sample.

    Attributes:
        source: How it is named: of a callable in Python its own name.
        function: That callable.
        imported: Whether it was imported by its name; its folder can then be imported from while it runs.
    """

    source: str
    function: Callable[..., object]
    imported: bool = False

    summary: ClassVar[str] = "a function of the user's"
    labels: ClassVar[Labels] = "welcome"

    @property
    def name(self) -> str:
        return self.source

    @property
    def lower_is_better(self) -> bool:
        return getattr(self.function, LOWER, True) is False

    def score(self, run: ModelRun) -> Score:
        data = Samples(run.feeds, run.feeds.labels)
        first = run.session if _wants_session(self.function) else self._outputs(run)
        with importing(self.source) if self.imported else nullcontext(), guarded(f"--metric {self.name}"):
            found = self.function(first, data)
        return self._read(found)

    def _outputs(self, run: ModelRun) -> dict[str, Any]:
        """All outputs on all samples.

        Raises:
            UsageError: They do not fit into the memory.
        """
        held: list[Mapping[str, Any]] = []
        size, most = 0, budget()
        for batch in run.batches():
            size += sum(getattr(array, "nbytes", 0) for array in batch.outputs.values())
            if size > most:
                raise UsageError(
                    f"--metric {self.name}: the outputs on all samples take more than {gibibytes(most)} of "
                    "memory: give fewer samples, or write it as f(session, data)"
                )
            held.append(batch.outputs)
        return gathered(held)

    def _read(self, found: object) -> Score:
        try:
            array = np.asarray([] if found is None else found, np.float64)
        except (TypeError, ValueError):
            raise UsageError(
                f"--metric {self.name} gave a {type(found).__name__}; a number is wanted, or an array of one "
                "number for each sample"
            ) from None
        if found is None:
            raise UsageError(f"--metric {self.name} gave nothing: does it return its number?")
        if array.ndim > 1 or not array.size:
            raise UsageError(
                f"--metric {self.name} gave an array of shape {array.shape}; a number is wanted, or an array "
                "of one number for each sample"
            )
        if array.ndim == 0:
            return Score(float(array))
        return Score(float(array.mean()), array)


def gathered(held: list[Any]) -> dict[str, Any]:
    """Values by name of all runs: one array where their shapes allow it, else a list of one for each run."""
    found: dict[str, Any] = {}
    for name in held[0] if held else ():
        values = [each[name] for each in held]
        arrays = [value for value in values if isinstance(value, np.ndarray) and value.ndim]
        alike = len(arrays) == len(values) and len({array.shape[1:] for array in arrays}) == 1
        found[name] = np.concatenate(arrays) if alike else values
    return found


def _wants_session(function: Callable[..., object]) -> bool:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some callables written in C have none
        return False
    return names[:1] == [SESSION]
