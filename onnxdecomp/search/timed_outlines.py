"""Timing what could be put in the place of layers, and leaving what is faster than they are."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxdecomp.core.layer import Layer
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.runtime.deadline import Deadline
from onnxdecomp.search.candidates import Outline
from onnxdecomp.search.latency_model import Stopwatch, Timed
from onnxdecomp.search.sibling_candidates import Relatives

_TIMING = 0.6
"""Of the time that is left, what timing may take where no latency was asked for."""


def in_time(stopwatch: Stopwatch, deadline: Deadline) -> tuple[Stopwatch | None, tuple[str, ...]]:
    """The stopwatch, or none where timing the layers would leave too little time, with a note on that."""
    takes, left = stopwatch.foreseen(), deadline.left()
    if takes <= _TIMING * left:
        return stopwatch, ()
    return None, (
        f"no layer was timed, MACs stand for latency: that takes about {takes:.0f} s of the {left:.0f} s "
        "that were left (--time-limit)",
    )


def time_outlines(
    stopwatch: Stopwatch,
    model: ir.Model,
    matched: Sequence[LayerMatch],
    options: list[list[Outline]],
    related: Relatives,
    reasons: list[str],
    narrower: Sequence[tuple[int, Layer]] = (),
) -> tuple[Timed, dict[int, float]]:
    """Time the outlines, and leave those that are faster than their layer.

    `narrower` is as for `Stopwatch.time`.

    Returns:
        The timings, and by `id` of an outline the share of the original's latency that it takes.
    """
    asked = [[*own, *related.outlines(index)] for index, own in enumerate(options)]
    timed = stopwatch.time(model, matched, asked, narrower)
    takes: dict[int, float] = {}
    for index, own in enumerate(asked):
        if not own or index not in timed.parts:
            continue
        part, parts = timed.parts[index]
        takes |= {id(option): value for option, value in zip(own, parts, strict=True)}
        alone = options[index]
        options[index] = [option for option in alone if takes[id(option)] < part]
        if alone and not options[index]:
            best = min(takes[id(option)] for option in alone) / part if part > 0 else 1.0
            reasons[index] = f"does not pay: the fastest chain takes {best:.2f}x of its time"
    whole = {id(option.chain): takes[id(option)] for own in asked for option in own if id(option) in takes}
    takes |= related.keep_paying(whole, {index: part for index, (part, _) in timed.parts.items()})
    return timed, takes
