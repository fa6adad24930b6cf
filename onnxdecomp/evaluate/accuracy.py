"""Top-1 accuracy of two models on the same labels, on the way through their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.runtime.metrics import are_classes, score_rows


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy of `output` on the labels of the data."""

    output: str
    samples: int
    original: float
    new: float


@dataclass
class Hits:
    """The classes that both models name, by the first output that looks like scores."""

    original: list[Array]
    new: list[Array]
    output: str

    def add(self, tensors: Mapping[str, tuple[Array, Array]]) -> None:
        for name, (original, new) in tensors.items():
            rows, others = score_rows(original), score_rows(new)
            if rows is not None and others is not None:
                self.output = name
                self.original.append(rows.argmax(1))
                self.new.append(others.argmax(1))
                return


def accuracy(hits: Hits, labels: Array | None) -> Accuracy | None:
    """None where the labels are no classes, or do not count the rows of the scores."""
    if labels is None or not hits.original or not are_classes(labels):
        return None
    original, new = np.concatenate(hits.original), np.concatenate(hits.new)
    if len(original) != len(labels):
        return None
    before, after = (float(np.mean(classes == labels)) for classes in (original, new))
    return Accuracy(hits.output, len(labels), before, after)
