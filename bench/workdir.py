"""What a work folder saves: a run, the same again, and another target on the same model.

    python -m bench.workdir digits models/digits.onnx models/digits_test.npz [--samples N]

Processor seconds of whole processes, one after the other; the table and the hashes of what was written go to
bench/results/workdir.json, a model a key.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import onnxdecomp
from onnxdecomp.runtime import environment

RESULTS = Path(__file__).parent / "results" / "workdir.json"


def run(model: str, calib: str, target: str, folder: Path, *more: str) -> dict[str, Any]:
    """Compress in a process of its own: its processor and wall seconds, and the hash of what it wrote."""
    record = folder / "record.json"
    command = [sys.executable, "-m", "onnxdecomp.cli.main", "compress", model, "-o", str(folder / "new.onnx")]
    command += [
        "--calib",
        calib,
        "--target",
        target,
        "--overwrite",
        "--no-bench",
        "--json",
        str(record),
        *more,
    ]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sha256 = json.loads(record.read_text())["output"]["sha256"]
    return {"cpu_s": round(used, 2), "wall_s": round(time.perf_counter() - start, 2), "sha256": sha256}


def measure(model: str, calib: str, first: str, second: str) -> dict[str, Any]:
    """All runs on one model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = ("--workdir", str(folder / "work"))
        found = {
            "without": run(model, calib, first, folder),
            "first": run(model, calib, first, folder, *work),
            "again": run(model, calib, first, folder, *work),
            "second": run(model, calib, second, folder, *work),
            "second without": run(model, calib, second, folder),
        }
        size = sum(path.stat().st_size for path in (folder / "work").rglob("*") if path.is_file())
    same = found["without"]["sha256"] == found["first"]["sha256"] == found["again"]["sha256"]
    same = same and found["second"]["sha256"] == found["second without"]["sha256"]
    return {"targets": [first, second], "runs": found, "same_bytes": same, "folder_bytes": size}


def main() -> None:
    """Measure one model and put it into the results."""
    parser = argparse.ArgumentParser()
    for name in ("name", "model", "calib"):
        parser.add_argument(name)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--targets", nargs=2, default=["macs=2x", "macs=3x"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calib = asked.calib
        if asked.samples:
            with np.load(calib) as held:
                fewer = {name: held[name][: asked.samples] for name in held.files}
            calib = str(Path(folder) / "calib.npz")
            np.savez(calib, **fewer)
        found = measure(asked.model, calib, *asked.targets)
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    where = {
        "date": datetime.now(UTC).date().isoformat(),
        "onnxdecomp": onnxdecomp.__version__,
        "onnxruntime": onnxruntime.__version__,
        "device": environment.device("cpu"),
        "samples": asked.samples,
    }
    RESULTS.write_text(json.dumps({**known, asked.name: {**where, **found}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
