"""One compression of the frontier, in a process of its own: `python -m bench.frontier_job`, a Job on stdin.

The compressed model is written to `<folder>/<goal>.<way>.onnx`, and what is known of it to the same name with
`.json`: its plan, seconds and peak memory of the whole run as a user would start it (search, fit,
verification, timing), the metric of the corpus and the distance of the outputs on the evaluation data.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.corpus import Corpus
from bench.provenance import provenance
from bench.rank_controls import evbmf, unaligned
from bench.realised import Dense, simplified
from onnxdecomp.data.read import read_feeds
from onnxdecomp.evaluate.preflight import inputs
from onnxdecomp.runtime.memory import peak
from onnxdecomp.search.plan import Plan

SEARCHED = "auto"
SEARCHES: Mapping[str, int] = {SEARCHED: 1, "auto on 2 threads": 2}
"""The search, and the threads that it times chains and models with."""

CONTROLS = ("unaligned", "evbmf", "macs")
"""Ways to spend the same MACs: ranks off the quantum, EVBMF's ranks, and a search that times nothing."""

WAYS = (*SEARCHES, *CONTROLS)

_OPTIONS: Mapping[str, Mapping[str, Any]] = {"nanodet_m": {"freeze_initializers": True}}
"""What a user of a model has to give beside the goal."""


@dataclass(frozen=True)
class Job:
    """One model, goal and way.

    Attributes:
        corpus, folder: The corpus, and where the model's results lie.
        model: Its name in the corpus.
        goal: A target of the search, such as "latency=2x".
        way: One of SEARCHES for the goal, or of CONTROLS, which spend the MACs of what "auto" found.
    """

    corpus: str
    folder: str
    model: str
    goal: str
    way: str = SEARCHED

    def file(self, suffix: str, way: str = "") -> Path:
        """Where the result lies (of another way too)."""
        return Path(self.folder) / f"{self.goal}.{way or self.way}{suffix}"

    def write(self, status: str, **more: Any) -> None:
        """Say what came of it: "done" (also where nothing paid), "out of reach" or "failed"."""
        said = {"model": self.model, "goal": self.goal, "way": self.way, "status": status}
        text = json.dumps({**said, "provenance": provenance(), **more}, indent=1)
        self.file(".json").write_text(text + "\n")


def carry_out(job: Job) -> None:
    """Compress, evaluate, and write both."""
    import onnxdecomp
    from onnxdecomp.errors import UsageError

    corpus = Corpus(Path(job.corpus))
    path = corpus.model(job.model)
    arrays = corpus.calibration(job.model)
    searched = job.way in SEARCHES
    wanted = {"target": job.goal} if searched else _control(job, path, arrays)
    spent: dict[str, float] = {}
    clock = _Clock(spent)
    start = time.perf_counter()
    try:
        made = onnxdecomp.compress(
            path,
            job.file(".onnx"),
            calib=arrays,
            threads=SEARCHES.get(job.way, 1),
            overwrite=True,
            verify=searched,
            bench=searched,
            progress=clock.turn,
            **_OPTIONS.get(job.model, {}),
            **wanted,
        )
    except UsageError as error:
        if "out of reach" not in str(error):
            raise
        job.write("out of reach", reason=str(error), seconds=time.perf_counter() - start)
        return
    clock.turn("", 0, 0)
    seconds, memory = time.perf_counter() - start, peak()
    search = {key: value for key, value in (made.record["search"] or {}).items() if key != "layers"}
    job.write(
        "done",
        seconds=seconds,
        steps=spent,
        peak_bytes=memory,
        plan=made.plan.to_json(),
        search=search,
        speedup=(made.record["latency"] or {}).get("speedup"),
        notes=made.notes,
        evaluation=corpus.evaluate(job.model, job.file(".onnx")),
    )


class _Clock:
    """Adds up the seconds between reports of progress, by the first word of what was being done."""

    def __init__(self, spent: dict[str, float]) -> None:
        self._spent, self._doing, self._since = spent, "start", time.perf_counter()

    def turn(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self._spent[self._doing] = self._spent.get(self._doing, 0.0) + now - self._since
        self._doing, self._since = what.partition(" ")[0], now


def _control(job: Job, path: Path, arrays: Any) -> dict[str, Any]:
    """What `compress` is given to spend the MACs of the searched result in another way."""
    found = Plan.from_json(json.loads(job.file(".json", SEARCHED).read_text())["plan"])
    if job.way == "macs":
        costs = [(c.before, c.after if c.method else c.before) for c in found.choices]
        before = sum(a.macs for a, _ in costs if a is not None)
        return {"target": f"macs={before / sum(b.macs for _, b in costs if b is not None):.4f}x"}
    feed = read_feeds(arrays, inputs(path))[0]
    dense = Dense(simplified(path, job.file(".dense.onnx")), feed)
    return {"plan": (unaligned if job.way == "unaligned" else evbmf)(found, dense)}


if __name__ == "__main__":
    carry_out(Job(**json.loads(sys.stdin.read())))
