"""How long a run may take: as was asked for; a minute where nothing is named, minutes without a goal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxdecomp.runtime.deadline import Deadline, duration
from onnxdecomp.workflow.quantize_alone import alone

if TYPE_CHECKING:
    from onnxdecomp.workflow.config import CompressConfig

FIRST_RUN = 50.0
"""Seconds of a run in which neither a goal nor data are named, which so ends within a minute."""

NO_GOAL = 1200.0
"""Seconds of a run with inputs and without a goal: minutes, of a large model or on a slow machine, too."""

_PATIENT = (
    *("target", "rank", "layers", "plan", "max_error", "metric", "must_save"),
    *("refine", "finetune", "dry_run", "workdir"),
)
"""Options after which somebody knows what they want, and waits for it."""

_INPUTS = ("calib", "data", "quantize")
"""Options after which a run is no first look."""


def deadline_of(config: CompressConfig) -> tuple[Deadline | None, tuple[str, ...]]:
    """The deadline of a run that begins now, or None, and a note on one that nobody has asked for."""

    def said(names: Sequence[str]) -> bool:
        return any(config.said(name) or config.in_file(name) for name in names)

    if config.time_limit is not None:
        return Deadline.after(duration(config.time_limit)), ()
    if config.sought is None or said(_PATIENT):
        return None, ()
    if said(_INPUTS):
        return Deadline.after(NO_GOAL), ()  # told where it ends the search
    note = (
        "neither a goal nor inputs are given: this is what a minute shows, on random inputs; --calib gives "
        "real ones, --target and --time-limit say how far to go"
    )
    return Deadline.after(FIRST_RUN), (note,)


def seconds_of(config: CompressConfig) -> float | None:
    """Seconds after which a run is over, about; None where nothing limits it, or not what comes last."""
    deadline, _ = deadline_of(alone(config))
    return None if deadline is None or config.finetune or config.refine else deadline.seconds
