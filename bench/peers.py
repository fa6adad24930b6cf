"""Ways to compress the same models, side by side: what a user would otherwise do, and onnxdecomp.

    python -m bench.peers [--models NAME …] [--ways NAME …] [--steps compress evaluate time] [--work FOLDER]

Needs the corpus (--corpus FOLDER, default: $ONNXDECOMP_CORPUS, else ../shared/corpus). Every way compresses a
file with the same calibration inputs in a process of its own, one thread; its processor time and peak memory
are told. The files are evaluated on the corpus' task, and timed together with their runs interleaved. FOLDER
keeps the files between the steps, so that timing can wait for a quiet machine. Rows that a run does not make
keep what an earlier run wrote, and so do latencies without the step `time`, of files of the same size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.corpus import Corpus, add_option, corpus_module
from bench.intervals import shown
from bench.peer_ways import WAYS
from bench.provenance import RESULTS, ROOT, markdown, provenance, write

MODELS = (
    *("vgg16_half_cifar10", "resnet20_cifar10", "squeezenet1.1", "dncnn_25", "waifu2x_upconv7_photo_scale2x"),
    *("fst_wave", "ch_PP-OCRv2_det_infer", "nanodet_m", "nsnet2", "magika_standard_v3_3", "mlperf_ad01"),
)
ORIGINAL = "original"
STEPS = ("compress", "evaluate", "time")
SETTINGS = ((1, 1), (2, 1), (1, 16))
"""Threads and batch size; a batch where the model leaves its size free."""

_CALIBRATION, _EVALUATION = 500, 2000
"""Samples at most."""
_TIMEOUT = 1800


def main() -> None:
    """Measure and write bench/results/peers.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--provider", default="cpu", help="to time on")
    parser.add_argument("--seconds", type=float, default=12.0, help="timing of a model at a setting")
    options = parser.parse_args()
    folder = options.corpus.folder
    module = corpus_module(folder)
    corpus = module.Corpus(folder)
    for name in options.models:
        place = options.work.resolve() / name
        place.mkdir(parents=True, exist_ok=True)
        source = corpus.model_path(corpus.entry(name)).resolve()
        if "compress" in options.steps:
            arrays = module.calibration(corpus, name, _most(corpus.entry(name)))
            np.savez(place / "calib.npz", **arrays)
            for way in options.ways:
                _keep(place, way, compress(way, source, place))
        made = [way for way in WAYS if _file(place, way).exists()]
        if "evaluate" in options.steps:
            for way in (ORIGINAL, *made):
                file = None if way == ORIGINAL else _file(place, way)
                _keep(place, way, evaluate(options.corpus, name, source, file))
        if "time" in options.steps:
            files = {ORIGINAL: source, **{way: _file(place, way) for way in made}}
            for way, timed in measure(files, place / "calib.npz", options.provider, options.seconds).items():
                found = {f"latency_{options.provider}": timed, "timed": provenance()["date"]}
                _keep(place, way, found)
        rows = _merged(_rows(place, name))
        write("peers", {**provenance(), "rows": rows}, tables(rows))


def compress(way: str, source: Path, place: Path) -> dict[str, Any]:
    """Run one way in a process of its own: what it says, its processor seconds and peak memory in bytes."""
    target, facts = _file(place, way), place / f"{way}.facts.json"
    for file in (target, facts):
        file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.peer_ways", way, str(source), str(target)]
    paths = (str(ROOT), str(ROOT / "passes"), *filter(None, [os.environ.get("PYTHONPATH")]))
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **single, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        ["timeout", str(_TIMEOUT), *command, str(place / "calib.npz"), str(facts)],
        env=environment,
        cwd=place,  # ONNX Runtime's quantizer leaves files behind
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if not facts.exists():
        reason = "it took too long" if process.returncode == 124 else f"it ended with {process.returncode}"
        return {"way": way, "failed": reason}
    found = json.loads(facts.read_text())
    if "failed" in found or "not_for_this" in found:
        target.unlink(missing_ok=True)
    return {
        "seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "bytes": _bytes(target) if target.exists() else None,
        "macs": _macs(target) if target.exists() else None,
        "date": provenance()["date"],
        "failed": None,
        "not_for_this": None,
        **found,
    }


def evaluate(corpus: Corpus, name: str, source: Path, file: Path | None) -> dict[str, Any]:
    """The corpus' metric of a file, None for the original, and how it differs from the original's."""
    found = corpus.evaluate(name, file, _EVALUATION)
    if file is None:
        return {"task": found, "bytes": _bytes(source), "macs": _macs(source), "date": provenance()["date"]}
    return {"task": found, "evaluated": provenance()["date"]}


def measure(
    files: Mapping[str, Path], calib: Path, provider: str, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """Of each way the latency at every setting, interleaved with all others."""
    import onnxdecomp

    found: dict[str, list[dict[str, Any]]] = {way: [] for way in files}
    for threads, batch in SETTINGS if provider == "cpu" else ((1, 1), (1, 16)):
        timed = onnxdecomp.bench(
            list(files.values()),
            providers=(provider,),
            batch_sizes=(batch,),
            threads=(threads,),
            duration=seconds,
            data=calib,
            memory=False,
        )
        for way, model in zip(files, timed.settings[0].models, strict=True):
            ratio = model.ratio
            found[way].append(
                {
                    "threads": threads,
                    "batch": batch,
                    "ran_batch": model.batch,
                    "p50_ms": model.latency.p50,
                    "runs": model.latency.count,
                    "speed_up": None if ratio is None else 1 / ratio.value,
                    "interval": None if ratio is None else [1 / ratio.high, 1 / ratio.low],
                    "nodes": dict(model.nodes),
                }
            )
    return found


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for each model, under its name."""
    models = dict.fromkeys(row["model"] for row in rows)
    parts = []
    for model in models:
        own = {row["way"]: row for row in rows if row["model"] == model}
        original = own[ORIGINAL]
        head = (
            "way",
            "file",
            "MACs",
            *_labels(original),
            _metric_name(original),
            "to compress",
            "peak memory",
        )
        lines = [_line(row, original, len(head)) for row in own.values()]
        parts.append(f"**{model}**\n\n{markdown(head, lines)}")
    return "\n\n".join(parts)


def _line(row: Mapping[str, Any], original: Mapping[str, Any], width: int) -> list[str]:
    first = [str(row["way"])]
    if row.get("failed") or row.get("not_for_this"):
        said = f"fails: {_short(row['failed'])}" if row.get("failed") else f"none: {row['not_for_this']}"
        return [*first, said.replace("|", "/"), *[""] * (width - 2)]
    cost = ["", ""]
    if row is not original:
        cost = [f"{row['seconds']:.0f} s", f"{row['peak_bytes'] / 1e6:.0f} MB"]
    return [
        *first,
        f"{row['bytes'] / 1e6:.2f} MB",
        f"{row['macs'] / 1e6:.4g}M" if row.get("macs") is not None else "as before",
        *(_speed(timed) for timed in _timings(row)),
        _metric(row, original),
        *cost,
    ]


def _timings(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The timings of all providers that are worth a column: a batch only where the model took it."""
    found = [timed for key in sorted(row) if key.startswith("latency_") for timed in row[key]]
    return [timed for timed in found if timed["ran_batch"] == timed["batch"]]


def _labels(row: Mapping[str, Any]) -> list[str]:
    labels = []
    for key in sorted(key for key in row if key.startswith("latency_")):
        for timed in row[key]:
            if timed["ran_batch"] == timed["batch"]:
                where = f"{timed['threads']} thread{'s' if timed['threads'] > 1 else ''}"
                where = where if key == "latency_cpu" else key.removeprefix("latency_").upper()
                labels.append(f"{where}, batch {timed['batch']}")
    return labels


def _speed(timed: Mapping[str, Any]) -> str:
    if timed["speed_up"] is None:
        return f"{timed['p50_ms']:.3g} ms"
    low, high = timed["interval"]
    return f"{timed['speed_up']:.2f}x ({low:.2f} to {high:.2f})"


_METRICS = {"top1": ("top-1", 100, " pp"), "psnr": ("PSNR", 1, " dB"), "nll": ("nats/character", 1, "")}


def _metric_name(row: Mapping[str, Any]) -> str:
    key = _metric_key(row)
    return _METRICS[key][0] if key else "relative error"


def _metric_key(row: Mapping[str, Any]) -> str | None:
    return next((key for key in _METRICS if key in row["task"]["metric"]), None)


def _metric(row: Mapping[str, Any], original: Mapping[str, Any]) -> str:
    if "task" not in row:
        return ""
    key = _metric_key(row)
    if key is None:
        error = row["task"].get("rel_l2")
        return "" if row is original else ("not finite" if error is None else f"{error:.3g}")
    _, scale, unit = _METRICS[key]
    value, before = row["task"]["metric"][key], original["task"]["metric"][key]
    if value is None:
        return "not finite"
    score = f"{scale * value:.2f}" + (" %" if scale == 100 else unit)
    if row is original:
        return score
    return f"{score}, {shown(value - before, row['task'].get('change'), scale=scale)}"


def _short(text: str) -> str:
    return text if len(text) < 90 else f"{text[:87]}..."


def _most(entry: Mapping[str, Any]) -> int:
    return min(_CALIBRATION, int(entry["calibration"]["n"]))


def _macs(file: Path) -> int | None:
    """Multiply-accumulates of the layers, or None where quantized operators hide them."""
    from onnxdecomp.graph.load import load
    from onnxdecomp.layers.find import find
    from onnxdecomp.layers.shapes import infer_shapes
    from onnxdecomp.pipeline import configuration, pipeline
    from onnxdecomp.search.candidates import dense_cost

    model = load(file)
    if any("Linear" in node.op_type or "Integer" in node.op_type for node in model.graph):
        return None
    # As exporters write them, some graphs compute the shapes of their layers.
    model = pipeline.run(model, configuration.build({"pipeline": ["simplify", "normalise"]})).model
    infer_shapes(model)
    matched, _ = find(model, freeze=True)
    return sum(dense_cost(match.layer).macs for match in matched)


def _bytes(file: Path) -> int:
    data = file.with_name(f"{file.name}.data")
    return file.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _file(place: Path, way: str) -> Path:
    return place / f"{way}.onnx"


def _keep(place: Path, way: str, facts: Mapping[str, Any]) -> None:
    """Add to what is known of a way."""
    file = place / f"{way}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, **facts}))
    print(place.name, way, {k: v for k, v in facts.items() if k != "notes"}, flush=True)


def _rows(place: Path, model: str) -> list[dict[str, Any]]:
    rows = []
    for way in (ORIGINAL, *WAYS):
        file = place / f"{way}.json"
        if file.exists():
            rows.append({"model": model, "way": way, **json.loads(file.read_text())})
    return rows


def _merged(new: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of earlier runs with the new ones in their places.

    What was timed stays with a row that was not timed anew, where the file is as large as it was.
    """
    file = RESULTS / "peers.json"
    earlier = json.loads(file.read_text())["rows"] if file.exists() else []
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (*earlier, *new):
        old = rows.get((row["model"], row["way"]), {})
        kept = {key: old[key] for key in old if key.startswith("latency_")}
        if old.get("bytes") != row.get("bytes") or any(key in row for key in kept):
            kept = {}
        elif kept:
            kept["timed"] = old.get("timed", old.get("date"))
        rows[row["model"], row["way"]] = {**kept, **row}
    for row in rows.values():
        row.get("task", {}).pop("model", None)  # where the file lay
    order = [*MODELS, *(model for model, _ in rows if model not in MODELS)]
    ways = [ORIGINAL, *WAYS]
    return sorted(rows.values(), key=lambda row: (order.index(row["model"]), ways.index(row["way"])))


if __name__ == "__main__":
    main()
