"""token-agreement and kl: whether a model would say what the original says, and how surely."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.base import BuiltIn, ModelRun, Score

_TINY = 1e-12
"""A probability that is taken for 0."""


@dataclass(frozen=True)
class _OfLogits(BuiltIn):
    """Of scores along the last axis, at every position that is real, against the original's."""

    compares: ClassVar[bool] = True

    @abstractmethod
    def at(self, original: Array, new: Array) -> Array:
        """[positions, classes] twice as one number for each position."""

    def score(self, run: ModelRun) -> Score:
        sums: list[float] = []
        counts: list[int] = []
        for batch in run.batches():
            name, new = self.picked(batch.outputs)
            original = batch.originals[name]
            if original.shape != new.shape:
                raise UsageError(
                    f"--metric {self.name}: the output {name!r} has shape {new.shape} where the original has "
                    f"{original.shape}"
                )
            real = batch.real(name, new.shape)
            while new.ndim > 2 and new.shape[-1] == 1:
                original, new = original[..., 0], new[..., 0]
                real = None if real is None else real[..., 0]
            if new.ndim < 2 or new.shape[-1] < 2:
                raise UsageError(
                    f"--metric {self.name}: the output {name!r} of shape {new.shape} holds no scores"
                )
            for place in range(len(new)):
                rows = [np.asarray(a[place], np.float64).reshape(-1, new.shape[-1]) for a in (original, new)]
                if real is not None:
                    kept = real[place].reshape(rows[0].shape).any(1)
                    rows = [row[kept] for row in rows]
                sums.append(float(self.at(*rows).sum()))
                counts.append(len(rows[0]))
        weights = np.array(counts, np.float64)
        if not weights.sum():
            raise UsageError(f"--metric {self.name}: every position is padding")
        found = np.array(sums)
        return Score(float(found.sum() / weights.sum()), found, weights)


@dataclass(frozen=True)
class TokenAgreement(_OfLogits):
    """The share of positions (of samples, where each has one) whose largest score is the original's."""

    key: ClassVar[str] = "token-agreement"
    summary: ClassVar[str] = "share of positions whose largest score is that of the original"
    points: ClassVar[bool] = True

    def at(self, original: Array, new: Array) -> Array:
        return np.asarray(original.argmax(1) == new.argmax(1))


@dataclass(frozen=True)
class Kl(_OfLogits):
    """The Kullback-Leibler divergence KL(original || new) of the softmax, in nats, the mean over positions.

    Where the original's rows are probabilities already, they are taken as such.
    """

    key: ClassVar[str] = "kl"
    summary: ClassVar[str] = (
        "divergence of the softmax of scores from the original's, in nats; lower is better"
    )

    @property
    def lower_is_better(self) -> bool:
        return True

    def at(self, original: Array, new: Array) -> Array:
        if len(original) and original.min() >= 0 and np.allclose(original.sum(1), 1, atol=1e-3):
            one, two = (np.log(np.maximum(rows, _TINY)) for rows in (original, new))
        else:
            one, two = _log_softmax(original), _log_softmax(new)
        return np.asarray(np.maximum((np.exp(one) * (one - two)).sum(1), 0.0))


def _log_softmax(rows: Array) -> Array:
    shifted = rows - rows.max(1, keepdims=True) if rows.size else rows
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
