"""What compression does to the trained digits network: accuracy, size, multiply-accumulates and latency.

    python -m bench.digits [--seconds 10] [--threads 1] [--steps accuracy time]

Each method at each rank compresses models/digits.onnx without any training; accuracy is that on the 500
test images in models/digits_test.npz, latency that of ONNX Runtime's CPU provider, interleaved with the
original's, as a ratio of medians with its 95 % bootstrap interval (above 1 is faster). Without the step
`time` the latencies are those of an earlier run, of files with the same layers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bench.intervals import paired_difference, shown
from bench.provenance import RESULTS, markdown, provenance, write
from models.digits import MODEL, TEST_DATA
from onnxdecomp.core.layer import Array

CANDIDATES = (
    ("tucker", "0.5"),
    ("tucker", "0.375"),
    ("svd", "0.5"),
    ("svd", "0.25"),
    ("tt", "0.5"),
    ("cp", "0.5"),
    ("cp", "0.25"),
)
"""Method and rank."""
BATCHES = (1, 16)


def main() -> None:
    """Measure and write bench/results/digits.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10, help="timing of a candidate at a batch size")
    parser.add_argument("--threads", type=int, default=1, help="threads within an operator")
    parser.add_argument("--steps", nargs="+", choices=("accuracy", "time"), default=["accuracy", "time"])
    options = parser.parse_args()
    with np.load(TEST_DATA) as data:
        images, labels = data["image"], data["labels"]
    right = _right(MODEL, images, labels)
    before = {"accuracy": float(right.mean()), "bytes": MODEL.stat().st_size}
    timed, known = _earlier() if "time" not in options.steps else (provenance(), {})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new.onnx"
        for method, rank in CANDIDATES:
            row = _compressed(path, method, rank)
            if "time" in options.steps:
                row["latency"] = _latency(path, options.seconds, options.threads)
            elif _alike(old := known[method, rank], row):
                row["latency"] = old["latency"]
            else:
                raise SystemExit(f"{method} {rank}: the earlier run's file had other layers; time it anew")
            found = _right(path, images, labels)
            change = paired_difference(right, found)
            rows.append({**row, "accuracy": float(found.mean()), "change": change.to_json()})
    result = {
        **provenance(),
        "timed": timed,
        "threads": options.threads,
        "test_images": len(labels),
        "original": before,
        "compressed": rows,
    }
    write("digits", result, _table(before, rows))


def _earlier() -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, Any]]]:
    """Where an earlier run has timed, and its rows."""
    result = json.loads((RESULTS / "digits.json").read_text())
    return result["timed"], {(row["method"], row["rank"]): row for row in result["compressed"]}


def _alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two files have the same layers of the same sizes; names and notes may take other bytes."""
    sizes = [[row["totals"][key]["after"] for key in ("params", "macs")] for row in (old, new)]
    return sizes[0] == sizes[1] and old["layers"] == new["layers"]


def _right(file: Path, images: Array, labels: Array) -> Array:
    """Of each image whether it gets the right class, [n] of 0 and 1."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": images})
    return np.asarray(np.asarray(scores).argmax(1) == labels, np.float64)


def _compressed(path: Path, method: str, rank: str) -> dict[str, Any]:
    """Compress into `path`, and what there is to say of it."""
    import onnxdecomp

    done = onnxdecomp.compress(
        MODEL, path, method=method, rank=rank, verify=False, bench=False, overwrite=True
    )
    return {
        "method": method,
        "rank": rank,
        "bytes": path.stat().st_size,
        "totals": done.record["totals"],
        "layers": [choice.layer for choice in done.plan.decomposed],
    }


def _latency(path: Path, seconds: float, threads: int) -> dict[str, Any]:
    """The file against the original, at every batch size."""
    import onnxdecomp

    timed = onnxdecomp.bench(
        [MODEL, path], batch_sizes=BATCHES, threads=(threads,), duration=seconds, memory=False
    )
    latency = {}
    for setting in timed.settings:
        original, new = setting.models
        assert new.ratio is not None
        # The ratio is that of times; its reciprocal says how many times faster.
        latency[str(setting.batch)] = {
            "before_ms": original.latency.p50,
            "after_ms": new.latency.p50,
            "speed_up": 1 / new.ratio.value,
            "interval": [1 / new.ratio.high, 1 / new.ratio.low],
            "confidence": new.ratio.confidence,
        }
    return latency


def _table(before: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    batches = [f"faster at batch {batch}" for batch in BATCHES]
    head = ("method", "rank", "accuracy", "points", "file", "MACs", *batches)
    lines: list[tuple[str, ...]] = [
        (
            "original",
            "",
            _percent(before["accuracy"]),
            "",
            _megabytes(before["bytes"]),
            "",
            *[""] * len(batches),
        )
    ]
    for row in rows:
        macs = row["totals"]["macs"]
        lines.append(
            (
                row["method"],
                row["rank"],
                _percent(row["accuracy"]),
                shown(row["accuracy"] - before["accuracy"], row.get("change"), scale=100, digits=1),
                _megabytes(row["bytes"]),
                f"{macs['before'] / macs['after']:.2f}x fewer",
                *(_speed_up(row["latency"][str(batch)]) for batch in BATCHES),
            )
        )
    return markdown(head, lines)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _speed_up(latency: Mapping[str, Any]) -> str:
    low, high = latency["interval"]
    return f"{latency['speed_up']:.2f}x ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
