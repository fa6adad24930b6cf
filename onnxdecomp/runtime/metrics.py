"""How far a model's outputs are from the original's, summed up over any number of samples.

All sums are in float64, whatever the outputs are. Values that the original itself leaves infinite or NaN
are counted and otherwise left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array

_KEPT = 1 << 22
"""Absolute errors kept for the percentile; beyond that, an evenly thinned sample of them."""


@dataclass(frozen=True)
class OutputError:
    """The difference of one output between the original (x) and the new model (y).

    Attributes:
        name, dtype: Of the output.
        values: How many values were compared.
        max_abs: max |y - x|.
        p99_abs: 99th percentile of |y - x|.
        rel_l2: ||y - x|| / ||x||; for integers, booleans and strings the fraction of values that differ.
        cosine: x.y / (||x|| ||y||); None where one of them is zero.
        sqnr_db: 10 log10(||x||^2 / ||y - x||^2); infinite where nothing differs.
        agreement: For integers, booleans and strings, the fraction of equal values.
        top1_agreement: The fraction of rows with the same largest entry, where the output looks like
            scores: floating point of shape [N, C], C > 1, but for trailing axes of size 1.
        nonfinite: Values that are NaN or infinite although the original's are finite.
        nonfinite_original: Values that are so in the original.
    """

    name: str
    dtype: str
    values: int
    max_abs: float | None
    p99_abs: float | None
    rel_l2: float
    cosine: float | None
    sqnr_db: float | None
    agreement: float | None
    top1_agreement: float | None
    nonfinite: int
    nonfinite_original: int


_BLOCK = 1 << 15
"""Values that are summed up at once: as many as stay in a processor's cache."""


class Comparison:
    """Running sums over one output; `add` each pair of arrays, then ask for the `result`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error_energy = 0.0
        self.energy = 0.0
        self._dtype = ""
        self._new_energy = 0.0
        self._product = 0.0
        self._max = 0.0
        self._values = 0
        self._equal = 0
        self._discrete = False
        self._nonfinite = 0
        self._nonfinite_original = 0
        self._rows = 0
        self._same_rows = 0
        self._errors: list[Array] = []
        self._kept = 0
        self._stride = 1

    def add(self, original: Array, new: Array, real: Array | None = None) -> None:
        """Count one pair in.

        Args:
            original, new: The arrays.
            real: Of the same shape: which of their values count; None for all.

        Raises:
            ValueError: The shapes differ.
        """
        if original.shape != new.shape:
            raise ValueError(
                f"the output {self.name!r} has shape {new.shape} where the original has {original.shape}"
            )
        self._dtype = str(original.dtype)
        # kind "V" is what NumPy calls the narrow floats of ml_dtypes
        if original.dtype.kind not in "fV":
            if real is not None:
                original, new = original[real], new[real]
            self._discrete = True
            self._values += original.size
            self._equal += int(np.sum(original == new))
            return
        if original.dtype.kind == "V":
            original, new = original.astype(np.float32), new.astype(np.float32)
        scores, new_scores = (
            score_rows(a if real is None else np.where(real, a, -np.inf)) for a in (original, new)
        )
        if real is not None:
            original, new = original[real], new[real]
        if scores is not None and new_scores is not None:
            self._rows += len(scores)
            self._same_rows += int(np.sum(scores.argmax(1) == new_scores.argmax(1)))
        x, y = original.ravel(), new.ravel()
        for start in range(0, x.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            self._sum(x[part].astype(np.float64), y[part].astype(np.float64))

    @np.errstate(over="ignore", invalid="ignore")
    def _sum(self, x: Array, y: Array) -> None:
        if not (np.isfinite(x @ x) and np.isfinite(y @ y)):
            finite = np.isfinite(x)
            self._nonfinite_original += int(x.size - np.count_nonzero(finite))
            broken = finite & ~np.isfinite(y)
            self._nonfinite += int(np.count_nonzero(broken))
            usable = finite & ~broken
            x, y = x[usable], y[usable]
        self._values += x.size
        if not x.size:
            return
        error = y - x
        self.error_energy += float(error @ error)
        self.energy += float(x @ x)
        self._new_energy += float(y @ y)
        self._product += float(x @ y)
        np.abs(error, out=error)
        self._max = max(self._max, float(error.max()))
        self._keep(error)

    def _keep(self, error: Array) -> None:
        self._errors.append(error[:: self._stride].astype(np.float32))
        self._kept += len(self._errors[-1])
        while self._kept > _KEPT:
            self._errors = [kept[::2] for kept in self._errors]
            self._kept = sum(map(len, self._errors))
            self._stride *= 2

    @property
    def discrete(self) -> bool:
        """Whether the values are no floating-point numbers."""
        return self._discrete

    @property
    def nonfinite(self) -> int:
        """See OutputError."""
        return self._nonfinite

    @property
    def rel_l2(self) -> float:
        if self._discrete:
            return 1 - self._equal / self._values if self._values else 0.0
        return ratio(self.error_energy, self.energy)

    def result(self) -> OutputError:
        """The metrics over everything added."""
        if self._discrete:
            agreement = self._equal / self._values if self._values else 1.0
            nothing = {"max_abs": None, "p99_abs": None, "cosine": None, "sqnr_db": None}
            return OutputError(
                name=self.name,
                dtype=self._dtype,
                values=self._values,
                rel_l2=1 - agreement,
                agreement=agreement,
                top1_agreement=None,
                nonfinite=0,
                nonfinite_original=0,
                **nothing,
            )
        norms = math.sqrt(self.energy) * math.sqrt(self._new_energy)
        if self.error_energy == 0:
            sqnr: float | None = math.inf
        else:
            sqnr = 10 * math.log10(self.energy / self.error_energy) if self.energy else None
        errors = np.concatenate(self._errors) if self._errors else np.zeros(1, np.float32)
        return OutputError(
            name=self.name,
            dtype=self._dtype,
            values=self._values,
            max_abs=self._max,
            p99_abs=float(np.percentile(errors, 99)),
            rel_l2=self.rel_l2,
            cosine=min(1.0, max(-1.0, self._product / norms)) if norms else None,
            sqnr_db=sqnr,
            agreement=None,
            top1_agreement=self._same_rows / self._rows if self._rows else None,
            nonfinite=self._nonfinite,
            nonfinite_original=self._nonfinite_original,
        )


def ratio(error_energy: float, energy: float) -> float:
    """sqrt(error_energy / energy); 0 where both are zero."""
    if energy == 0:
        return 0.0 if error_energy == 0 else math.inf
    return math.sqrt(error_energy / energy)


def are_classes(labels: Array) -> bool:
    """Whether labels are class indices: one whole number for each sample."""
    if labels.ndim != 1 or labels.dtype.kind not in "iufb":
        return False
    return bool(labels.dtype.kind != "f" or np.array_equal(labels, np.floor(labels)))


def score_rows(array: Array) -> Array | None:
    """The array as rows of class scores [N, C], or None if it does not look so (see OutputError)."""
    if array.dtype.kind not in "fV":
        return None
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    return array if array.ndim == 2 and array.shape[1] > 1 and len(array) else None
