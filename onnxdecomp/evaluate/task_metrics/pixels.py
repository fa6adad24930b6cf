"""psnr: how near pictures are to those that are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.base import BuiltIn, Labels, ModelRun, Score, labels_of

_MOST = 100.0
"""Decibels of what does not differ at all, and the most that anything gets."""


@dataclass(frozen=True)
class Psnr(BuiltIn):
    """The peak signal-to-noise ratio in dB, the mean over the samples, at most 100 each.

    The references are the labels, of the output's shape, or else the original's outputs. The peak is 1 where
    all of their numbers are from 0 to 1, 255 where they are whole and from 0 to 255, else their range: a
    spectrum is no picture of few values.
    """

    key: ClassVar[str] = "psnr"
    summary: ClassVar[str] = "peak signal-to-noise ratio in dB against labels, or the original's output"
    labels: ClassVar[Labels] = "welcome"
    compares: ClassVar[bool] = True

    def score(self, run: ModelRun) -> Score:
        errors: list[Array] = []
        low, high, whole = np.inf, -np.inf, True
        for batch in run.batches():
            name, array = self.picked(batch.outputs)
            wanted = batch.originals[name] if batch.labels is None else labels_of(self, batch, len(array))
            if wanted.size != array.size or wanted.dtype.kind not in "iufV":
                raise UsageError(
                    f"--metric {self.name}: labels of shape {wanted.shape} are no references for the output "
                    f"{name!r} of shape {array.shape}"
                )
            one, two = (np.asarray(a, np.float64).reshape(len(array), -1) for a in (array, wanted))
            errors.append(np.mean((one - two) ** 2, axis=1))
            low, high = min(low, float(two.min())), max(high, float(two.max()))
            whole = whole and bool(np.array_equal(two, np.rint(two)))
        peak = high - low or abs(high)
        if low >= 0 and high <= 1:
            peak = 1.0
        elif low >= 0 and high <= 255 and whole:
            peak = 255.0
        noise = np.concatenate(errors)
        decibels = 10 * np.log10(peak**2 / np.maximum(noise, 1e-300))
        found = np.where(noise > 0, np.minimum(decibels, _MOST), _MOST)
        return Score(float(found.mean()), found)
