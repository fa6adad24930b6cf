"""What compression does to the trained digits network: accuracy, size, multiply-accumulates and latency.

    python -m bench.digits [--seconds 10] [--threads 1]

Each method at each rank compresses models/digits.onnx without any training; accuracy is that on the 500
test images in models/digits_test.npz, latency that of ONNX Runtime's CPU provider, interleaved with the
original's, as a ratio of medians with its 95 % bootstrap interval (above 1 is faster).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.provenance import markdown, provenance, write
from models.digits import MODEL, TEST_DATA, accuracy

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
    options = parser.parse_args()
    with np.load(TEST_DATA) as data:
        images, labels = data["image"], data["labels"]
    before = {"accuracy": accuracy(MODEL, images, labels), "bytes": MODEL.stat().st_size}
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {
                **_candidate(Path(folder), *candidate, seconds=options.seconds, threads=options.threads),
                "accuracy": accuracy(Path(folder) / "new.onnx", images, labels),
            }
            for candidate in CANDIDATES
        ]
    result = {
        **provenance(),
        "threads": options.threads,
        "test_images": len(labels),
        "original": before,
        "compressed": rows,
    }
    write("digits", result, _table(before, rows))


def _candidate(folder: Path, method: str, rank: str, *, seconds: float, threads: int) -> dict[str, Any]:
    """Compress into folder/new.onnx and time that against the original."""
    import onnxdecomp

    path = folder / "new.onnx"
    done = onnxdecomp.compress(
        MODEL,
        path,
        method=method,
        rank=rank,
        verify=False,
        bench=False,
        overwrite=True,
    )
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
    return {
        "method": method,
        "rank": rank,
        "bytes": path.stat().st_size,
        "totals": done.record["totals"],
        "layers": [choice.layer for choice in done.plan.decomposed],
        "latency": latency,
    }


def _table(before: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    batches = [f"faster at batch {batch}" for batch in BATCHES]
    head = ("method", "rank", "accuracy", "file", "MACs", *batches)
    lines: list[tuple[str, ...]] = [
        (
            "original",
            "",
            _percent(before["accuracy"]),
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
