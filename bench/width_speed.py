"""Whether halving the MACs by narrower channels alone halves the latency, on ResNet-50 and VGG-16.

    python -m bench.width_speed [--models resnet50,…] [--images N] [--work FOLDER] [--steps compress time]

Both networks have random weights (models/shapes.py): only speed is told, no accuracy. `--method width` with a
target of half the MACs makes a file of each, by the weights alone or with N images of random numbers for
calibration; original and result are then timed interleaved, on one thread at batch 1. "of the MAC gain" is
how many times as fast the result is, over how many times fewer MACs it has. Nodes are those of the file as
it is given, and of the result.
`--steps time` measures the files that lie in the work folder again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxdecomp
from bench.provenance import RESULTS, ROOT, markdown, provenance, write
from models.shapes import MODELS, save

NETWORKS = ("resnet50", "vgg16")
TARGET = "macs=2x"

_SECONDS = 20.0
"""Of timing, for each network."""

Row = dict[str, Any]


def main() -> None:
    """Measure, and write bench/results/width_speed.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(NETWORKS))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "width_speed")
    parser.add_argument("--images", type=int, default=0)
    steps = ("compress", "time")
    parser.add_argument("--steps", nargs="*", choices=steps, default=list(steps))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    known = _known()
    for name in options.models.split(","):
        source, result = (options.work / f"{name}{end}.onnx" for end in ("", ".width"))
        if "compress" in options.steps:
            known[name] = compressed(name, source, result, options.images)
        if "time" in options.steps:
            known[name] = {**known.get(name, {}), **timed(source, result)}
        _keep(known)


def compressed(name: str, source: Path, result: Path, images: int) -> Row:
    """Make both files, and say how they compare but for their speed."""
    save(MODELS[name](), source)
    start = time.process_time()
    (given,) = onnx.load(source).graph.input
    drawn = np.random.default_rng(0).standard_normal((images, 3, 224, 224), np.float32)
    made = onnxdecomp.compress(
        source,
        result,
        calib={given.name: drawn} if images else None,
        target=TARGET,
        method="width",
        threads=1,
        overwrite=True,
        bench=False,
    )
    totals = made.record["totals"]
    return {
        "model": name,
        "images": images,
        "nodes": [len(onnx.load(file).graph.node) for file in (source, result)],
        "fewer_macs": totals["macs"]["ratio"],
        "fewer_params": totals["params"]["ratio"],
        "seconds": time.process_time() - start,
        "made": provenance(),
    }


def timed(source: Path, result: Path) -> Row:
    """Milliseconds of both, and how many times as fast the result is, with the interval."""
    found = onnxdecomp.bench([source, result], threads=(1,), duration=_SECONDS, memory=False)
    before, after = found.settings[0].models
    assert after.ratio is not None
    return {
        "ms": [before.latency.p50, after.latency.p50],
        "faster": [1 / after.ratio.value, 1 / after.ratio.high, 1 / after.ratio.low],
        "timed": provenance(),
    }


def _known() -> dict[str, Row]:
    """The rows of an earlier run, by network."""
    path = RESULTS / "width_speed.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return {row["model"]: row for row in rows}


def _keep(known: dict[str, Row]) -> None:
    rows = [known[name] for name in NETWORKS if name in known]
    head = ["model", "nodes before", "nodes after", "fewer MACs", "fewer parameters"]
    head += ["before", "after", "faster", "of the MAC gain", "search, s"]
    write("width_speed", {"rows": rows}, markdown(head, map(_cells, rows)))


def _cells(row: Row) -> list[str]:
    cells = [
        row["model"],
        *map(str, row["nodes"]),
        f"{row['fewer_macs']:.2f}x",
        f"{row['fewer_params']:.2f}x",
    ]
    if "faster" not in row:
        return [*cells, "", "", "", "", f"{row['seconds']:.0f}"]
    cells += [f"{ms:.1f} ms" for ms in row["ms"]]
    share = row["faster"][0] / row["fewer_macs"]
    return [
        *cells,
        "{:.2f}x ({:.2f} to {:.2f})".format(*row["faster"]),
        f"{share:.0%}",
        f"{row['seconds']:.0f}",
    ]


if __name__ == "__main__":
    main()
