"""How near the estimate of the time left is, while models are compressed.

    python -m bench.progress NAME MODEL CALIB TARGET [SAMPLES]

Every time that progress is said, the estimate of the whole time is compared with what it was in the end. The
share of the time after the first fifth in which it is within a factor of 1.5, and the worst factor, go to
bench/results/progress.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime

import onnxdecomp
from onnxdecomp.runtime import environment
from onnxdecomp.runtime.estimate import Estimate

RESULTS = Path(__file__).parent / "results" / "progress.json"
_NEAR = 1.5


def watched(model: str, calib: str, target: str) -> tuple[list[tuple[float, float, str]], float]:
    """What was estimated of the whole time, with when and where, and how long it took."""
    said: list[tuple[float, float, str]] = []
    clock = time.process_time  # on a machine that others use
    estimate = Estimate(clock)
    start = clock()

    def progress(what: str, done: int, total: int) -> None:
        left = estimate.left(what, done, total)
        if left is not None:
            said.append((clock() - start, clock() - start + left, what))

    onnxdecomp.compress(model, None, calib=calib, target=target, bench=False, progress=progress)
    return said, clock() - start


def judged(said: list[tuple[float, float, str]], whole: float) -> dict[str, float]:
    """The share of the time after the first fifth in which the estimate is near, and its worst factor."""
    points = [(when, max(guess / whole, whole / guess)) for when, guess, _ in said]
    ends = [*(when for when, _ in points[1:]), whole]
    spans = [
        (max(0.0, end - max(when, whole / 5)), factor)
        for (when, factor), end in zip(points, ends, strict=True)
    ]
    total = sum(span for span, _ in spans)
    near = sum(span for span, factor in spans if factor <= _NEAR)
    worst = max((factor for span, factor in spans if span > 0), default=float("inf"))
    return {"near": round(near / max(total, 1e-9), 3), "worst": round(worst, 2), "seconds": round(whole, 1)}


def main() -> None:
    """Watch one run, and put it into the results."""
    name, model, calib, target, *samples = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        if samples:
            with np.load(calib) as held:
                fewer = {key: held[key][: int(samples[0])] for key in held.files}
            calib = str(Path(folder) / "calib.npz")
            np.savez(calib, **fewer)
        said, whole = watched(model, calib, target)
    found = judged(said, whole)
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    where = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"onnxdecomp": onnxdecomp.__version__, "onnxruntime": onnxruntime.__version__},
        "device": environment.device("cpu"),
        "target": target,
    }
    said_at = [(round(when / whole, 2), round(guess / whole, 2), what) for when, guess, what in said]
    RESULTS.write_text(json.dumps({**known, name: {**where, **found, "said": said_at}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
