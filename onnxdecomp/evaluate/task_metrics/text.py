"""wer and cer: errors in what is read or heard, over all words or characters that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.base import BuiltIn, Labels, ModelRun, Score, labels_of

Units: TypeAlias = Sequence[object]
"""What errors are counted in: words, characters, or tokens."""


@dataclass(frozen=True)
class _ErrorRate(BuiltIn):
    """Insertions, deletions and substitutions over the length of the labels (Levenshtein 1966).

    Outputs are text, token numbers [samples, length], or scores [samples, steps, classes], of which the
    largest are taken as CTC does it (Graves et al. 2006): repetitions and class 0 are dropped. Labels are
    text, or token numbers padded with negative ones; errors are counted in tokens then.
    """

    labels: ClassVar[Labels] = "needed"

    @property
    def lower_is_better(self) -> bool:
        return True

    def units(self, text: str) -> Units:
        """What a text consists of."""
        return text

    def score(self, run: ModelRun) -> Score:
        errors: list[int] = []
        lengths: list[int] = []
        for batch in run.batches():
            _, array = self.picked(batch.outputs, "OUS", "fViu")
            wanted = self._read(labels_of(self, batch, len(array)))
            for one, two in zip(wanted, self._read(array), strict=True):
                if isinstance(one, str) != isinstance(two, str):
                    raise UsageError(
                        f"--metric {self.name}: labels and outputs are not both text, or both token numbers; "
                        "what has to be decoded first needs a function of yours (see docs/guides/metrics.md)"
                    )
                words = [self.units(text) if isinstance(text, str) else text for text in (one, two)]
                errors.append(edits(*words))
                lengths.append(len(words[0]))
        if not sum(lengths):
            raise UsageError(f"--metric {self.name}: the labels are empty")
        return Score(sum(errors) / sum(lengths), np.array(errors, float), np.array(lengths, float))

    def _read(self, array: Array) -> list[Any]:
        """One text or one list of tokens for each sample."""
        if array.dtype.kind in "OUS":
            return [_text(row) for row in array.reshape(len(array), -1)]
        if array.dtype.kind in "iu":
            return [row[row >= 0].tolist() for row in array.reshape(len(array), -1)]
        if array.ndim != 3:
            raise UsageError(
                f"--metric {self.name}: an output of shape {array.shape} is neither text, nor token numbers, "
                "nor scores [samples, steps, classes]"
            )
        return [collapsed(row.argmax(1)) for row in array]


@dataclass(frozen=True)
class Wer(_ErrorRate):
    """The word error rate."""

    key: ClassVar[str] = "wer"
    summary: ClassVar[str] = "word error rate of texts against labels; lower is better"

    def units(self, text: str) -> Units:
        return text.split()


@dataclass(frozen=True)
class Cer(_ErrorRate):
    """The character error rate."""

    key: ClassVar[str] = "cer"
    summary: ClassVar[str] = "character error rate of texts against labels; lower is better"


def edits(wanted: Units, found: Units) -> int:
    """The fewest insertions, deletions and substitutions that make one list of the other."""
    kinds = {unit: place for place, unit in enumerate(dict.fromkeys((*wanted, *found)))}
    own = np.array([kinds[unit] for unit in found], np.int64)
    steps = np.arange(len(found) + 1)
    row = steps
    for count, unit in enumerate(wanted, 1):
        new = np.concatenate(([count], np.minimum(row[1:] + 1, row[:-1] + (own != kinds[unit]))))
        row = np.minimum.accumulate(new - steps) + steps
    return int(row[-1])


def collapsed(path: Array) -> list[int]:
    """The tokens of a CTC path, whose class 0 is the blank."""
    changed = np.concatenate(([True], path[1:] != path[:-1])) if len(path) else np.zeros(0, bool)
    return [int(token) for token in path[changed] if token]


def _text(row: Array) -> str:
    if len(row) != 1:
        return " ".join(map(_decoded, row))
    return _decoded(row[0])


def _decoded(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
