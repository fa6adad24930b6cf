"""top1: how often the largest score is the label's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.base import BuiltIn, Labels, ModelRun, Score, labels_of
from onnxdecomp.runtime.metrics import are_classes, score_rows


@dataclass(frozen=True)
class Top1(BuiltIn):
    """The share of samples whose largest score is that of their label, a class index."""

    key: ClassVar[str] = "top1"
    summary: ClassVar[str] = "share of samples whose largest score is their label's"
    labels: ClassVar[Labels] = "needed"
    points: ClassVar[bool] = True

    def score(self, run: ModelRun) -> Score:
        hits = []
        for batch in run.batches():
            name, array = self.picked(batch.outputs)
            scores = score_rows(array)
            if scores is None:
                raise UsageError(f"the output {name!r} holds no scores of classes: its accuracy is unknown")
            labels = labels_of(self, batch, len(scores))
            if not are_classes(labels):
                raise UsageError(f"--metric {self.name}: labels are class indices, not {labels.dtype}")
            hits.append(scores.argmax(1) == labels)
        found = np.concatenate(hits).astype(np.float64)
        return Score(float(found.mean()), found)
