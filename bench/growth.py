"""How the time of `compress --target macs=2x` grows with layers and with samples: five sizes of each.

    python -m bench.growth [--repeats 3]

Networks of 3x3 convolutions with 32 channels on pictures of 16 x 16, with random weights (seeded), behind
each other, each with a Relu: 4 to 64 of them with 256 samples, and 8 of them with 128 to 2,048 samples. Every
run is a fresh process with one thread for linear algebra. Reported are medians of processor seconds, beside
those of the least of the five sizes times how many times larger each is; and the exponent of the power of the
size that fits them best, 1 being linear.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bench.provenance import ROOT, markdown, provenance, write
from models.network import Network, picture
from models.shapes import random_parameters

LAYERS, SAMPLES = (4, 8, 16, 32, 64), (128, 256, 512, 1024, 2048)
CHANNELS, SIDE, CLASSES = 32, 16, 10


def network(layers: int) -> ir.Model:
    """So many convolutions behind each other, then a classifier."""
    made = Network(random_parameters(0))
    x = image = picture(3, SIDE)
    for index in range(layers):
        inputs = CHANNELS if index else 3
        x = made.conv(x, f"conv{index}", inputs, CHANNELS, kernel=3, bias=True)
        x = made.relu(x, f"relu{index}")
    x = made.linear(made.global_average(x, "pool"), "classes", CHANNELS, CLASSES)
    return made.model("growth", image, x, CLASSES)


def run(folder: Path, layers: int, samples: int) -> float:
    """Processor seconds of one run in a process of its own."""
    source, data, target = folder / f"{layers}.onnx", folder / f"{samples}.npz", folder / "made.onnx"
    if not source.exists():
        ir.save(network(layers), source)
    if not data.exists():
        rng = np.random.default_rng(1)
        coarse = rng.standard_normal((samples, 3, SIDE // 4, SIDE // 4), np.float32)
        np.savez(data, image=coarse.repeat(4, axis=2).repeat(4, axis=3))
    command = [sys.executable, "-m", "bench.growth", "--child", str(source), str(data), str(target)]
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join((str(ROOT), str(ROOT / "passes")))
    done = subprocess.run(
        command,
        env={**os.environ, **one, "PYTHONPATH": paths},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def child(source: Path, data: Path, target: Path) -> float:
    """Processor seconds of this process and of those that it starts."""
    import onnxdecomp

    onnxdecomp.compress(source, target, calib=str(data), target="macs=2x", bench=False, overwrite=True)
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def grown(what: str, sizes: Sequence[int], seconds: Sequence[float]) -> dict[str, Any]:
    """One of the two series, with the exponent of the power that fits it best."""
    slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    return {"what": what, "sizes": list(sizes), "seconds": list(seconds), "exponent": slope}


def main() -> None:
    """Measure and write bench/results/growth.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(child(*map(Path, options.child)))
        return
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def medians(pairs: Sequence[tuple[int, int]]) -> list[float]:
            taken = []
            for layers, samples in pairs:
                times = [run(folder, layers, samples) for _ in range(options.repeats)]
                taken.append(statistics.median(times))
                print(layers, samples, taken[-1], flush=True)
            return taken

        found.append(grown("layers", LAYERS, medians([(layers, 256) for layers in LAYERS])))
        found.append(grown("samples", SAMPLES, medians([(8, samples) for samples in SAMPLES])))
    rows = [
        (
            *(series["what"], str(size), f"{spent:.1f}"),
            f"{series['seconds'][0] * size / series['sizes'][0]:.1f}",
            f"{series['exponent']:.2f}",
        )
        for series in found
        for size, spent in zip(series["sizes"], series["seconds"], strict=True)
    ]
    table = markdown(("grows", "size", "processor s", "if linear", "exponent"), rows)
    write("growth", {**provenance(), "repeats": options.repeats, "series": found}, table)


if __name__ == "__main__":
    main()
