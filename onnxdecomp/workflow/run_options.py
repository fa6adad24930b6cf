"""Options of how a run is done: how long it may take, where it keeps results, and who computes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxdecomp.core.options import option
from onnxdecomp.search.plan_options import PlanOptions


@dataclass(frozen=True)
class RunOptions(PlanOptions):
    """How a run is done, behind what it plans."""

    time_limit: str | float | None = option(
        None,
        "Give the best result found within this time, verified: 90s, 5m, 1h. It ends the search, and what "
        "follows has its share; training is not limited",
        group="goal",
        metavar="TIME",
        otherwise="none; 20m without a goal, 50s with no data either",
    )
    executor: str = option(
        "serial",
        "Who carries out plans that do not depend on each other: serial, processes[:N], dask[:ADDRESS], or "
        "module:callable, which gives a concurrent.futures.Executor. Other machines need a --workdir that "
        "they share. Nothing is timed beside a task",
        group="runtime",
        metavar="WHO",
    )
    workdir: str | Path | None = option(
        None,
        "Keep in this folder what takes time, under the hash of what it depends on: the same command goes on "
        "where it was ended, and another target on the same model and inputs begins with what is known",
        group="output",
        metavar="FOLDER",
    )
