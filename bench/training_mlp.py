"""An MLP on MNIST whose first layer is decomposed: as T3F's tutorial does it, and by other methods."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import onnxdecomp
from bench.corpus import Corpus
from bench.intervals import paired_difference
from bench.training_data import mnist
from bench.training_networks import at_parameters, mlp
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.save import save

METHODS: dict[str, dict[str, Any]] = {
    "tt": {"shape": "7x4x7x4:5x5x5x5"},
    "tr": {"shape": "7x4x7x4:5x5x5x5"},
    "ht": {"shape": "7x4x7x4:5x5x5x5"},
    "btt": {"blocks": 14},
    "kronecker": {},
    "svd": {},
}
CORES = 14_960
"""Parameters of the first layer as T3F's train of rank 16 has it, in place of 490,000."""

DENSE = {"epochs": 12, "batch": 50, "rate": 1e-2, "held_out": 0.05, "objective": "labels"}
TUNED = {"epochs": 2, "batch": 8, "rate": 3e-3, "held_out": 0.05, "train": "all"}


def run(
    corpus: Corpus, folder: Path, methods: Sequence[str] = tuple(METHODS), threads: int | None = None
) -> Iterator[dict[str, Any]]:
    """One row for the dense network, and one per method."""
    train, test = mnist(corpus, (784,))
    blank, dense = folder / "blank.onnx", folder / "mlp.onnx"
    save(mlp(), blank, overwrite=True)
    how: dict[str, Any] = {"threads": threads, "overwrite": True}
    onnxdecomp.finetune(blank, dense, data=train, from_scratch=True, settings=DENSE, **how)
    yield {"case": "mlp", "method": "dense", "parameters": 496_885, "after": accuracy(dense, dense, test)}
    images = {"image": train["image"]}
    wanted = CORES + 6885  # and the second layer and the biases
    for method in methods:
        file, tuned = folder / f"mlp.{method}.onnx", folder / f"mlp.{method}.tuned.onnx"
        # The second layer is too small to be decomposed; with calibration it makes up for the first.
        chosen: dict[str, Any] = {"options": METHODS[method]}
        at_parameters(dense, file, method, wanted, **chosen)
        plain, changes = accuracy(dense, file, test), {"plain": change(dense, file, test)}
        weights = at_parameters(dense, file, method, wanted, calib=images, **chosen)
        calibrated = accuracy(dense, file, test)
        changes["calibrated"] = change(dense, file, test)
        began = time.perf_counter()
        done = onnxdecomp.finetune(file, tuned, teacher=dense, data=train, settings=TUNED, **how)
        yield {
            "case": "mlp",
            "method": method,
            "parameters": weights,
            "plain": plain,
            "calibrated": calibrated,
            "after": accuracy(dense, tuned, test),
            "changes": {**changes, "after": change(dense, tuned, test)},
            "seconds": time.perf_counter() - began,
            "epochs": done.training["epochs"],
        }


def accuracy(original: Path, file: Path, test: Any) -> float:
    """Top-1 accuracy on labelled data."""
    found = onnxdecomp.verify(original, file, data=test, max_error=None).accuracy
    assert found is not None
    return float(found.new)


def change(original: Path, file: Path, test: Mapping[str, Array]) -> dict[str, float]:
    """How the accuracy differs from the original's, with its interval (see `Difference.to_json`)."""
    return paired_difference(*(_right(path, test) for path in (original, file))).to_json()


def _right(file: Path, test: Mapping[str, Array]) -> Array:
    """Of each image whether its class is found, [n] of 0 and 1."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    images, labels = test[name], test["labels"]
    found = [session.run(None, {name: images[i : i + 100]})[0] for i in range(0, len(images), 100)]
    classes = np.concatenate([np.asarray(part).argmax(1) for part in found])
    return np.asarray(classes == labels, np.float64)
