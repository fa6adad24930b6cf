"""Kinds of fewer bits on larger models, beside ONNX Runtime's own dynamic quantizer.

    python -m bench.quantization_kinds [--models NAMES] [--ways NAMES] [--most N]

The corpus of larger models lies beside the one of small ones (../corpus-large). Each file is made by
`compress --method none --quantize KIND`, or by `quantize_dynamic` as it comes. The metric is the corpus' own,
with the interval of its change; latency is interleaved with the original's, on one calibration sample.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.corpus import add_option
from bench.corpus_large import LargeCorpus
from bench.intervals import shown
from bench.provenance import RESULTS, ROOT, markdown, provenance, write

MODELS = ("minilm_l6", "whisper_tiny_en_encoder", "whisper_tiny_en_decoder")
THEIRS = "quantize_dynamic"
_ORIGINAL = "original"
WAYS: Mapping[str, Mapping[str, Any]] = {
    "int8-dynamic": {"method": "none", "quantize": "int8-dynamic"},
    "int8-dynamic, tables of 4 bits": {"method": "none", "quantize": "int8-dynamic", "table_bits": "4"},
    "int8-block": {"method": "none", "quantize": "int8-block"},
    "int4": {"method": "none", "quantize": "int4"},
}

_SAMPLES = 16
"""Calibration samples: the outputs are compared on them, and nothing is fitted."""


def main() -> None:
    """Measure and write bench/results/quantization_kinds.json and .md, keeping the rows of others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--ways", nargs="*", choices=(THEIRS, *WAYS), default=(THEIRS, *WAYS))
    parser.add_argument("--most", type=int, default=None, help="evaluation samples at most")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quantization_kinds")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    small = options.corpus.folder
    corpus = LargeCorpus(small.parent / "corpus-large", small)
    known = RESULTS / "quantization_kinds.json"
    before = json.loads(known.read_text())["rows"] if known.exists() else []
    own = provenance()
    rows = {(row["model"], row["way"]): row for row in before}
    for name in options.models:
        for row in measured(corpus, name, options.ways, options.work, options.most):
            rows[name, row["way"]] = {**row, "provenance": own}
    order = {way: place for place, way in enumerate((_ORIGINAL, THEIRS, *WAYS))}
    found = sorted(rows.values(), key=lambda row: (row["model"], order[row["way"]]))
    write("quantization_kinds", {**own, "rows": found}, table(found))


def measured(
    corpus: LargeCorpus, name: str, chosen: Sequence[str], work: Path, most: int | None
) -> list[dict[str, Any]]:
    """The rows of a model."""
    source = corpus.model(name)
    few = {key: array[:_SAMPLES] for key, array in corpus.calibration(name).items()}
    files, seconds = [source], [0.0]
    for way in chosen:
        target = work / f"{name}.{way.replace(', ', '.').replace(' ', '_')}.onnx"
        started = time.process_time()
        make(way, source, target, few)
        seconds.append(time.process_time() - started)
        files.append(target)
    judged = corpus.evaluate(name, files, most)
    ratios = timed(files, few)
    return [
        {
            "model": name,
            "way": way,
            "bytes": file.stat().st_size,
            "metric": found["metric"],
            "change": found.get("change"),
            "rel_l2": found.get("rel_l2"),
            "speedup": ratio,
            "cpu_seconds": spent,
        }
        for way, file, found, ratio, spent in zip(
            (_ORIGINAL, *chosen), files, judged, ratios, seconds, strict=True
        )
    ]


def make(way: str, source: Path, target: Path, data: Mapping[str, Any]) -> None:
    """Write a file."""
    import onnxdecomp

    if way == THEIRS:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(source, target)
        return
    onnxdecomp.compress(source, target, calib=data, threads=1, overwrite=True, allow_slower=True, **WAYS[way])


def timed(files: Sequence[Path], data: Mapping[str, Any]) -> list[list[float] | None]:
    """How many times as fast as the first each file is, with its interval."""
    import onnxdecomp

    first = {key: array[:1] for key, array in data.items()}
    found = onnxdecomp.bench(files, threads=(1,), duration=30, memory=False, data=first)
    ratios = [model.ratio for model in found.settings[0].models]
    return [None if r is None else [1 / r.value, 1 / r.high, 1 / r.low] for r in ratios]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each file."""
    head = ["model", "way", "file", "metric", "change", "outputs off by", "faster than the original"]
    lines = []
    for row in rows:
        name, value = next(iter(row["metric"].items()))
        original = next(r for r in rows if r["model"] == row["model"])
        lost = value - next(iter(original["metric"].values()))
        speed = row["speedup"]
        lines.append(
            [
                row["model"],
                row["way"],
                f"{row['bytes'] / 1e6:.1f} MB",
                f"{name} {value:.2%}",
                "" if row is original else shown(lost, row["change"], scale=100),
                "" if row is original or row["rel_l2"] is None else f"{row['rel_l2']:.3f}",
                "" if not speed else f"{speed[0]:.2f}x ({speed[1]:.2f} to {speed[2]:.2f})",
            ]
        )
    return markdown(head, lines)


if __name__ == "__main__":
    main()
