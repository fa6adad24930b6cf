"""The corpus of real models, where there is one: its files, and its own ways to calibrate and evaluate."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench.intervals import paired_difference
from bench.provenance import ROOT
from onnxdecomp.core.layer import Array

_MOST = 1000
HELD_OUT = {"cifar10": ("cifar10_train_finetune_5000.npz",)}
"""Training samples that no calibration set holds, by the task's source."""

_ALL_THERE_IS = frozenset(
    (
        *("resnet20_cifar10", "vgg16_half_cifar10", "squeezenet1.1"),
        *("nsnet2", "magika_standard_v3_3", "mlperf_ad01"),
    )
)
"""Networks with few or small samples: all are taken, _MOST at most."""


@dataclass(frozen=True)
class Corpus:
    """The corpus in `folder`: corpus.json, corpus.py, models/ and data/.

    Raises:
        SystemExit: There is none (on first use).
    """

    folder: Path

    def has(self, name: str) -> bool:
        """Whether there is such a corpus, and the model in it."""
        return (self.folder / "corpus.py").exists() and any(m["name"] == name for m in self._opened.models)

    def model(self, name: str) -> Path:
        """The file of a model."""
        return Path(self._opened.model_path(self._opened.entry(name)))

    def calibration(self, name: str) -> dict[str, Array]:
        """Calibration inputs without labels, samples on the first axis."""
        count = _MOST if name in _ALL_THERE_IS else None
        return dict(self._module.calibration(self._opened, name, count))

    def evaluate(self, name: str, file: Path | None = None, most: int | None = None) -> dict[str, Any]:
        """The task's metric of a model and of the original (None: of that alone), and how far they differ.

        Under "change" is the difference of the metric with its interval (see `Difference.to_json`), or None
        where the task has no metric of its own, but the outputs' distance. `most` as for `paired`.
        """
        metric = self._opened.entry(name)["task"]["metric"]
        score, scores = self._module.SCORES[metric], []

        def kept(*sample: Any) -> Any:
            found = score(*sample)
            scores.append(next(iter(found.values())))
            return found

        with mock.patch.dict(self._module.SCORES, {metric: kept}):
            found = dict(self._module.evaluate(self._opened, name, file, self._count(name, most)))
        if file is None:
            return found
        # Of every sample first the original's, then the other's.
        change = paired_difference(np.array(scores[::2]), np.array(scores[1::2]))
        return {**found, "change": None if metric == "fidelity" else change.to_json()}

    def paired(
        self, name: str, file: Path, split: str = "eval", most: int | None = None
    ) -> tuple[Array, Array]:
        """The metric of every sample, [n] for the original and [n] for `file`.

        Args:
            name: A model with one input.
            file: The other model.
            split: "eval" for the task's own samples; "held_out" for training samples that are in no
                calibration set, by which choices are made (see `HELD_OUT`).
            most: Samples at most; None for all of the task.

        Raises:
            SystemExit: The corpus has no such samples for the model.
        """
        entry = self._opened.entry(name)
        if split == "held_out":
            files = HELD_OUT.get(entry["task"]["source"])
            if files is None:
                raise SystemExit(f"{name}: the corpus has no training samples beside those for calibration")
            entry = {**entry, "task": {**entry["task"], "files": list(files)}}
        score = self._module.SCORES[entry["task"]["metric"]]
        found = []
        for path in (self.model(name), file):
            session = self._opened.session(path)
            results = self._module.predictions(self._opened, entry, session, self._count(name, most))
            found.append(np.array([next(iter(score(entry["task"], *result).values())) for result in results]))
        return found[0], found[1]

    def inputs(self, name: str) -> Array:
        """The evaluation inputs of a model with one input, [n, …]."""
        entry = self._opened.entry(name)
        pairs = self._module.samples(self._opened, entry, "eval", int(entry["task"]["n"]))
        return np.stack([sample for sample, _ in pairs])

    def _count(self, name: str, most: int | None) -> int:
        samples = int(self._opened.entry(name)["task"]["n"])
        return samples if most is None else min(most, samples)

    @cached_property
    def _module(self) -> Any:
        return corpus_module(self.folder)

    @cached_property
    def _opened(self) -> Any:
        return self._module.Corpus(self.folder)


def corpus_module(folder: Path) -> Any:
    """The corpus' own functions: its file is no package.

    Raises:
        SystemExit: There is none.
    """
    path = folder / "corpus.py"
    spec = importlib.util.spec_from_file_location("corpus", path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"there is no corpus at {folder}: set ONNXDECOMP_CORPUS")
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpus"] = module  # its dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def add_option(parser: argparse.ArgumentParser) -> None:
    """--corpus FOLDER: by default $ONNXDECOMP_CORPUS, else ../shared/corpus beside the repository."""
    given = os.environ.get("ONNXDECOMP_CORPUS", ROOT.parent / "shared" / "corpus")
    parser.add_argument("--corpus", type=lambda text: Corpus(Path(text)), default=Corpus(Path(given)))
