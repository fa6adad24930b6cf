"""Losses as targets: the error of the outputs, the drop of accuracy, classes that change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.statistics import Calibration, parted
from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.metrics import score_rows
from onnxdecomp.search.metrics.base import FRACTIONS, Amount, LossMetric, Outcome, Reference
from onnxdecomp.search.sensitivity import output_errors


@dataclass(frozen=True)
class Error(LossMetric):
    """The relative L2 error of the worst output: a state that is fed back is an output, too."""

    name: ClassVar[str] = "error"
    units: ClassVar[Mapping[str, float]] = FRACTIONS
    examples: ClassVar[str] = '"error=0.05" or "error=5%"'
    margin: ClassVar[float] = 0.95
    power: ClassVar[float] = 2.0
    of_outputs: ClassVar[bool] = True

    def reached(self, outcome: Outcome) -> Amount:
        return Amount(outcome.error)

    def expected(self, limit: float) -> float:
        # What layers lose adds up to more than the network does once they are fitted to each other.
        return limit**2 * 1.5

    def measure(self, reference: Reference) -> Callable[[ir.Model], float]:
        outputs, calibration = reference.outputs, reference.calibration
        return lambda made: max(output_errors(made, outputs, calibration), default=0.0) ** 0.5


_BOLD = 0.03
"""The loss of the first plan that is tried for a drop of accuracy, at most."""


@dataclass(frozen=True)
class Drop(LossMetric):
    """The loss of accuracy on labelled samples: 0.01 is one percentage point."""

    name: ClassVar[str] = "drop"
    units: ClassVar[Mapping[str, float]] = {**FRACTIONS, "pp": 0.01}
    examples: ClassVar[str] = '"drop=0.01", "drop=1pp" or "drop=1%"'

    def refusal(self, labelled: Feeds | None) -> str | None:
        if labelled is not None and labelled.labels is not None:
            return None
        none = "" if labelled is None else f" (there are none in {labelled.source})"
        return f"--target drop=… needs labels{none}: give samples with labels by --eval"

    def reached(self, outcome: Outcome) -> Amount:
        return Amount(None if outcome.accuracy is None else -outcome.accuracy)

    def expected(self, limit: float) -> float:
        return min(2.0 * limit, _BOLD)

    def measure(self, reference: Reference) -> Callable[[ir.Model], float]:
        assert reference.labelled is not None
        labelled, calibration = reference.labelled, reference.calibration
        before = accuracy(reference.model, labelled, calibration)
        return lambda made: before - accuracy(made, labelled, calibration)


@dataclass(frozen=True)
class Disagreement(LossMetric):
    """The share of calibration inputs, out of those that trials are not fitted to, whose class changes.

    It needs no labels. Of n inputs it tells multiples of 1/n only.
    """

    name: ClassVar[str] = "disagreement"
    units: ClassVar[Mapping[str, float]] = FRACTIONS
    examples: ClassVar[str] = '"disagreement=0.02" or "disagreement=2%"'

    def reached(self, outcome: Outcome) -> Amount:
        return Amount(None if outcome.agreement is None else 1 - outcome.agreement)

    def expected(self, limit: float) -> float:
        return min(2.0 * limit, _BOLD)

    def measure(self, reference: Reference) -> Callable[[ir.Model], float]:
        unseen = parted(reference.calibration)[1]
        before = predictions(reference.model, unseen.feeds, unseen, "whether two models agree")
        return lambda made: float(
            np.mean(predictions(made, unseen.feeds, unseen, "whether two models agree") != before)
        )


def accuracy(model: ir.Model, labelled: Feeds, run: Calibration) -> float:
    """The share of samples whose largest score is their label's.

    Args:
        model: Its first output is a table of scores.
        labelled: The samples.
        run: Where the model is run, and in which batches.

    Raises:
        UsageError: The model's first output is no table of scores with a row per label.
    """
    found = predictions(model, labelled, run, "a drop of accuracy")
    labels = labelled.labels
    if labels is None or len(labels) != len(found):
        raise UsageError(f"{len(found)} rows of scores do not fit the labels")
    return float(np.mean(found == labels))


def predictions(model: ir.Model, feeds: Feeds, run: Calibration, what: str) -> Array:
    """The class of the largest score in every row of the first output, in the order of the samples.

    Args:
        model: The model.
        feeds: The samples.
        run: Where the model is run, and in which batches.
        what: What is unknown where there are no scores, for the message.

    Raises:
        UsageError: The model's first output is no table of scores.
    """
    name = str(model.graph.outputs[0].name)
    observer = open_observer(model, [name], provider=run.provider, threads=run.threads)
    rows = []
    for feed in feeds.batches(run.batch):
        scores = score_rows(observer.run(feed)[0])
        if scores is None:
            raise UsageError(f"the output {name!r} holds no scores of classes: {what} is unknown")
        rows.append(scores.argmax(1))
    return np.concatenate(rows)
