"""Chains, pairs of layers that share a channel, and both, each also with dynamic int8 behind.

    python -m bench.joint [--models minilm_l6,…] [--goals macs=1.5x,…] [--ways both,…] [--steps compress …]

Of every model and goal: the task's metric with the 95 % interval of its paired difference from that of the
original, MACs, parameters, nodes, processor seconds of the search, and on one thread at batch 1, interleaved
in one run, how many times as fast the file is as the original and as int8 alone. Calibration inputs are those
of the corpora; nothing is trained, and no test sample chooses anything. int8 is ONNX Runtime's
`quantize_dynamic` with its defaults. "chains" are the methods that `auto` weighs for layers of this size,
with siblings' shared factors; "widths" and "pairs" cuts alone, of attention too; "both" is `auto`, and
"refined", where that is asked for, its plan carried out with --refine. MACs and parameters are those of
layers that a way may change: recurrences are some for cuts, none for chains. Files count whole.

Steps: compress writes the files to the work folder, evaluate and time measure what lies there. What is run
again takes the place of the same row of an earlier run; each row says of every step when and with what it
was done.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from bench.corpus import Corpus, add_option
from bench.corpus_large import DECODERS, LargeCorpus
from bench.intervals import Difference
from bench.provenance import RESULTS, ROOT, markdown, provenance, write
from onnxdecomp.core.layer import Array
from onnxdecomp.search.candidates import QUICK
from onnxdecomp.search.targets import about_speed

WAYS: Mapping[str, str] = {
    "chains": ",".join((*QUICK, "shared")),
    "widths": "width",
    "pairs": "width,attention",
    "both": "auto",
    "refined": "auto",
}
"""What `--method` is given."""

GOALS: Mapping[str, tuple[str, ...]] = {
    "minilm_l6": ("macs=1.5x", "macs=1.75x", "macs=2x", "latency=1.5x"),
    "ppocrv5_rec": ("macs=1.5x",),
    "whisper_tiny_en_encoder": ("macs=1.5x",),
    "mobilenet_v2": ("macs=1.14x",),
    "efficientnet_lite0": ("macs=1.14x",),
    "squeezenet1.1": ("latency=1.1x", "latency=1.25x", "latency=1.5x"),
    "nanodet_m": ("error=0.02", "error=0.05", "error=0.1"),
    "ultraface_version-RFB-320": ("error=0.01", "error=0.02", "error=0.05", "error=0.1"),
    "yunet_n_dynamic": ("error=0.02", "error=0.05", "error=0.1"),
    "nsnet2": ("error=0.005", "error=0.01", "error=0.02", "error=0.05"),
    "vgg16_half_cifar10": ("macs=3x", "macs=5x"),
    "resnet20_cifar10": ("macs=1.5x", "macs=2x", "macs=2.5x", "latency=2.5x"),
    "dncnn_25": ("latency=1.5x",),
}
"""By model; -12.5 % MACs are macs=1.14x."""

QUANTIZED = ("minilm_l6", "whisper_tiny_en_encoder", "ppocrv5_rec")
"""Models whose files are quantized too: dynamic int8 is for matrix products."""

_OPERATORS: Mapping[str, list[str]] = {"ppocrv5_rec": ["MatMul"], "whisper_tiny_en_encoder": ["MatMul"]}
"""What `quantize_dynamic` is asked to quantize where it is not everything: with convolutions in 8 bits so the
recogniser reads a third of all characters wrong (35.6 % where it has 0.23 %), and narrower convolutions of an
encoder of speech bear them as badly."""

_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "nanodet_m": {"freeze_initializers": True},
    "ultraface_version-RFB-320": {"freeze_initializers": True},
}
"""What a user of a model has to give beside the goal."""

_TOKENS = 128
"""Length of the text that a sentence encoder is timed with."""

_SECONDS = 3.0
"""Of timing, for each file."""

LESS_IS_BETTER = ("wer", "cer", "nats_per_char")
"""Metrics of errors."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A model of one of the corpora.

    Attributes:
        name: There.
        small, large: The corpora.
        work: Where its files are written.
        most: Evaluation samples at most; None for all.
    """

    name: str
    small: Corpus
    large: LargeCorpus
    work: Path
    most: int | None = None

    @property
    def source(self) -> Path:
        return self._corpus.model(self.name)

    def calibration(self) -> dict[str, Array]:
        return self._corpus.calibration(self.name)

    def fitted_to(self) -> Any:
        """What `compress` is given: the same, or feeds of their own lengths."""
        known = self.name in self.large.models()
        return self.large.fitted_to(self.name) if known else self.calibration()

    def searched_with(self) -> Any:
        """Fewer of them, by which the plan is chosen, where that takes long; None: by all."""
        return self.large.searched_with(self.name) if self.name in self.large.models() else None

    def file(self, goal: str, way: str, quantized: bool) -> Path:
        """Where a result lies; the original's file is that of the corpus."""
        stem = f"{self.name}.{goal}.{way}" if goal else f"{self.name}.original"
        return self.work / f"{stem}{'.int8' if quantized else ''}.onnx" if goal or quantized else self.source

    def evaluate(self, files: Sequence[Path]) -> list[dict[str, Any]]:
        """What the corpus says of each file, "change" with the interval."""
        if isinstance(self._corpus, LargeCorpus):
            return self._corpus.evaluate(self.name, list(files), self.most)
        return [self._corpus.evaluate(self.name, file, self.most) for file in files]

    def feed(self) -> dict[str, Array]:
        """The inputs that files are timed with, one sample."""
        if self.name in DECODERS:  # writes token by token
            return next(feed for feed in self.fitted_to() if feed["input_ids"].shape == (1, 1))
        arrays = self.calibration()
        if "attention_mask" not in arrays:
            return {name: array[:1] for name, array in arrays.items()}
        real = arrays["attention_mask"].astype(bool)
        return {name: array[real][None, :_TOKENS] for name, array in arrays.items()}

    @property
    def _corpus(self) -> Corpus | LargeCorpus:
        return self.large if self.name in self.large.models() else self.small


def main() -> None:
    """Measure, and write bench/results/joint.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--models", default=",".join(GOALS))
    parser.add_argument("--goals", help="targets; by default those of each model")
    parser.add_argument("--ways", default="chains,widths,pairs,both")
    parser.add_argument("--most", type=int, help="evaluation samples at most")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "joint")
    parser.add_argument("--plans", type=Path, help="a folder of records: plans are those, fits are new")
    steps = ("compress", "evaluate", "time")
    parser.add_argument("--steps", nargs="*", choices=steps, default=list(steps))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    large = LargeCorpus(options.corpus.folder.parent / "corpus-large", options.corpus.folder)
    for name in options.models.split(","):
        task = Task(name, options.corpus, large, options.work, options.most)
        if name not in large.models() and not options.corpus.has(name):
            print(f"{name}: skipped, no corpus has it")
            continue
        goals = options.goals.split(",") if options.goals else GOALS[name]
        rows = [row_of(name, "", "original", quantized) for quantized in _forms(name)]
        for goal in goals:
            for way in options.ways.split(","):
                if "compress" in options.steps:
                    rows += compressed(task, goal, way, options.plans)
                else:
                    rows += [row_of(name, goal, way, quantized) for quantized in _forms(name)]
        quantize(task, rows)
        for row in rows:
            row.update(sizes(task, row))
        _keep(rows)  # after each step what was found so far, should the next one end early
        if "evaluate" in options.steps:
            evaluate(task, rows)
            _keep(rows)
        if "time" in options.steps:
            measure(task, rows)
            _keep(rows)


def compressed(task: Task, goal: str, way: str, plans: Path | None = None) -> list[Row]:
    """Compress, and say what it cost (nothing where the plan is at hand); a goal out of reach says so."""
    import onnxdecomp
    from onnxdecomp.errors import OnnxDecompError

    row = row_of(task.name, goal, way, False)
    start = time.process_time()
    record = task.file(goal, way, False).with_suffix(".json").name
    asked = _wanted(task, goal, way) if plans is None else {"plan": plans / record}
    try:
        if "plan" not in asked and (few := task.searched_with()) is not None:
            found = onnxdecomp.compress(task.source, calib=few, threads=1, dry_run=True, **asked)
            asked = {"plan": found.record}
        made = onnxdecomp.compress(
            task.source,
            task.file(goal, way, False),
            calib=task.fitted_to(),
            threads=1,
            overwrite=True,
            bench=about_speed(goal, "latency"),  # what a loss buys is measured
            **asked,
            **_OPTIONS.get(task.name, {}),
        )
    except OnnxDecompError as error:
        for quantized in (False, True):  # those of an earlier run
            task.file(goal, way, quantized).unlink(missing_ok=True)
        return [{**row, "status": str(error), **_done(row, "compress")}]
    task.file(goal, way, False).with_suffix(".json").write_text(json.dumps(made.record, indent=1) + "\n")
    totals = made.record["totals"]
    row |= {
        "seconds": time.process_time() - start if plans is None else None,
        "fewer_macs": totals["macs"]["ratio"],
        "fewer_params": totals["params"]["ratio"],
        "layers": totals["layers"],
        "channels": totals.get("channels"),
        "notes": made.notes,
        **_done(row, "compress"),
    }
    print(
        task.name, goal, way, {k: row[k] for k in ("seconds", "fewer_macs", "layers", "channels")}, flush=True
    )
    return [row, *(row_of(task.name, goal, way, True) for quantized in _forms(task.name) if quantized)]


def _wanted(task: Task, goal: str, way: str) -> dict[str, Any]:
    """What a file is to be."""
    if way == "refined":
        return {"plan": task.file(goal, "both", False).with_suffix(".json"), "refine": True}
    return {"target": goal, "method": WAYS[way]}


def quantize(task: Task, rows: Iterable[Row]) -> None:
    """Make the int8 files that are newer than none, or older than what they are made of."""
    from onnxruntime.quantization import quantize_dynamic

    for row in rows:
        if not row["int8"]:
            continue
        source, file = (task.file(row["goal"], row["way"], quantized) for quantized in (False, True))
        stale = (
            not file.exists() or file.stat().st_mtime < source.stat().st_mtime if source.exists() else False
        )
        if stale:
            quantize_dynamic(source, file, op_types_to_quantize=_OPERATORS.get(task.name))


def sizes(task: Task, row: Row) -> dict[str, Any]:
    """Bytes and nodes of a row's file."""
    file = task.file(row["goal"], row["way"], row["int8"])
    if not file.exists():
        return {}
    return {"bytes": file.stat().st_size, "nodes": len(onnx.load(file, load_external_data=False).graph.node)}


def evaluate(task: Task, rows: Sequence[Row]) -> None:
    """Put the metric and its change into every row that has a file."""
    present = [row for row in rows if "bytes" in row]
    files = [task.file(row["goal"], row["way"], row["int8"]) for row in present]
    for row, found in zip(present, task.evaluate(files), strict=True):
        row |= {
            "metric": found["metric"],
            "original": found["original"],
            "change": found["change"],
            "rel_l2": found["rel_l2"],
            **{key: found[key] for key in ("agreement_interval",) if key in found},
            **_done(row, "evaluate"),
        }


def measure(task: Task, rows: Sequence[Row]) -> None:
    """Put latencies into every row that has a file; all files are timed in one run, interleaved."""
    import onnxdecomp

    present = [row for row in rows if "bytes" in row]
    bases = {"over_original": (0, False), "over_int8": (1, True)}
    for label, (place, needed) in bases.items():
        if needed and not present[place]["int8"]:
            continue
        order = [present[place], *(row for row in present if row is not present[place])]
        timed = onnxdecomp.bench(
            [task.file(row["goal"], row["way"], row["int8"]) for row in order],
            threads=(1,),
            data=task.feed(),
            duration=_SECONDS * len(order),
            memory=False,
        )
        for row, model in zip(order, timed.settings[0].models, strict=True):
            row |= {"p50_ms": model.latency.p50, **_done(row, "time")}
            if ratio := model.ratio:
                row[label] = [1 / ratio.value, 1 / ratio.high, 1 / ratio.low]


def _forms(name: str) -> tuple[bool, ...]:
    """Whether rows are of int8 files."""
    return (False, True) if name in QUANTIZED else (False,)


def row_of(model: str, goal: str, way: str, quantized: bool) -> Row:
    """What says which file a row is of."""
    return {"model": model, "goal": goal, "way": way, "int8": quantized}


def _done(row: Mapping[str, Any], step: str) -> Row:
    """The row's provenance with that of a step that was done now."""
    return {"provenance": {**row.get("provenance", {}), step: provenance()}}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["goal"], row["way"], row["int8"]


def _keep(rows: Sequence[Row]) -> None:
    """Write the rows in the place of earlier ones; what was not measured now stays as it was."""
    path = RESULTS / "joint.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {_key(row): row for row in known}
    anew = {_key(row)[:3] for row in rows if "seconds" in row or "status" in row}  # their int8 forms, too
    for row in rows:
        before = {} if _key(row)[:3] in anew else merged.get(_key(row), {})
        steps = {**before.get("provenance", {}), **row.get("provenance", {})}
        merged[_key(row)] = {**before, **row, "provenance": steps}
    ordered = sorted(merged.values(), key=_place)
    write("joint", {"rows": ordered}, table(ordered))


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    models, ways = list(GOALS), ["original", *WAYS]
    model = models.index(row["model"]) if row["model"] in models else len(models)
    return model, row["model"], row["goal"], ways.index(row["way"]), row["int8"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each file, and for each goal out of reach."""
    head = ["model", "goal", "way", "metric", "change", "fewer MACs", "fewer parameters", "smaller", "nodes"]
    head += ["faster than the original", "faster than int8 alone", "search, s"]
    whole = {
        row["model"]: row.get("bytes", 0) for row in rows if row["way"] == "original" and not row["int8"]
    }
    lines = []
    for row in rows:
        way = row["way"] + (", then int8" if row["int8"] else "")
        if "status" in row:
            lines.append((row["model"], row["goal"], way, row["status"], *[""] * (len(head) - 4)))
        elif "bytes" in row:
            lines.append(
                (
                    *(row["model"], row["goal"], way),
                    *judged(row),
                    *(_factor(row, key) for key in ("fewer_macs", "fewer_params")),
                    f"{whole.get(row['model'], 0) / row['bytes']:.2f}x",
                    str(row["nodes"]),
                    *(speed(row.get(key)) for key in ("over_original", "over_int8")),
                    f"{row['seconds']:.0f}" if row.get("seconds") else "",
                )
            )
    return markdown(head, lines)


def judged(row: Mapping[str, Any]) -> tuple[str, str]:
    """The metric and its change; of a model without a metric, the outputs' distance."""
    if "metric" not in row:
        return "", ""
    if row["change"] is None:
        return f"relative error {row['rel_l2']:.3f}", ""
    name = next(iter(row["metric"]))
    value, found = row["metric"][name], Difference(**row["change"])
    shown = f"{value:.2%}" if 0 <= value <= 1 else f"{value:.2f}"
    scale, unit = (100, " points") if 0 <= value <= 1 else (1, "")
    better = " (less is better)" if name in LESS_IS_BETTER else ""
    if row["way"] == "original" and not row["int8"]:
        return f"{name}{better} {shown}", f"n = {found.n}"
    return f"{name} {shown}", found.text(scale, 2, unit)


def _factor(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.2f}x" if row.get(key) else ""


def speed(found: Sequence[float] | None) -> str:
    """How many times as fast, with the interval."""
    return "" if not found else f"{found[0]:.2f}x ({found[1]:.2f} to {found[2]:.2f})"


if __name__ == "__main__":
    main()
