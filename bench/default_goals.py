"""What agreement with the original says of the task: how far a goal without labels may go.

    python -m bench.default_goals [--models minilm_l6,…] [--ways 'width 0.9;…'] [--most N]

A model is compressed in several ways, fitted to three quarters of its calibration inputs. On the quarter that
is left `error`, `kl`, `token-agreement` or `spearman` tell how far it is from the original; on the evaluation
samples of the corpus the metric of the task tells what that costs, with the interval of its paired
difference. No evaluation sample chooses a model. But the defaults of onnxdecomp/workflow/default_goal.py were
chosen with this table in view, so for them it is no independent test.

What is run again takes the place of the same row of an earlier run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.corpus import Corpus, add_option
from bench.corpus_large import LargeCorpus
from bench.intervals import Difference
from bench.provenance import RESULTS, markdown, provenance, write

WAYS: Mapping[str, tuple[str, ...]] = {
    "minilm_l6": ("width 0.9", "width 0.8", "width 0.65"),
    "resnet20_cifar10": ("spatial 0.5", "spatial 0.35", "spatial 0.3", "spatial 0.25", "spatial 0.2"),
    "squeezenet1.1": ("spatial,svd 0.9", "spatial,svd 0.8", "spatial,svd 0.65", "spatial,svd 0.5"),
}
"""By model: a method, and a rank or a target."""

METRICS: Mapping[str, tuple[str, ...]] = {"minilm_l6": ("spearman",)}
"""What is asked about agreement; of the others kl and token-agreement."""

Row = dict[str, Any]


def main() -> None:
    """Measure, and write bench/results/default_goals.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--models", default=",".join(WAYS))
    parser.add_argument("--ways", help="with semicolons; by default those of each model")
    parser.add_argument("--most", type=int, help="evaluation samples at most")
    options = parser.parse_args()
    large = LargeCorpus(options.corpus.folder.parent / "corpus-large", options.corpus.folder)
    for name in options.models.split(","):
        corpus = large if name in large.models() else options.corpus
        for way in options.ways.split(";") if options.ways else WAYS[name]:
            keep(measured(corpus, name, way, options.most))


def measured(corpus: Corpus | LargeCorpus, name: str, way: str, most: int | None) -> Row:
    """One way: agreement on held-out calibration inputs, and the task on evaluation samples."""
    import onnxdecomp

    arrays = corpus.calibration(name)
    count = len(next(iter(arrays.values()))) * 3 // 4
    fit, held = ({k: v[part] for k, v in arrays.items()} for part in (slice(count), slice(count, None)))
    method, _, goal = way.rpartition(" ")
    asked: dict[str, Any] = {"target": goal} if "=" in goal else {"rank": goal}
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "new.onnx"
        source = corpus.model(name)
        quick: dict[str, Any] = {"bench": False, "verify": False, "threads": 1}
        made = onnxdecomp.compress(source, file, calib=fit, method=method, **asked, **quick)
        seconds = time.process_time() - start
        agreement: dict[str, Any] = {}
        for metric in METRICS.get(name, ("kl", "token-agreement")):
            found = onnxdecomp.verify(source, file, data=held, max_error=None, metric=metric)
            assert found.metric is not None
            agreement |= {"error": found.rel_l2, metric: found.metric.new}
        if isinstance(corpus, LargeCorpus):
            (judged,) = corpus.evaluate(name, [file], most)
        else:
            judged = corpus.evaluate(name, file, most)
    return {
        **{"model": name, "way": way, "held_out": len(next(iter(held.values()))), "seconds": seconds},
        "fewer_macs": made.record["totals"]["macs"]["ratio"],
        "agreement": agreement,
        **{key: judged[key] for key in ("metric", "original", "change")},
        "provenance": provenance(),
    }


def keep(row: Row) -> None:
    """Write the row in the place of an earlier one."""
    path = RESULTS / "default_goals.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [other for other in known if (other["model"], other["way"]) != (row["model"], row["way"])]
    ordered = sorted([*rows, row], key=lambda own: (own["model"], own["fewer_macs"]))
    write("default_goals", {"rows": ordered}, table(ordered))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each way."""
    kinds = ("error", "spearman", "kl", "token-agreement")
    head = ["model", "way", "fewer MACs", *kinds, "held-out inputs", "the task", "change"]
    lines = []
    for row in rows:
        name, value = next(iter(row["metric"].items()))
        agreement = [row["agreement"].get(kind) for kind in kinds]
        change = Difference(**row["change"]).text(100, 2, " points") if row["change"] else ""
        lines.append(
            (
                *(row["model"], row["way"], f"{row['fewer_macs']:.2f}x"),
                *("" if number is None else f"{number:.3g}" for number in agreement),
                str(row["held_out"]),
                f"{name} {100 * value:.2f} %",
                change,
            )
        )
    return markdown(head, lines)


if __name__ == "__main__":
    main()
