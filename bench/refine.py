"""What block refinement takes off the loss at the hardest ratios, and what it costs.

    python -m bench.refine [--models NAME …] [--plan FILE] [--samples N …]

Each network of the corpora is compressed for fewer multiply-accumulates, fitted to its calibration inputs
without labels; then the same plan is carried out again with `--refine`. The error is the relative L2 error of
the outputs on inputs that are in no calibration set: training images where the corpus has further ones, else
the task's own (real positions, of the worst output); the loss is its square, as that of layers and blocks is
in records. The metric is that of the task's samples, in pairs, with 95 % intervals, and for models of
products also with int8 behind (`--quantize int8-dynamic`). One thread, processor time. `--plan` carries out a
plan that an earlier search has found, so that it is not searched for again. `--samples` fits and refines with
fewer calibration inputs, to see what more of them would bring. `--corpus FOLDER` says where the
corpus is; that of larger models lies beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxdecomp
from bench.corpus import Corpus, add_option
from bench.corpus_large import LargeCorpus
from bench.intervals import paired_difference
from bench.provenance import RESULTS, markdown, provenance, write
from bench.training_data import cifar
from onnxdecomp.core.layer import Array
from onnxdecomp.runtime.session import open_session, run


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        target, method: Of the compression.
        samples: Calibration inputs; None: all there are.
    """

    target: str
    method: str = "auto"
    samples: int | None = None


JOBS: Mapping[str, Job] = {
    "minilm_l6": Job("macs=2x", "width"),
    "whisper_tiny_en_encoder": Job("macs=1.5x", "width,attention"),
    "resnet20_cifar10": Job("macs=2.5x"),
    "vgg16_half_cifar10": Job("macs=5x", samples=300),
    "squeezenet1.1": Job("latency=1.25x"),
}
"""By model, at the hardest ratio that the tables have."""

QUANTIZED = ("minilm_l6", "whisper_tiny_en_encoder")
"""Models that are judged with int8 behind, too."""

_COMPARED = 1000
"""Inputs that the loss is measured on, at most."""


def main() -> None:
    """Measure and write bench/results/refine.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--models", nargs="*", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--plan", type=Path, help="of the one model that is named")
    parser.add_argument("--samples", nargs="+", type=int, help="calibration inputs, in place of all")
    options = parser.parse_args()
    file = RESULTS / "refine.json"
    known = json.loads(file.read_text()) if file.exists() else {"rows": []}
    rows = {row["model"]: row for row in known["rows"]}
    fewer = {(row["model"], row["calibration"]): row for row in known.get("fewer", ())}
    large = LargeCorpus(options.corpus.folder.parent / "corpus-large", options.corpus.folder)
    for name in options.models:
        for samples in options.samples or [None]:
            row = measure(options.corpus, large, name, options.plan, samples)
            if samples is None:
                rows[name] = row
            else:
                fewer[name, row["calibration"]] = row
            ordered = [rows[one] for one in JOBS if one in rows]
            curve = [fewer[key] for key in sorted(fewer)]
            text = table(ordered) + ("\n" + table_of_fewer(curve) if curve else "")
            write("refine", {**provenance(), "rows": ordered, "fewer": curve}, text)


def measure(
    corpus: Corpus, large: LargeCorpus, name: str, plan: Path | None = None, samples: int | None = None
) -> dict[str, Any]:
    """A row: the losses with and without, the points, the seconds; with so many samples, drawn evenly."""
    job = JOBS[name]
    own = name in large.models()
    path = large.model(name) if own else corpus.model(name)
    calib = large.fitted_to(name) if own else corpus.calibration(name)
    if not own:
        calib = {key: array[: job.samples] for key, array in calib.items()}
    if samples is not None:
        calib = fewer_of(calib, samples)
    how: dict[str, Any] = {"calib": calib, "verify": False, "bench": False, "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "closed.onnx", Path(folder) / "refined.onnx"]
        began = _processor()
        wanted = {"target": job.target, "method": job.method} if plan is None else {"plan": plan}
        plain = onnxdecomp.compress(path, files[0], **wanted, **how)
        searched = _processor() - began
        began = _processor()
        refined = onnxdecomp.compress(path, files[1], plan=plain.record, refine=True, **how)
        again = _processor() - began
        judged = judged_large(large, name, files) if own else judged_small(corpus, name, files)
    found = refined.record["refinement"]
    assert isinstance(found, Mapping)
    return {
        "model": name,
        "target": job.target,
        "calibration": len(calib) if isinstance(calib, list) else len(next(iter(calib.values()))),
        **judged,
        "kept": found["kept"],
        "held_out": [found["before"], found["after"]],
        "blocks": found["blocks"],
        "searched": plan is None,
        "seconds": searched,
        "refined_seconds": again,
        "date": provenance()["date"],
    }


def fewer_of(calib: Any, samples: int) -> Any:
    """So many of the calibration inputs, at even distances."""
    whole = len(calib) if isinstance(calib, list) else len(next(iter(calib.values())))
    places = np.arange(min(samples, whole)) * whole // min(samples, whole)
    if isinstance(calib, list):
        return [calib[place] for place in places]
    return {key: array[places] for key, array in calib.items()}


def judged_small(corpus: Corpus, name: str, files: Sequence[Path]) -> dict[str, Any]:
    """Errors and points of a network of the small corpus, before and after refinement."""
    others = _others(corpus, name)
    points = [paired_difference(*corpus.paired(name, file)) for file in files]
    between = paired_difference(*(corpus.paired(name, file)[1] for file in files))
    return {
        "compared": len(others),
        "errors": [_error(corpus.model(name), file, others) for file in files],
        "points": [one.to_json() for one in points],
        "difference": between.to_json(),
    }


def judged_large(large: LargeCorpus, name: str, files: Sequence[Path]) -> dict[str, Any]:
    """The same of a model of the large corpus, and with int8 behind."""
    for file in files if name in QUANTIZED else ():
        small = file.with_suffix(".int8.onnx")
        onnxdecomp.compress(file, small, quantize="int8-dynamic", verify=False, bench=False, threads=1)
    every = [*files, *(file.with_suffix(".int8.onnx") for file in files if name in QUANTIZED)]
    found = large.evaluate(name, every)
    return {
        "compared": found[0]["change"]["n"],
        "errors": [one["rel_l2"] for one in found[:2]],
        "metric": next(iter(found[0]["metric"])),
        "original": next(iter(found[0]["original"].values())),
        "points": [one["change"] for one in found[:2]],
        "int8": [one["change"] for one in found[2:]],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row per model."""
    head = [*("model", "target", "error", "refined", "off the error", "off the loss", "points", "refined")]
    head += ["with int8", "refined, with int8", "fit", "fit and refinement"]
    return markdown(
        head,
        [
            (
                row["model"],
                row["target"],
                *(f"{error:.4f}" for error in row["errors"]),
                f"{1 - row['errors'][1] / row['errors'][0]:.0%}",
                f"{1 - (row['errors'][1] / row['errors'][0]) ** 2:.0%}",
                *(_points(one) for one in row["points"]),
                *(_points(one) for one in row.get("int8", ()) or ()),
                *[""] * (2 - len(row.get("int8", ()) or ())),
                f"{row['seconds']:.0f} s{', search included' if row['searched'] else ''}",
                f"{row['refined_seconds']:.0f} s",
            )
            for row in rows
        ],
    )


def table_of_fewer(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row per model and number of calibration inputs."""
    return markdown(
        ("model", "target", "calibration inputs", "error", "refined", "off the loss", "refined in points"),
        [
            (
                row["model"],
                row["target"],
                str(row["calibration"]),
                *(f"{error:.4f}" for error in row["errors"]),
                f"{1 - (row['errors'][1] / row['errors'][0]) ** 2:.0%}",
                _points(row["points"][1]),
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


def _error(original: Path, new: Path, inputs: Array) -> float:
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
