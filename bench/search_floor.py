"""The floor of `compress --target`: what the fits of a plan need at least, beside what a search does.

    python -m bench.search_floor

For networks of bench/search_speed.py: bytes that have to be read (the model and its calibration inputs), and
multiply-adds in 10^9 of

- runs: the calibration inputs once through the original and once through the compressed model, counted as
  large as the original, layer by layer;
- moments: of each layer's rows, as many as a fit draws, x xT (half of it, for it is symmetric) and y xT;
- solves: one Cholesky factor of each layer's second moments, and with it the best weight.

Beside them is what a product of float32 matrices reaches on one thread here, and so the seconds that the
floor would take at that rate. A search takes more: it fits each layer at several strengths of the shrinkage,
weighs candidates, and carries out several plans.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxdecomp_passes.normalise import Normalise
from onnxdecomp_passes.simplify import Simplify

from bench.corpus import Corpus, add_option
from bench.provenance import markdown, provenance, write
from bench.search_speed import RUNS
from models.digits import MODEL, TEST_DATA
from onnxdecomp.calibration.row_gatherer import Draw
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.fitting.moments import features
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline.base import PassContext


def floor(model: Path, samples: int, data: int) -> dict[str, float]:
    """What the layers of a model need; `data` are the bytes of its inputs."""
    loaded = _simplified(model)
    infer_shapes(loaded)
    draw = Draw(samples, 8, 8192, 0.25, 0, None)
    runs = moments = solves = 0.0
    for match in find(loaded)[0]:
        layer, chain = match.layer, dense_chain(match.layer)
        shape = layer.assumed_input_shape()
        known = [dim for dim in layer.input_shape or () if isinstance(dim, int)]
        if layer.input_shape is not None and len(known) >= len(layer.input_shape) - 1:
            shape = (1, *(dim for dim in layer.input_shape[1:] if isinstance(dim, int)))
        d, each = features(layer), layer.outputs // layer.groups
        positions = math.prod(chain.output_shape(shape)) // layer.outputs
        rows = min(draw.wanted(d), samples * positions)
        runs += 2 * samples * chain.macs(shape)
        moments += rows * layer.groups * d * (d / 2 + each)
        solves += layer.groups * (d**3 / 6 + each * d**2)
    return {
        "mb": (model.stat().st_size + data) / 1e6,
        "runs": runs / 1e9,
        "moments": moments / 1e9,
        "solves": solves / 1e9,
    }


def _simplified(model: Path) -> ir.Model:
    """The model as its layers are found."""
    loaded = ir.load(model)
    for step in (Simplify(), Normalise()):
        loaded = step.run(loaded, PassContext()).model
    return loaded


def rate() -> float:
    """10^9 multiply-adds of float32 in a processor second."""
    a = np.ones((1024, 1024), np.float32)
    spent = []
    for _ in range(5):
        start = time.process_time()
        a @ a
        spent.append(time.process_time() - start)
    return 1024**3 / min(spent) / 1e9


def main() -> None:
    """Count and write bench/results/search_floor.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    corpus: Corpus = parser.parse_args().corpus
    rows: list[dict[str, Any]] = []
    reached = rate()
    for name in ("digits", "resnet20", "vgg16_half"):
        run = RUNS[name]
        if run.model and not corpus.has(run.model):
            continue
        model = corpus.model(run.model) if run.model else MODEL
        if run.model:
            inputs = {k: a[: run.samples] for k, a in corpus.calibration(run.model).items()}
            data = sum(a.nbytes for a in inputs.values())
        else:
            data = TEST_DATA.stat().st_size
        found = floor(model, run.samples, data)
        seconds = (found["runs"] + found["moments"] + found["solves"]) / reached
        rows.append({"run": name, **found, "seconds": seconds})
    table = markdown(
        ("run", "read MB", "runs", "moments", "solves", "s"),
        ((r["run"], *(f"{r[k]:.1f}" for k in ("mb", "runs", "moments", "solves", "seconds"))) for r in rows),
    )
    write("search_floor", {**provenance(), "gmacs_per_second": reached, "rows": rows}, table)


if __name__ == "__main__":
    main()
