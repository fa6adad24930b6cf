"""What an error of a detector's outputs says of the boxes that it finds.

    python -m bench.faces [--corpus FOLDER] [--ways int8 error=0.01 …]

UltraFace of the corpus on those of its 500 photographs in which the original finds a face: every other one
calibrates, the others judge. A box of the original counts as found where one of the new model's overlaps it
by half (intersection over union), behind the same non-maximum suppression. No latency: goals are on MACs.
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import onnxdecomp
from bench.corpus import add_option, corpus_module
from bench.provenance import ROOT, markdown, provenance, write
from onnxdecomp.core.layer import Array

MODEL = "ultraface_version-RFB-320"
WAYS: dict[str, dict[str, Any]] = {
    "int8": {"method": "none", "quantize": "int8-static"},
    "error=0.01": {"target": "error=0.01", "objective": "macs"},
    "error=0.05": {"target": "error=0.05", "objective": "macs"},
    "metric>=0.9": {"target": "metric>=0.9", "objective": "macs"},
}
MOST = 50
"""Boxes of a photograph."""

METRIC = ROOT / "docs" / "examples" / "box_metric.py"
"""That of docs/guides/detectors.md."""


def photographs(folder: Path) -> Iterator[Array]:
    """All 500, [3, 240, 320]."""
    corpus = corpus_module(folder)
    jpegs, _ = corpus.load_jpegs(folder / "data" / "imagenet_sample_even.npz")
    for jpeg in jpegs:
        yield corpus.normalise(corpus.fit(corpus.decode(jpeg), [240, 320]), {"mean": 127, "std": 128})


def labelled(model: Path, images: Iterator[Array]) -> tuple[Array, Array]:
    """The photographs with faces, and the boxes that the original finds."""
    ort.set_default_logger_severity(3)
    kept = runpy.run_path(str(METRIC))["kept"]
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    some, labels = [], []
    for image in images:
        scores, boxes = session.run(["scores", "boxes"], {"input": image[None]})
        faces = kept(scores[0, :, 1], boxes[0])
        if len(faces):
            some.append(image)
            labels.append(np.full((MOST, 4), np.nan, np.float32))
            labels[-1][: len(faces)] = faces
    return np.stack(some), np.stack(labels)


def main() -> None:
    """Measure and write bench/results/faces.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    source = options.corpus.model(MODEL)
    images, labels = labelled(source, photographs(options.corpus.folder))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        calib, test = (Path(folder, f"{name}.npz") for name in ("calib", "test"))
        np.savez(calib, input=images[::2], labels=labels[::2])
        np.savez(test, input=images[1::2], labels=labels[1::2])
        for way in options.ways:
            done = onnxdecomp.compress(
                *(source, Path(folder, "small.onnx")),
                **WAYS[way],
                calib=calib,
                data=test,
                metric=f"{METRIC}:found",
                freeze_initializers=True,
                threads=1,
                bench=False,
                overwrite=True,
            )
            checked = done.verification
            assert checked is not None
            assert checked.metric is not None
            metric = checked.metric
            row = {
                "way": way,
                "ratios": {what: done.record["totals"][what]["ratio"] for what in ("macs", "bytes")},
                "errors": {output.name: output.rel_l2 for output in checked.outputs},
                "found": [metric.original, metric.new, metric.low, metric.high],
            }
            print(row, flush=True)
            rows.append(row)
    result = {
        **provenance(),
        "faces": int(np.isfinite(labels[1::2, :, 0]).sum()),
        "photographs": len(labels[1::2]),
        "rows": rows,
    }
    write("faces", result, table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each way."""
    head = ("way", "fewer MACs", "smaller file", "error of scores", "error of boxes", "faces found", "change")
    cells = []
    for row in rows:
        _, new, low, high = row["found"]
        cells.append(
            (
                row["way"],
                *(f"{ratio or 1:.2f}x" for ratio in row["ratios"].values()),
                *(f"{row['errors'][output]:.2%}" for output in ("scores", "boxes")),
                f"{new:.1%}",
                f"{100 * (new - 1):+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})",
            )
        )
    return markdown(head, cells)


if __name__ == "__main__":
    main()
