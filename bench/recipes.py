"""What the recipes of `compress --recipe` come to: speed, size and loss on two models each.

    python -m bench.recipes [--only RECIPE …] [--work FOLDER]

Needs the corpus (--corpus FOLDER, default: $ONNXDECOMP_CORPUS, else ../shared/corpus), and for transformers
the one of larger models beside it. Every run has the
corpus' calibration inputs, without labels, and one thread; the loss is that of the task's metric on its own
samples, or of a task without a metric the distance of the outputs. Speed is what the run itself measured,
interleaved with the original. Rows that a run does not make keep what an earlier run wrote.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.corpus import Corpus, add_option
from bench.corpus_large import LargeCorpus
from bench.intervals import shown
from bench.provenance import RESULTS, ROOT, markdown, provenance, write
from onnxdecomp.workflow.recipes.registry import names, recipe

MODELS: Mapping[str, Sequence[str]] = {
    "cnn-cpu": ("mlperf_resnet8", "resnet20_cifar10"),
    "safest": ("mlperf_resnet8", "nsnet2"),
    "smallest": ("mlperf_resnet8", "nsnet2"),
    "transformer-int8": ("minilm_l6", "whisper_tiny_en_encoder"),
}
"""Models that a recipe is for; gpu-fp16 needs another device."""

_RATES = ("top1", "retrieval_top1", "wer")
"""Metrics that are told in points."""


def main() -> None:
    """Measure and write bench/results/recipes.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--only", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "recipes")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        for model in MODELS[name]:
            _keep({"recipe": name, "model": model, **measured(name, model, options.corpus, options.work)})


def measured(name: str, model: str, corpus: Corpus, work: Path) -> dict[str, Any]:
    """One row."""
    calib, output, record = (work / f"{model}.{name}.{end}" for end in ("npz", "onnx", "json"))
    large = LargeCorpus(corpus.folder.with_name("corpus-large"), corpus.folder)
    own: Corpus | LargeCorpus = corpus if corpus.has(model) else large
    arrays: dict[str, Any] = own.calibration(model)
    np.savez(calib, **arrays)
    line = [sys.executable, "-m", "onnxdecomp.cli.main", "compress", str(own.model(model))]
    line += ["--recipe", name, "--calib", str(calib), "--threads", "1", "--overwrite"]
    subprocess.run([*line, "-o", str(output), "--json", str(record)], check=True, stdout=subprocess.DEVNULL)
    told = json.loads(record.read_text(encoding="utf-8"))
    (found,) = large.evaluate(model, [output]) if own is large else [corpus.evaluate(model, output)]
    return {
        "version": recipe(name).version,
        "bytes": {key: told["totals"]["bytes"][key] for key in ("before", "after")},
        "speedup": told["latency"] and told["latency"]["speedup"],
        "seconds": told["run"]["seconds"],
        "metric": found["metric"],
        "change": found["change"],
        "rel_l2": found["rel_l2"],
        **provenance(),
    }


def _keep(row: Mapping[str, Any]) -> None:
    file = RESULTS / "recipes.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    same = [(one["recipe"], one["model"]) == (row["recipe"], row["model"]) for one in rows]
    rows = sorted(
        [*(one for one, gone in zip(rows, same, strict=True) if not gone), dict(row)],
        key=lambda one: (one["recipe"], one["model"]),
    )
    write("recipes", {"rows": rows}, table(rows))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, and what was not measured."""
    head = ("recipe", "model", "faster, 1 thread", "file", "change", "output error", "run")
    lines = [
        (
            f"{row['recipe']}@{row['version']}",
            row["model"],
            _speed(row),
            f"{row['bytes']['before'] / 1e6:.2f} to {row['bytes']['after'] / 1e6:.2f} MB",
            _loss(row),
            f"{100 * row['rel_l2']:.2f}%",
            f"{row['seconds']:.0f} s",
        )
        for row in rows
    ]
    without = [name for name in names() if name not in {row["recipe"] for row in rows}]
    rest = f"\n\nNot measured here: {', '.join(without)}." if without else ""
    return markdown(head, lines) + rest


def _speed(row: Mapping[str, Any]) -> str:
    found = row["speedup"]
    if found is None:
        return "a copy" if row["bytes"]["before"] == row["bytes"]["after"] else "not timed yet"
    return f"{found['value']:.2f}x ({found['low']:.2f} to {found['high']:.2f})"


def _loss(row: Mapping[str, Any]) -> str:
    if row["change"] is None:
        return ""
    unit = next(iter(row["metric"]))
    return shown(
        row["change"]["mean"], row["change"], scale=100, unit=" points" if unit in _RATES else f" {unit}"
    )


if __name__ == "__main__":
    main()
