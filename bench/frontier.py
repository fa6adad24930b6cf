"""Speed against loss: what the search reaches on real models for several goals, without training.

    python -m bench.frontier compress --work FOLDER [--models NAME …] [--goals GOAL …] [--ways WAY …]
    python -m bench.frontier time --work FOLDER [--models NAME …] [--goals GOAL …] [--ways WAY …]

Two phases, since the first takes long and may share the machine, while the second wants it for itself.
`compress` fits to the corpus' calibration inputs (no labels), each run in a process of its own, and evaluates
the result on the corpus' evaluation data. FOLDER keeps models and records, and the timings of chains that the
search has made, so that all but the first goal of a model find some of them. `time` measures every result in
FOLDER against the original as it came in and against the simplified dense model, the three interleaved, with
1 and 2 threads and at batch 1 and 16 where the batch is free, and writes bench/results/frontier.json and .md
and frontier_ranks.md; results that a run does not make stay as they were.

The search times with one thread (`auto`) or two (`auto on 2 threads`). Beside it stand, for the fastest
latency target that a model reached, other ways to spend the same MACs: `unaligned` moves the ranks off the
multiples that the hardware works in, `evbmf` gives the same layers ranks in proportion to EVBMF's, and `macs`
searches for the least loss at those MACs and times nothing. All are fitted alike. How much of the possible
gain is realised is defined in bench/realised.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.corpus import Corpus, add_option
from bench.frontier_job import CONTROLS, SEARCHED, SEARCHES, WAYS, Job
from bench.frontier_tables import BATCHES, TIMED_THREADS, frontier_table, loss, ranks_table
from bench.provenance import RESULTS, ROOT, provenance, write
from bench.realised import Dense, realised_share, simplified
from onnxdecomp.data.read import read_feeds
from onnxdecomp.evaluate import benchmark
from onnxdecomp.evaluate.preflight import inputs
from onnxdecomp.search.plan import Plan

LATENCIES = ("latency=1.25x", "latency=1.5x", "latency=2x", "latency=2.5x")

GOALS: Mapping[str, tuple[str, ...]] = {
    "vgg16_half_cifar10": ("latency=2x", "latency=2.5x", "latency=3x", "latency=4x"),
    "vdsr": LATENCIES,
    "dncnn_25": LATENCIES,
    "fst_wave": LATENCIES,
    "waifu2x_upconv7_photo_scale2x": LATENCIES,
    "squeezenet1.1": LATENCIES,
    "nsnet2": (*LATENCIES, "error=0.01"),
    "magika_standard_v3_3": LATENCIES,
    "mlperf_ad01": (*LATENCIES, "error=0.01"),
    "nanodet_m": ("latency=1.25x", "error=0.05"),
    "ch_PP-OCRv2_det_infer": (*LATENCIES[:2], "error=0.05"),
}
"""What each model is compressed for."""


def main() -> None:
    """Compress, or time and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("phase", choices=("compress", "time"))
    parser.add_argument("--work", type=Path, required=True, help="a folder that is kept between the phases")
    add_option(parser)
    parser.add_argument("--models", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--goals", nargs="+", metavar="GOAL", help="in place of each model's own")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--missing", action="store_true", help="compress only what FOLDER lacks")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=BATCHES, help="to time at, where the batch size is free"
    )
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds of one compression")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing one result in one setting")
    options = parser.parse_args()
    for name in options.models:
        goals = options.goals or GOALS[name]
        if options.phase == "compress":
            compress(options, name, goals)
        else:
            rows = _earlier() | {_key(row): row for row in timed(options, name, goals)}
            order = sorted(rows.values(), key=_place)
            write("frontier", {"threads_of_search": SEARCHES, "rows": order}, frontier_table(order))
            (RESULTS / "frontier_ranks.md").write_text(ranks_table(order) + "\n")


def compress(options: argparse.Namespace, name: str, goals: Sequence[str]) -> None:
    """All goals of one model, then other ways to spend the MACs of its fastest result."""
    folder = options.work / name
    folder.mkdir(parents=True, exist_ok=True)
    corpus: Corpus = options.corpus

    def carry_out(goal: str, way: str) -> None:
        job = Job(str(corpus.folder.resolve()), str(folder.resolve()), name, goal, way)
        if not (options.missing and job.file(".json").exists()):
            _in_a_process(job, options.limit, options.work / "cache")

    for way in (way for way in SEARCHES if way in options.ways):
        for goal in goals:
            carry_out(goal, way)
    if (fastest := _fastest(folder)) is not None and fastest in goals:
        for way in (way for way in CONTROLS if way in options.ways):
            carry_out(fastest, way)


def timed(options: argparse.Namespace, name: str, goals: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each result of one model."""
    folder = options.work / name
    if not folder.is_dir():  # nothing of it was compressed yet
        return
    path = options.corpus.model(name)
    given = inputs(path)
    arrays = options.corpus.calibration(name)
    feeds = read_feeds(arrays, given)
    free = not any(isinstance(spec.shape[0], int) for spec in given)
    base = folder / "dense.onnx"
    model = simplified(path, base)
    batches = options.batches if free else (1,)
    settings = [(batch, threads) for batch in batches for threads in TIMED_THREADS]
    dense = {batch: Dense(model, next(iter(feeds.batches(batch)))) for batch, _ in settings}
    parts = {at: dense[at[0]].latency_shares(base, at[1]) for at in settings}
    for goal in goals:
        for way in options.ways:
            job = Job("", str(folder), name, goal, way)
            if not job.file(".json").exists():
                continue
            said = json.loads(job.file(".json").read_text())
            row = {key: value for key, value in said.items() if key not in ("plan", "evaluation")}
            if said["status"] != "done":
                yield row
                continue
            plan = Plan.from_json(said["plan"])
            found = benchmark.bench(
                [path, base, job.file(".onnx")],
                batch_sizes=sorted(dense),
                threads=TIMED_THREADS,
                duration=options.seconds,
                data=arrays,
                memory=False,
            )
            yield {
                **row,
                "layers": {c.layer: f"{c.method} {','.join(map(str, c.ranks))}" for c in plan.decomposed},
                "kept": {c.layer: c.reason for c in plan.choices if c.method is None},
                "macs": {"before": dense[1].total_macs(Plan(())), "after": dense[1].total_macs(plan)},
                "evaluation": {k: v for k, v in said["evaluation"].items() if k != "model"},
                "timed": provenance(),
                "latency": [
                    _latency(
                        setting,
                        dense[setting.batch].proportional(plan, parts[setting.batch, setting.threads]),
                    )
                    for setting in found.settings
                ],
            }


def _latency(setting: benchmark.SettingTimings, ideal: float | None) -> dict[str, Any]:
    """One setting: against the original with an interval, and against the dense model."""
    original, dense, new = setting.models
    assert new.ratio is not None
    ratio = new.latency.p50 / dense.latency.p50
    return {
        "batch": new.batch,
        "threads": setting.threads,
        "rounds": setting.rounds,
        "original_ms": original.latency.p50,
        "dense_ms": dense.latency.p50,
        "new_ms": new.latency.p50,
        "speedup": {
            "value": 1 / new.ratio.value,
            "low": 1 / new.ratio.high,
            "high": 1 / new.ratio.low,
            "confidence": new.ratio.confidence,
        },
        "against_dense": 1 / ratio,
        "proportional": None if ideal is None else 1 / ideal,
        "realised": realised_share(ratio, ideal),
    }


def _in_a_process(job: Job, limit: float, cache: Path) -> None:
    """Carry a job out, and say in its file if it failed."""
    job.file(".onnx").unlink(missing_ok=True)
    start = time.perf_counter()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), *filter(None, sys.path))),
        "ONNXDECOMP_CACHE": str(cache.resolve()),
    }
    command = [sys.executable, "-m", "bench.frontier_job"]
    given = json.dumps(asdict(job))
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=limit,
            env=environment,
            cwd=ROOT,
            check=False,
        )
        if done.returncode:
            job.write("failed", reason=(done.stderr.strip().splitlines() or ["no word"])[-1])
    except subprocess.TimeoutExpired:
        job.write("failed", reason=f"not done after {limit:g} s")
    said = json.loads(job.file(".json").read_text())
    what = (
        said.get("reason") or f"{loss(said['evaluation'])} error {said['evaluation']['rel_l2']:.2%}".strip()
    )
    print(
        f"{job.model} {job.goal} {job.way}: {time.perf_counter() - start:.0f} s, {said['status']}, {what}",
        flush=True,
    )


def _fastest(folder: Path) -> str | None:
    """The latency target of the largest factor that was reached by decomposing."""
    reached = []
    for file in folder.glob(f"latency=*.{SEARCHED}.json"):
        said = json.loads(file.read_text())
        if said["status"] == "done" and Plan.from_json(said["plan"]).decomposed:
            reached.append(said["goal"])
    return max(reached, key=_amount, default=None)


def _amount(goal: str) -> float:
    return float(goal.partition("=")[2].rstrip("x"))


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["goal"], row["way"]


def _place(row: Mapping[str, Any]) -> tuple[int, bool, float, int]:
    """Rows come model by model, latency targets first, each with the ways of its result."""
    goal = row["goal"]
    return (
        list(GOALS).index(row["model"]),
        not goal.startswith("latency"),
        _amount(goal),
        WAYS.index(row["way"]),
    )


def _earlier() -> dict[tuple[str, str, str], dict[str, Any]]:
    file = RESULTS / "frontier.json"
    return {_key(row): row for row in json.loads(file.read_text())["rows"]} if file.exists() else {}


if __name__ == "__main__":
    main()
