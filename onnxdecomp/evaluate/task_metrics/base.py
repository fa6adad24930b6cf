"""TaskMetric: a number that says how good a model is at its task, and what it is told of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds

Labels = Literal["needed", "welcome", "unused"]
"""Whether a metric cannot do without labels, takes them where there are some, or looks at none."""


@dataclass(frozen=True, eq=False)
class Score:
    """What a metric says of a model.

    Attributes:
        value: The metric.
        samples: [n] what each sample adds to it, or None where it is no mean.
        weights: [n] what it is divided by: `value` is the sum of the one over the sum of the other; None: 1.
        of: The metric of some of the `units`, given by their places, each as often as it is named; None where
            it cannot be computed anew.
        units: Samples, or pairs of them, that `of` draws from.
    """

    value: float
    samples: Array | None = None
    weights: Array | None = None
    of: Callable[[Array], float] | None = None
    units: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """One run of a model.

    Attributes:
        feed: What it was given.
        outputs: What it gave, by name.
        originals: What the original gave, by name; empty for a metric that does not ask for it.
        labels: Those of the feed's rows, or None.
        real: Which values of an output count, by its name and shape; None: all (see onnxdecomp.data.mask).
    """

    feed: Mapping[str, Array]
    outputs: Mapping[str, Any]
    originals: Mapping[str, Any]
    labels: Array | None
    real: Callable[[str, tuple[int, ...]], Array | None]


class ModelRun(ABC):
    """A model that is measured, and the samples that it is measured on."""

    feeds: Feeds

    @property
    @abstractmethod
    def session(self) -> Any:
        """The model as a session of ONNX Runtime."""

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Run the model on all samples, in order.

        Raises:
            ModelError: It fails on one of them.
        """


@dataclass(frozen=True)
class TaskMetric(ABC):
    """A metric of a task. Subclasses are those built in, and one for functions of users.

    Attributes:
        summary: For people.
        labels: What it wants of labels.
        compares: Whether it compares with the original's outputs, where there are no labels.
        lower_is_better: A rate of errors, or a distance.
        points: It is a share of samples: a drop of 1 % is one of its hundred points.
    """

    summary: ClassVar[str]
    labels: ClassVar[Labels] = "unused"
    compares: ClassVar[bool] = False
    points: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """As it is named by the user."""

    @property
    def lower_is_better(self) -> bool:
        return False

    @abstractmethod
    def score(self, run: ModelRun) -> Score:
        """Measure a model.

        Raises:
            UsageError: The outputs or labels are not of the kind.
            ModelError: The model fails on a sample.
        """

    def loss(self, before: float, after: float) -> float:
        """By how much `after` is worse than `before`; below 0 where it is better."""
        return after - before if self.lower_is_better else before - after


@dataclass(frozen=True)
class BuiltIn(TaskMetric):
    """A metric that is known by its name.

    Attributes:
        output: The output that it looks at; "" for the first one of floating-point numbers.
        key: Its name.
    """

    output: str = ""

    key: ClassVar[str]

    @property
    def name(self) -> str:
        return f"{self.key}:{self.output}" if self.output else self.key

    def picked(self, outputs: Mapping[str, Any], *kinds: str) -> tuple[str, Array]:
        """The output that is looked at, with its name.

        Args:
            outputs: All, by name.
            kinds: Of NumPy's types, those that will do, the best first; without any, floating point.

        Raises:
            UsageError: There is none of the name, or of such a type.
        """
        names = [self.output] if self.output else list(outputs)
        for kind in kinds or ("fV",):
            for name in names:
                array = outputs.get(name)
                if isinstance(array, np.ndarray) and array.ndim and array.dtype.kind in kind:
                    return name, array
        if self.output and self.output not in outputs:
            raise UsageError(f"--metric {self.name}: the model's outputs are {', '.join(outputs)}")
        what = f"the output {self.output!r} is none" if self.output else "the model has none"
        wanted = "text or numbers" if kinds else "floating-point numbers"
        raise UsageError(f"--metric {self.name} needs an output of {wanted}: {what}")


def labels_of(metric: TaskMetric, batch: Batch, rows: int) -> Array:
    """The labels of a batch of so many rows.

    Raises:
        UsageError: There are none, or their number is another.
    """
    if batch.labels is None:
        raise UsageError(f"--metric {metric.name} needs labels: give samples with labels by --eval")
    if len(batch.labels) != rows:
        raise UsageError(
            f"--metric {metric.name}: {len(batch.labels)} labels do not fit {rows} rows of the output"
        )
    return batch.labels
