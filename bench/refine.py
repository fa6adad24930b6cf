"""What block refinement takes off the loss at the hardest ratios, and what it costs.

    python -m bench.refine [--models NAME …] [--plan FILE]

Each network of the corpus is compressed for fewer multiply-accumulates, fitted to its calibration inputs
without labels; then the same plan is carried out again with `--refine`. The loss is the relative L2 error of
the outputs on inputs that are in no calibration set: training images where the corpus has further ones, else
the task's own; accuracy is that of the task's samples, in pairs, with 95 % intervals. One thread, processor
time. `--plan` carries out a plan that an earlier search has found, so that it is not searched for again.
`--corpus FOLDER` says where the corpus is.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import onnxdecomp
from bench.corpus import Corpus, add_option
from bench.intervals import paired_difference
from bench.provenance import RESULTS, markdown, provenance, write
from bench.training_data import cifar
from onnxdecomp.core.layer import Array
from onnxdecomp.runtime.session import open_session, run

TARGETS: Mapping[str, tuple[str, int | None]] = {
    "resnet20_cifar10": ("macs=2.5x", None),
    "vgg16_half_cifar10": ("macs=5x", 300),
    "squeezenet1.1": ("latency=1.25x", None),
}
"""By model: the target, and how many calibration inputs (None: all there are)."""

_COMPARED = 1000
"""Inputs that the loss is measured on, at most."""


def main() -> None:
    """Measure and write bench/results/refine.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--models", nargs="*", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--plan", type=Path, help="of the one model that is named")
    options = parser.parse_args()
    file = RESULTS / "refine.json"
    rows = {row["model"]: row for row in json.loads(file.read_text())["rows"]} if file.exists() else {}
    for name in options.models:
        rows[name] = measure(options.corpus, name, options.plan)
        write("refine", {**provenance(), "rows": list(rows.values())}, table(list(rows.values())))


def measure(corpus: Corpus, name: str, plan: Path | None = None) -> dict[str, Any]:
    """A row: the losses with and without, the points, the seconds."""
    target, most = TARGETS[name]
    path = corpus.model(name)
    calib = {key: array[:most] for key, array in corpus.calibration(name).items()}
    others = _others(corpus, name)
    how: dict[str, Any] = {"calib": calib, "verify": False, "bench": False, "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "closed.onnx", Path(folder) / "refined.onnx"]
        began = _processor()
        wanted: dict[str, Any] = {"target": target} if plan is None else {"plan": plan}
        plain = onnxdecomp.compress(path, files[0], **wanted, **how)
        searched = _processor() - began
        began = _processor()
        refined = onnxdecomp.compress(path, files[1], plan=plain.record, refine=True, **how)
        again = _processor() - began
        losses = [_loss(path, file, others) for file in files]
        points = [paired_difference(*corpus.paired(name, file)) for file in files]
        between = paired_difference(*(corpus.paired(name, file)[1] for file in files))
    found = refined.record["refinement"]
    assert isinstance(found, Mapping)
    return {
        "model": name,
        "target": target,
        "calibration": len(next(iter(calib.values()))),
        "compared": len(others),
        "losses": losses,
        "points": [one.to_json() for one in points],
        "difference": between.to_json(),
        "kept": found["kept"],
        "held_out": [found["before"], found["after"]],
        "blocks": found["blocks"],
        "searched": plan is None,
        "seconds": searched,
        "refined_seconds": again,
        "date": provenance()["date"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row per model."""
    head = ("model", "target", "loss", "refined", "off", "points on test samples", "refined", "difference")
    return markdown(
        (*head, "fit", "fit and refinement"),
        [
            (
                row["model"],
                row["target"],
                *(f"{loss:.4f}" for loss in row["losses"]),
                f"{1 - row['losses'][1] / row['losses'][0]:.0%}",
                *(_points(one) for one in (*row["points"], row["difference"])),
                f"{row['seconds']:.0f} s{', search included' if row['searched'] else ''}",
                f"{row['refined_seconds']:.0f} s",
            )
            for row in rows
        ],
    )


def _points(found: Mapping[str, Any]) -> str:
    mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def _others(corpus: Corpus, name: str) -> Array:
    """Inputs that are in no calibration set, [n, ...]."""
    found = cifar(corpus)["input"] if name.endswith("cifar10") else corpus.inputs(name)
    return found[:_COMPARED]


def _loss(original: Path, new: Path, inputs: Array) -> float:
    """Relative L2 error of the first output."""
    sessions = [open_session(file, threads=1) for file in (original, new)]
    off = norm = 0.0
    size = 1 if isinstance(sessions[0].get_inputs()[0].shape[0], int) else 50
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        known, made = (
            np.asarray(run(session, {session.get_inputs()[0].name: part})[0], np.float64)
            for session in sessions
        )
        off += float(np.square(made - known).sum())
        norm += float(np.square(known).sum())
    return float(np.sqrt(off / norm))


def _processor() -> float:
    """Seconds of processor time of this process and of those it has waited for."""
    return time.process_time() + sum(os.times()[2:4])


if __name__ == "__main__":
    main()
