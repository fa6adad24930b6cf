"""What a large encoder takes: memory and time of `compress --rank 0.5 --method svd` on about 2 GB of weights.

    python -m bench.scale [--layers 40] [--width 1024] [--ways weights calibrated] [--inspected]

The encoder is written by models/encoder.py with seeded random weights (40 layers of 1,024 and an embedding
of 30,522 words: 2.1 GB), and compressed by the command line in a process of its own, once to its weights
alone and once with 16 texts of 64 tokens for calibration. It is verified on random inputs or on these, and
not timed against the original. Reported are

- the peak of the resident memory of the process and of all that it starts together (bench/tree_memory.py);
- the processor seconds of all of them, and the wall time;
- how large the result is, and how far its outputs are from the original's. The weights are noise, whose
  spectra are flat: half of the ranks lose much, whatever is done.

`--inspected` times `inspect` of an encoder of 134 blocks of 64 features, 804 layers and two tables, whose
graph has 4,030 nodes: the median of three processes, imports and all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.provenance import RESULTS, markdown, provenance, write
from bench.tree_memory import TreeMemory
from models.encoder import encoder
from models.shapes import save

WAYS = ("weights", "calibrated")
LIMIT = 6 << 30
TEXTS, TOKENS, WORDS = 16, 64, 30522
DEEP = 134
"""Blocks of six layers each."""


def measure(way: str, source: Path, folder: Path) -> dict[str, Any]:
    """One run of the command."""
    target, record = folder / f"{way}.onnx", folder / f"{way}.json"
    command = [sys.executable, "-c", "from onnxdecomp.cli.main import main; main()", "compress", str(source)]
    command += ["-o", str(target), "--method", "svd", "--rank", "0.5", "--no-bench", "--threads", "1"]
    command += ["--overwrite", "--json", str(record)]
    if way == "calibrated":
        ids = np.random.default_rng(1).integers(0, WORDS, (TEXTS, TOKENS))
        np.savez(folder / "calib.npz", input_ids=ids, attention_mask=np.ones_like(ids))
        command += ["--calib", str(folder / "calib.npz")]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    memory = TreeMemory(process.pid)
    before = psutil.Process().cpu_times()
    code = process.wait()
    after = psutil.Process().cpu_times()
    peak = memory.stop()
    if code:
        raise SystemExit(f"{way}: the command ended with {code}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    said = json.loads(record.read_text())
    return {
        "way": way,
        "peak_bytes": peak,
        "cpu_s": spent,
        "wall_s": time.perf_counter() - start,
        "bytes": _size(target),
        "rel_l2": said["verify"]["rel_l2"],
        "tool": said["tool"],
    }


def inspected(folder: Path) -> dict[str, Any]:
    """Seconds of the processor that `inspect` of a deep encoder takes."""
    source = folder / "deep.onnx"
    save(encoder(layers=DEEP, width=64, vocabulary=1000), source)
    command = [sys.executable, "-c", "from onnxdecomp.cli.main import main; main()", "inspect", str(source)]
    found = []
    for _ in range(3):
        before = psutil.Process().cpu_times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = psutil.Process().cpu_times()
        found.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    return {"blocks": DEEP, "cpu_s": statistics.median(found), "date": provenance()["date"]}


def _size(model: Path) -> int:
    """Bytes of a model's files."""
    return sum(file.stat().st_size for file in model.parent.glob(f"{model.name}*"))


def table(result: dict[str, Any]) -> str:
    """The runs as Markdown."""
    rows = [
        (
            f"{run['way']}",
            f"{run['peak_bytes'] / 2**30:.2f} GiB",
            f"{run['peak_bytes'] / result['bytes']:.2f}x",
            f"{run['cpu_s']:.0f} s",
            f"{run['bytes'] / 1e9:.2f} GB",
            f"{run['rel_l2']:.3f}",
        )
        for run in result["runs"]
    ]
    head = ("fitted to", "peak memory", "of the model", "processor time", "result", "relative L2 error")
    shown = f"Of a model of {result['bytes'] / 1e9:.2f} GB:\n\n{markdown(head, rows)}"
    if deep := result.get("inspected"):
        layers = 6 * deep["blocks"]
        shown += f"\n\n`inspect` of an encoder of {layers} layers: {deep['cpu_s']:.1f} s of the processor.\n"
    return shown


def main() -> None:
    """Measure and write bench/results/scale.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--model", type=Path, help="where the encoder is, or is written to if it is not there"
    )
    parser.add_argument("--inspected", action="store_true", help="inspect a deep encoder, and nothing else")
    options = parser.parse_args()
    if options.inspected:
        with tempfile.TemporaryDirectory() as temporary:
            keep({}, inspected(Path(temporary)), inspection=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        source = options.model or Path(temporary, "encoder.onnx")
        if not source.exists():
            save(encoder(layers=options.layers, width=options.width, vocabulary=WORDS), source, external=True)
        known = {"layers": options.layers, "width": options.width, "bytes": _size(source)}
        for way in options.ways:
            run = measure(way, source, Path(temporary)) | {"date": provenance()["date"]}
            keep({**known, "limit_bytes": LIMIT}, run)


def keep(known: dict[str, Any], run: dict[str, Any], *, inspection: bool = False) -> None:
    """Write a run in the place of an earlier one of the same model; the others stay."""
    file = RESULTS / "scale.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    alike = inspection or all(before.get(name) == value for name, value in known.items())
    runs = {own["way"]: own for own in before.get("runs", ())} if alike else {}
    deep = run if inspection else before.get("inspected")
    if not inspection:
        runs[run["way"]] = run
    sizes = {name: before.get(name, 0) for name in ("layers", "width", "bytes", "limit_bytes")}
    result = {**provenance(), **sizes, **known, "runs": [runs[way] for way in WAYS if way in runs]}
    write("scale", {**result, "inspected": deep}, table(result | {"inspected": deep}))


if __name__ == "__main__":
    main()
