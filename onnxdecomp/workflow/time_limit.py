"""How long a run may take: what was asked for, or a minute for a first run that names nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxdecomp.runtime.deadline import Deadline, duration

if TYPE_CHECKING:
    from onnxdecomp.workflow.config import CompressConfig

FIRST_RUN = 50.0
"""Seconds of a run in which neither a goal nor data are named, which so ends within a minute."""

_SAYS_MORE = (
    *("target", "rank", "layers", "plan", "max_error", "metric", "must_save"),
    *("calib", "data", "refine", "finetune", "quantize", "dry_run"),
)
"""Options after which somebody knows what they want, and waits for it."""


def deadline_of(config: CompressConfig) -> tuple[Deadline | None, tuple[str, ...]]:
    """The deadline of a run that begins now, or None, and a note on one that nobody has asked for."""
    if config.time_limit is not None:
        return Deadline.after(duration(config.time_limit)), ()
    if config.sought is None or any(config.said(name) or config.in_file(name) for name in _SAYS_MORE):
        return None, ()
    note = (
        "neither a goal nor inputs are given: this is what a minute shows, on random inputs; --calib gives "
        "real ones, --target and --time-limit say how far to go"
    )
    return Deadline.after(FIRST_RUN), (note,)
