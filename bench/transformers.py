"""Transformers and other models of matrix products: int8 alone, widths, both, and the literature's factors.

    python -m bench.transformers [--models minilm_l6,…] [--rows "1.5x, int8" …] [--steps compress evaluate …]

A row is a model compressed by one command, `compress MODEL --calib …` with the options in ROWS (of the
recogniser by a plan from some of its calibration inputs, with all of which a search takes long), or by a way
of the literature (bench/svd_baselines.py). The metric is the corpus' own, on samples that nothing was fitted
to or chosen by, with the 95 % interval of its paired difference; latency is that on one thread at batch 1,
all files of a model interleaved in one run, beside the original and beside ONNX Runtime's `quantize_dynamic`
as it comes. "kept" rows are of the layers' matrices, tables of embeddings not among them: 80 % kept is
macs=1.25x.

The sentence encoder is judged by retrieval and by the rank correlation of its similarities with the
original's ("agreement"): the file of the STS benchmark is in no corpus here. "vit_s" has random weights
(models/vit.py): its rows show that the same command takes it, and speed.

Steps as in bench/joint: compress writes files to the work folder, evaluate and time measure what lies there.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import joint
from bench.corpus import add_option
from bench.corpus_large import LargeCorpus
from bench.intervals import paired_difference
from bench.provenance import RESULTS, ROOT, markdown, provenance, write
from bench.svd_baselines import KINDS, baseline
from onnxdecomp.core.layer import Array

_INT8: Mapping[str, Any] = {"quantize": "int8"}
_SMALL: Mapping[str, Any] = {"quantize": "int8", "table_bits": "4"}


@dataclass(frozen=True)
class Way:
    """How a model is compressed.

    Attributes:
        goal: What is asked for.
        name: The way.
        options: Of `compress`; None for a way of the literature, which `name` is then.
        kept: The share of parameters that such a way keeps.
    """

    goal: str
    name: str
    options: Mapping[str, Any] | None = None
    kept: float = 1.0


def _widths(factor: str, **others: Any) -> Mapping[str, Any]:
    return {"method": "width", "target": f"macs={factor}", **others}


def _kept(share: float) -> tuple[Way, ...]:
    """Our widths and the literature's factors that keep so much of the layers' matrices."""
    goal = f"{share:.0%} kept"
    return (
        Way(goal, "widths", _widths(f"{1 / share:.4g}x")),
        *(Way(goal, kind, kept=share) for kind in KINDS),
    )


ROWS: Mapping[str, tuple[Way, ...]] = {
    "minilm_l6": (
        Way("int8", "int8 alone", _INT8),
        Way("int8, tables of 4 bits", "int8 alone", _SMALL),
        Way("1.5x, int8", "widths", _widths("1.5x", **_SMALL)),
        Way("2x, int8", "widths", _widths("2x", **_SMALL)),
        Way("2x, int8, refined", "widths", _widths("2x", refine=True, **_SMALL)),
        *_kept(0.8),
        *_kept(0.6),
    ),
    "whisper_tiny_en_encoder": (
        Way("int8", "int8 alone", _INT8),
        Way("1.25x, int8", "widths", _widths("1.25x", **_INT8)),
        Way("1.5x, int8", "widths", _widths("1.5x", **_INT8)),
    ),
    "whisper_tiny_en_decoder": (
        Way("int8", "int8 alone", _INT8),
        Way("int4", "int4 alone", {"quantize": "int4"}),
        Way("1.25x, int8", "widths", _widths("1.25x", **_INT8)),
    ),
    "ppocrv5_rec": (
        Way("int8", "int8 alone", _INT8),
        Way("1.4x, int8", "all methods", {"target": "macs=1.4x", "quantize": "int8-dynamic"}),
        Way("1.5x, int8", "all methods", {"target": "macs=1.5x", "quantize": "int8-dynamic"}),
    ),
    "vit_s": (
        Way("int8", "int8 alone", _INT8),
        Way("1.5x, int8", "widths", _widths("1.5x", **_INT8)),
    ),
}
"""By model: one command each."""

_PICTURES = 64
"""Inputs of the vision transformer, of seeded noise: half to fit to, half to compare on."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Task(joint.Task):
    """A model of the corpora, whose files are named after the rows."""

    def file(self, goal: str, way: str, quantized: bool) -> Path:
        """Where a row's file lies; of the original it is the corpus' own, and `quantize_dynamic` of that."""
        if not goal:
            return self.work / f"{self.name}.quantize_dynamic.onnx" if quantized else self.source
        stem = f"{self.name}.{goal}.{way}".replace(" ", "_").replace(",", "").replace("%", "percent")
        return self.work / f"{stem}.onnx"


@dataclass(frozen=True)
class VisionTransformer(Task):
    """A ViT-S with random weights: what it is judged by is how often its classes stay."""

    _noise: dict[str, Array] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        from models.shapes import save
        from models.vit import vit

        path = self.work / "vit_s.onnx"
        if not path.exists():
            save(vit(), path)
        return path

    def calibration(self) -> dict[str, Array]:
        return {"pixels": self._pictures()[: _PICTURES // 2]}

    def evaluate(self, files: Sequence[Path]) -> list[dict[str, Any]]:
        import onnxruntime as ort

        pictures = self._pictures()[_PICTURES // 2 :]

        def classes(file: Path) -> tuple[Array, Array]:
            session = ort.InferenceSession(str(file))
            scores = np.concatenate([session.run(None, {"pixels": one[None]})[0] for one in pictures])
            return scores, scores.argmax(1)

        original, right = classes(self.source)
        found = []
        for file in files:
            scores, own = classes(file)
            same = (own == right).astype(np.float64)
            found.append(
                {
                    "metric": {"agreement of classes": float(same.mean())},
                    "original": {"agreement of classes": 1.0},
                    "change": _difference(np.ones_like(same), same),
                    "rel_l2": float(np.linalg.norm(scores - original) / np.linalg.norm(original)),
                }
            )
        return found

    def _pictures(self) -> Array:
        """Noise of a few frequencies, so that patches differ and neighbours are alike."""
        if not self._noise:
            rng = np.random.default_rng(1)
            coarse = rng.standard_normal((_PICTURES, 3, 14, 14)).repeat(16, 2).repeat(16, 3)
            fine = rng.standard_normal((_PICTURES, 3, 224, 224))
            self._noise["pixels"] = (coarse + 0.3 * fine).astype(np.float32)
        return self._noise["pixels"]


def _difference(before: Array, after: Array) -> dict[str, float]:
    """The paired difference as the corpora give it."""
    return paired_difference(before, after).to_json()


def main() -> None:
    """Measure, and write bench/results/transformers.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--models", default=",".join(ROWS))
    parser.add_argument("--rows", nargs="*", help="goals; by default all of a model")
    parser.add_argument("--ways", nargs="*", help="ways; by default all of a goal")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "transformers")
    steps = ("compress", "evaluate", "time")
    parser.add_argument("--steps", nargs="*", choices=steps, default=list(steps))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    large = LargeCorpus(options.corpus.folder.parent / "corpus-large", options.corpus.folder)
    for name in options.models.split(","):
        kind = VisionTransformer if name == "vit_s" else Task
        task = kind(name, options.corpus, large, options.work)
        if kind is Task and name not in large.models():
            print(f"{name}: skipped, the corpus of larger models is not there")
            continue
        chosen = [
            way
            for way in ROWS[name]
            if (not options.rows or way.goal in options.rows)
            and (not options.ways or way.name in options.ways)
        ]
        rows = [joint.row_of(name, "", "original", quantized) for quantized in (False, True)]
        joint.quantize(task, rows)
        for way in chosen:
            row = joint.row_of(name, way.goal, way.name, False)
            rows.append({**row, **made(task, way)} if "compress" in options.steps else row)
            _keep(rows)
        for row in rows:
            row.update(joint.sizes(task, row))
        _keep(rows)
        if "evaluate" in options.steps:
            joint.evaluate(task, rows)
            _keep(rows)
        if "time" in options.steps:
            joint.measure(task, rows)
            _keep(rows)


def made(task: Task, way: Way) -> Row:
    """Write a row's file, and say what that took; a goal out of reach says so."""
    import onnxdecomp
    from onnxdecomp.errors import OnnxDecompError

    target = task.file(way.goal, way.name, False)
    target.unlink(missing_ok=True)
    started, spent = time.monotonic(), _processor()
    found: Row = {}
    try:
        if way.options is None:
            baseline(way.name, task.source, target, task.calibration(), way.kept)  # type: ignore[arg-type]
        else:
            options = dict(way.options)
            if "target" in options and (few := task.searched_with()) is not None:
                plain = {name: options[name] for name in ("target", "method") if name in options}
                planned = onnxdecomp.compress(task.source, calib=few, threads=1, dry_run=True, **plain)
                options = {name: value for name, value in options.items() if name not in plain}
                options["plan"] = planned.record
            done = onnxdecomp.compress(task.source, target, calib=task.fitted_to(), **options)
            totals = done.record["totals"]
            found = {"fewer_macs": totals["macs"]["ratio"], "notes": done.notes}
    except OnnxDecompError as error:
        found = {"status": str(error)}
    found |= {"cpu_seconds": _processor() - spent, "wall_seconds": time.monotonic() - started}
    print(task.name, way.goal, way.name, {k: v for k, v in found.items() if k != "notes"}, flush=True)
    return {**found, "provenance": {"compress": provenance()}}


def _processor() -> float:
    """Processor seconds so far, of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(own.ru_utime + own.ru_stime for own in used)


def _keep(rows: Sequence[Row]) -> None:
    """Write the rows in the place of earlier ones; what was not measured now stays as it was."""
    path = RESULTS / "transformers.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {_key(row): row for row in known}
    for row in rows:
        before = {} if "cpu_seconds" in row else merged.get(_key(row), {})
        steps = {**before.get("provenance", {}), **row.get("provenance", {})}
        merged[_key(row)] = {**before, **row, "provenance": steps}
    ordered = sorted(merged.values(), key=_place)
    write("transformers", {"rows": ordered}, table(ordered))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["goal"], row["way"], row["int8"]


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    ways = [(way.goal, way.name) for way in ROWS.get(row["model"], ())]
    own = (row["goal"], row["way"])
    return list(ROWS).index(row["model"]), 1 + ways.index(own) if own in ways else 0, row["int8"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each file, and for each goal out of reach."""
    head = ["model", "asked for", "way", "file", "metric", "change", "agreement", "fewer MACs"]
    head += ["faster than the original", "faster than int8 alone", "processor, s"]
    lines = []
    for row in rows:
        way = "quantize_dynamic" if row["int8"] else row["way"]
        if "status" in row:
            lines.append((row["model"], row["goal"], way, row["status"], *[""] * (len(head) - 4)))
        elif "bytes" in row:
            lines.append(
                (
                    *(row["model"], row["goal"], way, f"{row['bytes'] / 1e6:.1f} MB"),
                    *joint.judged(row),
                    _agreement(row),
                    f"{row['fewer_macs']:.2f}x" if row.get("fewer_macs") else "",
                    *(joint.speed(row.get(key)) for key in ("over_original", "over_int8")),
                    f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else "",
                )
            )
    return markdown(head, lines)


def _agreement(row: Mapping[str, Any]) -> str:
    """The rank correlation with the original's similarities, with its interval."""
    if "agreement" not in row.get("metric", {}):
        return ""
    interval = row.get("agreement_interval")
    shown = f"{row['metric']['agreement']:.3f}"
    return f"{shown} ({interval[0]:.3f} to {interval[1]:.3f})" if interval else shown


if __name__ == "__main__":
    main()
