"""spearman: whether embeddings tell near from far as they should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.base import Batch, BuiltIn, Labels, ModelRun, Score

_MOST = 2048
"""Samples whose similarities with each other are compared."""

_FEWEST = 3
"""Samples, or pairs with labels, without which there is no order to compare."""


@dataclass(frozen=True)
class Spearman(BuiltIn):
    """Spearman's rank correlation of the cosine similarities of embeddings.

    An output [samples, features] holds embeddings; of [samples, positions, features] they are the means over
    the positions that are real (see onnxdecomp.data.mask). With labels, samples 2k and 2k + 1 are a pair,
    whose rating is the label of both: the metric is the correlation of similarities with ratings, as on the
    STS benchmark (Reimers and Gurevych 2019). Without labels, each sample's similarities with all others are
    compared with those that the original gives, and the metric is the mean over the samples.
    """

    key: ClassVar[str] = "spearman"
    summary: ClassVar[str] = (
        "rank correlation of cosine similarities of pooled embeddings, with ratings of pairs (labels) or "
        "the original's"
    )
    labels: ClassVar[Labels] = "welcome"
    compares: ClassVar[bool] = True

    def score(self, run: ModelRun) -> Score:
        new: list[Array] = []
        old: list[Array] = []
        labels: list[Array] = []
        for batch in run.batches():
            name, array = self.picked(batch.outputs)
            new.append(pooled(batch, name, array))
            if batch.labels is not None:
                labels.append(batch.labels)
            else:
                old.append(pooled(batch, name, batch.originals[name]))
        embeddings = _unit(np.concatenate(new))
        if labels:
            return self._rated(embeddings, np.concatenate(labels))
        return self._alike(embeddings, _unit(np.concatenate(old)))

    def _rated(self, embeddings: Array, labels: Array) -> Score:
        pairs = len(embeddings) // 2
        fits = labels.ndim == 1 and labels.dtype.kind in "iuf" and len(labels) == len(embeddings) == 2 * pairs
        if not fits or not np.array_equal(labels[::2], labels[1::2]):
            raise UsageError(
                f"--metric {self.name}: labels rate pairs, samples 0 and 1, 2 and 3, …, and stand at both of "
                "a pair (numpy.repeat(ratings, 2)); without labels those of the original are compared with"
            )
        self._require(pairs, "pairs")
        cosines, ratings = (embeddings[::2] * embeddings[1::2]).sum(1), np.asarray(labels[::2], np.float64)

        def of(places: Array) -> float:
            return correlation(cosines[places], ratings[places])

        return Score(of(np.arange(pairs)), of=of, units=pairs)

    def _alike(self, new: Array, old: Array) -> Score:
        new, old = new[:_MOST], old[:_MOST]
        self._require(len(new), "samples")
        others = ~np.eye(len(new), dtype=bool)
        pairs = zip(new @ new.T, old @ old.T, others, strict=True)
        found = np.array([correlation(one[other], two[other]) for one, two, other in pairs])
        return Score(float(found.mean()), found)

    def _require(self, count: int, what: str) -> None:
        if count < _FEWEST:
            raise UsageError(f"--metric {self.name} needs at least {_FEWEST} {what}, not {count}")


def pooled(batch: Batch, name: str, array: Array) -> Array:
    """Embeddings [samples, features]: means over the real positions of [samples, positions, features]."""
    values = np.asarray(array, np.float64)
    if values.ndim != 3:
        return values.reshape(len(values), -1)
    real = batch.real(name, array.shape)
    if real is None:
        return np.asarray(values.mean(1))
    counted = np.where(real, values, 0.0)
    return np.asarray(counted.sum(1) / np.maximum(real.sum(1), 1))


def correlation(a: Array, b: Array) -> float:
    """Spearman's correlation of two rows of numbers; 1 where they are in one order, and no order is 0."""
    one, two = ranks(a), ranks(b)
    if np.array_equal(one, two):
        return 1.0
    one, two = one - one.mean(), two - two.mean()
    norms = float(np.sqrt((one @ one) * (two @ two)))
    return float(one @ two) / norms if norms else 0.0


def ranks(values: Array) -> Array:
    """Ranks from 1 on; of equal numbers the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    means = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(means[places])


def _unit(rows: Array) -> Array:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-30))
