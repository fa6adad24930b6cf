"""Why ImageNet networks lose more than CIFAR ones: few calibration images, and a thousand classes.

    python -m bench.few_images [--images N …]

squeezenet1.1 of the corpus gets one plan of 1.25x fewer multiply-accumulates, found with all of its
calibration images; its factors are fitted to the first N of them. What is shown are the outputs' relative
error and how often the first class stays, on the images of the fit and on the 400 for evaluation, and the
change of accuracy there with its 95 % interval. --corpus FOLDER says where the corpus is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bench.corpus import Corpus, add_option
from bench.intervals import paired_difference
from bench.provenance import markdown, provenance, write
from onnxdecomp.apply.apply_plan import carry_out
from onnxdecomp.calibration.statistics import Calibration, sized
from onnxdecomp.core.layer import Array
from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.preflight import inputs
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline import configuration, pipeline
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.layer_profiles import profile_layers
from onnxdecomp.search.scope import Scope
from onnxdecomp.search.select import choose
from onnxdecomp.search.targets import Budget

MODEL, FACTOR, IMAGES = "squeezenet1.1", 1.25, (25, 50, 100)


def main() -> None:
    """Measure and write bench/results/few_images.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--images", nargs="*", type=int, default=list(IMAGES))
    options = parser.parse_args()
    rows = measure(options.corpus, options.images)
    write("few_images", {**provenance(), "model": MODEL, "macs": FACTOR, "rows": rows}, table(rows))


def measure(corpus: Corpus, counts: list[int]) -> list[dict[str, Any]]:
    """A row per number of images."""
    path = corpus.model(MODEL)
    stages = [stage for stage in configuration.build(None, {}) if stage.name in ("simplify", "normalise")]
    model = pipeline.run(load(path), stages).model
    infer_shapes(model)
    matched, skips = find(model)
    images = corpus.calibration(MODEL)

    def calibration(count: int) -> Calibration:
        some = {name: array[:count] for name, array in images.items()}
        return sized(Calibration(read_feeds(some, inputs(path))), matched)

    whole = profile_layers(model, matched, Scope(), calibration(len(next(iter(images.values())))))
    chosen = choose(whole, skips, [Budget("macs", FACTOR, relative=True)])
    if isinstance(chosen, OutOfReach):
        raise UsageError(chosen.reason)
    evaluation = corpus.inputs(MODEL)
    rows = []
    for count in counts:
        copy = model.clone()
        carry_out(copy, find(copy)[0], chosen.plan, calibration=calibration(count))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "new.onnx"
            save(copy, file)
            seen = {name: array[:count] for name, array in images.items()}
            change = paired_difference(*corpus.paired(MODEL, file))
            rows.append(
                {
                    "images": count,
                    "fitted": _distance(path, file, next(iter(seen.values()))),
                    "evaluated": _distance(path, file, evaluation),
                    "points": 100 * change.mean,
                    "interval": [100 * change.low, 100 * change.high],
                }
            )
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A line per number of images."""
    head = ("images", "error, same first class where fitted", "on other images", "points of top-1")
    lines = [
        (
            str(row["images"]),
            *(f"{part['error']:.3f}, {part['agreement']:.1%}" for part in (row["fitted"], row["evaluated"])),
            f"{row['points']:+.2f} ({row['interval'][0]:+.2f} to {row['interval'][1]:+.2f})",
        )
        for row in rows
    ]
    return markdown(head, lines)


def _distance(original: Path, new: Path, images: Array) -> dict[str, float]:
    before, after = (_scores(file, images) for file in (original, new))
    error = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    return {"error": error, "agreement": float(np.mean(before.argmax(1) == after.argmax(1)))}


def _scores(file: Path, images: Array) -> Array:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: images[i : i + 20]})[0] for i in range(0, len(images), 20)]
    return np.concatenate([np.asarray(part).reshape(len(part), -1) for part in found])


if __name__ == "__main__":
    main()
