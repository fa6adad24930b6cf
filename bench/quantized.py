"""Decomposition and int8 together against int8 alone, on a VGG-16 of half width.

    python -m bench.quantized [--corpus FOLDER] [--steps compress time] [--work FOLDER]

FOLDER holds the corpus (default: $ONNXDECOMP_CORPUS, else ../shared/corpus). Both are made by `compress
--quantize int8` with the same calibration images: one with every layer kept, one for `--target error=0.065`
(of the outputs, quantization included). Accuracy is that on the corpus' 5,000 test images, which choose
nothing; latency on one thread, interleaved.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.corpus import add_option, corpus_module
from bench.intervals import shown
from bench.provenance import ROOT, markdown, provenance, write

MODEL, TARGET = "vgg16_half_cifar10", "error=0.065"
WAYS = ("original", "int8", "onnxdecomp, then int8")
BATCHES = (1, 16)
_CALIBRATION, _EVALUATION = 1000, 5000


def main() -> None:
    """Measure and write bench/results/quantized.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quantized")
    parser.add_argument("--steps", nargs="*", choices=("compress", "time"), default=["compress", "time"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    folder = options.corpus.folder
    module = corpus_module(folder)
    corpus = module.Corpus(folder)
    source = corpus.model_path(corpus.entry(MODEL))
    files = [source, options.work / "int8.onnx", options.work / "both.onnx"]
    if "compress" in options.steps:
        compress(module, corpus, *files)
    if "time" not in options.steps:
        return
    judged = [options.corpus.evaluate(MODEL, None if file == source else file, _EVALUATION) for file in files]
    latency = {str(batch): measure(files, batch) for batch in BATCHES}
    rows = [
        {
            "way": way,
            "bytes": file.stat().st_size,
            "top1": found["metric"]["top1"],
            "change": found.get("change"),
            "latency": {batch: latency[batch][index] for batch in latency},
        }
        for index, (way, file, found) in enumerate(zip(WAYS, files, judged, strict=True))
    ]
    write("quantized", {**provenance(), "model": MODEL, "target": TARGET, "rows": rows}, table(rows))


def compress(module: Any, corpus: Any, source: Path, alone: Path, both: Path) -> None:
    """Make both files."""
    import onnxdecomp

    calib = module.calibration(corpus, MODEL, _CALIBRATION)
    common: dict[str, Any] = {"calib": calib, "quantize": "int8", "threads": 1, "overwrite": True}
    onnxdecomp.compress(source, alone, rank="0.5", exclude=("*",), bench=False, **common)
    onnxdecomp.compress(source, both, target=TARGET, **common)


def measure(files: Sequence[Path], batch: int) -> list[dict[str, Any]]:
    """Of each file the latency, and how many times as fast it is as int8 alone and as the original."""
    import onnxdecomp

    found: list[dict[str, Any]] = [{} for _ in files]
    for against, label in ((1, "over_int8"), (0, "over_original")):
        order = [against, *(index for index in range(len(files)) if index != against)]
        timed = onnxdecomp.bench(
            [files[index] for index in order], batch_sizes=(batch,), threads=(1,), duration=20, memory=False
        )
        for index, model in zip(order, timed.settings[0].models, strict=True):
            ratio = model.ratio
            found[index]["p50_ms"] = model.latency.p50
            found[index][label] = ratio and [1 / ratio.value, 1 / ratio.high, 1 / ratio.low]
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each way."""
    head = ["way", "accuracy", "points", "file"]
    head += [
        f"faster than {what}, batch {batch}" for batch in BATCHES for what in ("the original", "int8 alone")
    ]
    lines = []
    original = rows[0]
    for row in rows:
        lost = row["top1"] - original["top1"]
        points = "" if row is original else shown(lost, row.get("change"), scale=100)
        cells = [row["way"], f"{row['top1']:.2%}", points, f"{row['bytes'] / 1e6:.2f} MB"]
        for batch in BATCHES:
            timed = row["latency"][str(batch)]
            cells += [_speed(timed["over_original"]), _speed(timed["over_int8"])]
        lines.append(cells)
    return markdown(head, lines)


def _speed(found: Sequence[float] | None) -> str:
    return "" if not found else f"{found[0]:.2f}x ({found[1]:.2f} to {found[2]:.2f})"


if __name__ == "__main__":
    main()
