"""The results of bench/frontier.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.frontier_job import CONTROLS, SEARCHED, SEARCHES
from bench.intervals import shown
from bench.provenance import markdown

BATCHES, TIMED_THREADS = (1, 16), (1, 2)

CHOSEN_BY = "test samples"
"""The goals of bench/frontier.py were chosen with the samples in view by which the losses are measured."""

_NO_INTERVALS = (
    "No interval was measured of the output error, the distance of all outputs together, nor of ratios "
    "between medians: {}."
)


def frontier_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the search reached: a line per model and goal."""
    head = (
        *("model", "goal", "goal chosen by", "loss", "output error", "MACs"),
        *("batch 1, 1 thread", "batch 1, 2 threads", "batch 16, 1 thread", "batch 16, 2 threads"),
        *("realised", "run", "memory"),
    )
    lines = []
    for row in rows:
        if row["way"] not in SEARCHES:
            continue
        threads_of_search = SEARCHES[row["way"]]
        on = "" if row["way"] == SEARCHED else f" on {threads_of_search} threads"
        cells = [row["model"], row["goal"] + on, CHOSEN_BY]
        if row["status"] != "done":
            lines.append([*cells, row["status"], *[""] * (len(head) - 4)])
            continue
        cells += [loss(row["evaluation"]), f"{row['evaluation']['rel_l2']:.2%}", _fewer(row)]
        cells += [_speedup(row, batch, threads) for batch in BATCHES for threads in TIMED_THREADS]
        cells += [
            _share(_setting(row, 1, threads_of_search)),
            f"{row['seconds']:.0f} s",
            f"{row['peak_bytes'] / 1e6:.0f} MB",
        ]
        lines.append(cells)
    return f"{markdown(head, lines)}\n\n{_NO_INTERVALS.format('`realised`')}"


def ranks_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same MACs spent in other ways: a line per model, for each way its speed, its share and its loss."""
    by_key = {(row["model"], row["goal"], row["way"]): row for row in rows}
    compared = dict.fromkeys((row["model"], row["goal"]) for row in rows if row["way"] in CONTROLS)
    lines = []
    for model, goal in compared:
        for way in (SEARCHED, *CONTROLS):
            row = by_key.get((model, goal, way))
            if row is None or row["status"] != "done":
                continue
            at = _setting(row, 1, 1)
            cells = [model, way, _fewer(row), _speedup(row, 1, 1)]
            cells += [f"{at['against_dense']:.2f}x", _times(at["proportional"]), _share(at)]
            lines.append([*cells, loss(row["evaluation"]), f"{row['evaluation']['rel_l2']:.2%}"])
    head = (
        "model",
        "ranks",
        "MACs",
        "faster",
        "than dense",
        "in proportion",
        "realised",
        "loss",
        "output error",
    )
    return f"{markdown(head, lines)}\n\n{_NO_INTERVALS.format('`than dense` and `realised`')}"


def _setting(row: Mapping[str, Any], batch: int, threads: int) -> Mapping[str, Any]:
    found = [at for at in row["latency"] if (at["batch"], at["threads"]) == (batch, threads)]
    return found[0] if found else {}


def _speedup(row: Mapping[str, Any], batch: int, threads: int) -> str:
    ratio = _setting(row, batch, threads).get("speedup")
    return f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _share(at: Mapping[str, Any]) -> str:
    return "" if at.get("realised") is None else f"{at['realised']:.2f}"


def _fewer(row: Mapping[str, Any]) -> str:
    return f"{row['macs']['before'] / row['macs']['after']:.2f}x fewer"


def loss(evaluation: Mapping[str, Any]) -> str:
    """The change of the task's metric, in its unit, with its interval; empty where the task has none."""
    before, after = evaluation["original"], evaluation["metric"]
    for name, unit, scale in (("top1", " points", 100.0), ("psnr", " dB", 1.0), ("psnr_y", " dB", 1.0)):
        if name in before:
            change = evaluation.get("change")
            return shown(after[name] - before[name], change, scale=scale, unit=unit)
    return ""
