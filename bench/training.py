"""What training wins back, on the ONNX file itself.

    python -m bench.training [--parts mlp restore scratch rates] [--models NAME …] [--methods NAME …]

Needs the corpus (--corpus FOLDER, default: $ONNXDECOMP_CORPUS, else ../shared/corpus) and torch. `mlp` is an
MLP on MNIST with a decomposed first layer; `restore` takes models of the corpus, compressed for a factor of
MACs, back to their original's outputs, on the corpus' training and calibration images without labels;
`scratch` trains decomposed networks from random numbers; `rates` trains long chains at many learning rates,
of one size for all tensors and relative to a tensor's own. Test images are never trained on. Rows that a run
does not make keep what an earlier run wrote; every row names its date and machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import training_mlp, training_rates, training_restore, training_scratch
from bench.corpus import add_option
from bench.intervals import shown
from bench.provenance import RESULTS, ROOT, markdown, provenance, write

PARTS = ("mlp", "restore", "scratch", "rates")

_IMAGES = (
    "The intervals are those of other test images; how far a training with another seed would be from these "
    "was not measured."
)
_SETTINGS = "Rates and epochs were chosen with the test images in view."


def main() -> None:
    """Measure and write bench/results/training_PART.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--models", nargs="*", help="only these, of restore (NAME or NAME=FACTOR) and scratch"
    )
    parser.add_argument("--methods", nargs="*", help="only these, of mlp and scratch")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "training")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for row in _rows(options):
        known = {_key(old): old for old in _earlier(row["case"])}
        known[_key(row)] = {**row, "measured": provenance()}
        rows = sorted(known.values(), key=_place)
        write(f"training_{row['case']}", {"rows": rows}, TABLES[row["case"]](rows))


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if "mlp" in options.parts:
        yield from training_mlp.run(
            options.corpus,
            options.work,
            options.methods or tuple(training_mlp.METHODS),
            options.threads,
        )
    if "restore" in options.parts:
        wanted = options.models
        cases = [
            case
            for case in training_restore.CASES
            if not wanted or case[0] in wanted or f"{case[0]}={case[1]:g}" in wanted
        ]
        yield from training_restore.run(options.corpus, options.work, cases, options.threads)
    if "scratch" in options.parts:
        networks = [n for n in training_scratch.NETWORKS if not options.models or n in options.models]
        methods = options.methods or training_scratch.METHODS
        yield from training_scratch.run(options.corpus, options.work, networks, methods, options.threads)
    if "rates" in options.parts:
        yield from training_rates.run(options.corpus, options.work, options.threads)


def mlp_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy at every stage, a line per method, and what is lost in points against the dense network."""
    stages = ("plain weights", "calibrated", "after 2 epochs")
    head = ("first layer", "parameters", "accuracy", *stages, "training")
    whole = next((row["after"] for row in rows if row["method"] == "dense"), None)
    lines = []
    for row in rows:
        changed = [""] * 3
        if row["method"] != "dense" and whole is not None:
            changes = row.get("changes", {})
            changed = [
                shown(row[stage] - whole, changes.get(stage), scale=100)
                for stage in ("plain", "calibrated", "after")
            ]
        took = f"{row['seconds']:.0f} s" if "seconds" in row else ""
        lines.append([row["method"], f"{row['parameters']:,}", _percent(row["after"]), *changed, took])
    return f"{markdown(head, lines)}\n\n{_IMAGES}"


def restore_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The task's metric before and after, a line per model and factor."""
    head = ("model", "MACs", "original", "compressed", "trained", "epochs", "training")
    lines = []
    for row in rows:
        scale, unit = (100, " points") if row["metric"] == "top1" else (1, " dB")
        known = row.get("changes", {})
        changes = [
            shown(row[stage] - row["original"], known.get(stage), scale=scale, unit=unit)
            for stage in ("compressed", "trained")
        ]
        score = f"{100 * row['original']:.2f} %" if scale == 100 else f"{row['original']:.2f} dB"
        epochs = f"{row['best']} of {len(row['epochs']) - 1}"
        lines.append(
            [row["model"], f"{row['target']:g}x", score, *changes, epochs, f"{row['seconds'] / 60:.1f} min"]
        )
    return f"{markdown(head, lines)}\n\n{_IMAGES} {_SETTINGS}"


def scratch_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over the epochs, a line per network and method."""
    head = (
        *("network", "method", "parameters", "epoch 1", "epoch 3", "last", "training", "test"),
        *("points against dense", "an epoch"),
    )
    lines = []
    whole = {row["network"]: row["test"] for row in rows if row["method"] == "dense"}
    for row in rows:
        against = ""
        if row["method"] != "dense" and row["network"] in whole:
            against = shown(row["test"] - whole[row["network"]], row.get("change"), scale=100)
        held = [epoch["accuracy"] for epoch in row["epochs"]]
        lines.append(
            [
                row["network"],
                row["method"],
                f"{row['parameters']:,}",
                *(_percent(held[min(at, len(held) - 1)]) for at in (1, 3, len(held) - 1)),
                _percent(row["epochs"][-1]["train_accuracy"]),
                _percent(row["test"]),
                against,
                f"{row['seconds_an_epoch']:.1f} s",
            ]
        )
    return f"{markdown(head, lines)}\n\n{_IMAGES}"


def rates_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The held-out loss at every rate, a line per network and way."""
    head = ("network", "parameters", "rates", "before", *(f"{rate:g}" for rate in training_rates.RATES))
    lines = [
        [
            row["network"],
            f"{row['parameters']:,}",
            row["method"],
            f"{row['before']:.3f}",
            *("not finite" if loss is None else f"{loss:.3f}" for loss in row["losses"].values()),
        ]
        for row in rows
    ]
    said = "One training each: what another seed would give was not measured, so there are no intervals."
    return f"{markdown(head, lines)}\n\n{said}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["case"], row.get("model", row.get("network", "")), row.get("target"), row.get("method")


def _place(row: Mapping[str, Any]) -> tuple[int, str, float, int]:
    methods = ("dense", *training_mlp.METHODS, *training_scratch.METHODS, *training_rates.WAYS)
    method = methods.index(row["method"]) if row.get("method") in methods else 0
    model = str(row.get("model", row.get("network", "")))
    return PARTS.index(row["case"]), model, float(row.get("target") or 0), method


TABLES = {"mlp": mlp_table, "restore": restore_table, "scratch": scratch_table, "rates": rates_table}


def _earlier(case: str) -> list[dict[str, Any]]:
    file = RESULTS / f"training_{case}.json"
    return list(json.loads(file.read_text())["rows"]) if file.exists() else []


if __name__ == "__main__":
    main()
