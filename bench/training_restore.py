"""Models of the corpus, compressed for a factor of MACs and then trained: what comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxdecomp
from bench.corpus import Corpus
from bench.training_data import cifar

CASES: tuple[tuple[str, float], ...] = (
    *(("resnet20_cifar10", 2.0), ("resnet20_cifar10", 3.0)),
    *(("vgg16_half_cifar10", 5.0), ("vgg16_half_cifar10", 10.0)),
    *(("vdsr", 1.5), ("vdsr", 2.0), ("dncnn_25", 1.5), ("dncnn_25", 2.0)),
)
"""Models, and factors by which their MACs fall."""

CIFAR = {
    "train": "all",
    "batch": 64,
    "augment": "flip,crop,warp,light,mix,cut",
    "views": 0,
    "objective": "distill",
    "loss": "kl",
    "held_out": 0.05,
    "precision": "mixed",
}
IMAGES = {
    "train": "all",
    "batch": 2,
    "views": 2,
    "augment": "flip",
    "objective": "distill",
    "loss": "relative",
}
SETTINGS: Mapping[tuple[str, float], Mapping[str, Any]] = {
    ("resnet20_cifar10", 2.0): {**CIFAR, "epochs": 15, "rate": 2e-3, "views": 8},
    ("resnet20_cifar10", 3.0): {**CIFAR, "epochs": 20, "rate": 3e-3, "views": 8},
    ("vgg16_half_cifar10", 5.0): {**CIFAR, "epochs": 200, "rate": 3e-3},
    ("vgg16_half_cifar10", 10.0): {**CIFAR, "epochs": 240, "rate": 4e-3},
    ("vdsr", 1.5): {**IMAGES, "epochs": 20, "rate": 3e-4},
    **{(name, factor): {**IMAGES, "epochs": 20, "rate": 1e-3} for name, factor in CASES[5:]},
}


def run(
    corpus: Corpus, folder: Path, cases: Sequence[tuple[str, float]] = CASES, threads: int | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each case: the task's metric of the original, compressed, and trained."""
    for name, factor in cases:
        original = corpus.model(name)
        small, tuned = (folder / f"{name}.{factor:g}x{end}.onnx" for end in ("", ".tuned"))
        calib = corpus.calibration(name)
        if not small.exists():
            onnxdecomp.compress(
                original, small, target=f"macs={factor:g}x", calib=calib, verify=False, bench=False
            )
        images = cifar(corpus, labelled=False) if "cifar" in name else calib
        began = time.perf_counter()
        done = onnxdecomp.finetune(
            small,
            tuned,
            teacher=original,
            data=images,
            settings=SETTINGS[name, factor],
            threads=threads,
            overwrite=True,
        )
        seconds = time.perf_counter() - began
        metric = "top1" if "cifar" in name else "psnr_y" if name == "vdsr" else "psnr"
        before, after = (corpus.evaluate(name, file) for file in (small, tuned))
        yield {
            "case": "restore",
            "model": name,
            "target": factor,
            "metric": metric,
            "original": before["original"][metric],
            "compressed": before["metric"][metric],
            "trained": after["metric"][metric],
            "changes": {"compressed": before["change"], "trained": after["change"]},
            "seconds": seconds,
            "samples": done.training["samples"],
            "settings": done.training["settings"],
            "epochs": done.training["epochs"],
            "best": done.training["best"],
        }
