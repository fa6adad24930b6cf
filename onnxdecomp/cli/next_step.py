"""The command that makes sense after a run of `compress`: the last line of its summary."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from onnxdecomp.record.text import visible

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdecomp.workflow.config import CompressConfig
    from onnxdecomp.workflow.result import Result

_CARRIED = (
    *("calib", "data", "preprocess", "metric", "mask", "provider", "threads", "input_shape"),
    "freeze_initializers",
)
"""Options that say what the model is, what it is fed with and where: they belong into any further command."""

_GOAL = (
    *("recipe", "config", "target", "objective", "rank", "layers", "max_error", "plan", "method", "include"),
    "exclude",
)
"""Options that say what becomes of the layers."""

_INPUTS = "--calib INPUTS.npz"

_LONGER = 3
"""Times as long as a search that a time limit ended before anything was found."""

_MOST = 4
"""Inputs whose arrays are named."""


def next_step(context: click.Context, result: Result, asked: CompressConfig) -> str:
    """A command line, with what it is for.

    Args:
        context: Of the command that ran.
        result: What came of it.
        asked: What it was asked for.
    """
    from onnxdecomp.workflow import loss_note
    from onnxdecomp.workflow.quantize_alone import alone

    model = shlex.quote(context.params["model"])
    again = " ".join(["onnxdecomp compress", model, *_given(context, _CARRIED)])
    if asked.dry_run:
        plan = context.params["json_target"]
        carried_out = f"--plan {shlex.quote(plan)}" if plan and plan != "-" else "without --dry-run"
        return f"{again} {carried_out}: carry it out"
    if asked.calib is None:
        arrays = _arrays(result.model)
        what = (
            f"fit it to inputs{arrays}, which loses less" if result.changed else f"search with inputs{arrays}"
        )
        return f"{again} {_INPUTS}: {what}"
    if not result.changed and (seconds := _limited(result, asked)):
        goal = " ".join(["", *_given(context, _GOAL)])
        minutes = max(1, round(_LONGER * seconds / 60))
        return f"{again}{goal} --time-limit {minutes}m: search for longer"
    if not asked.fewer_bits:
        kind = "int8" if asked.provider == "cpu" else "fp16"
        if not result.changed:
            return f"{again} --method none --quantize {kind}: see what {kind} brings"
        # Without a word of the layers fewer bits would be all that is done.
        goal = " ".join(_given(context, _GOAL)) or "--method auto"
        return f"{again} {goal} --quantize {kind}: the same in {kind}"
    if not result.changed:
        return f"{again} --target error=0.1: allow twice the usual error"
    if alone(asked).idle and asked.max_error is None and _off(result) > loss_note.LITTLE:
        kept = f"--quantize {asked.quantize} --max-error {loss_note.LITTLE:g}"
        return f"{again} --method none {kept}: lose less, with more in floating point"
    if result.path is None or asked.data is not None:
        return f"{again} --report report.html: a page with all of it"
    small = shlex.quote(str(result.path))
    return f"onnxdecomp verify {model} {small} --data TEST.npz: judge it by data of your own"


def _limited(result: Result, asked: CompressConfig) -> float:
    """Seconds after which a time limit ended the search; 0 where none did."""
    from onnxdecomp.workflow.time_limit import seconds_of

    search = result.record.get("search")
    return (seconds_of(asked) or 0.0) if search and search.get("limited") else 0.0


def _off(result: Result) -> float:
    """How far the worst output is from the original's, of its norm; 0 where that is not known."""
    from onnxdecomp.workflow.loss_note import off_most

    worst = None if result.verification is None else off_most(result.verification)
    return 0.0 if worst is None else worst.rel_l2


def _arrays(model: ir.Model) -> str:
    """What the file of inputs holds: " (image float32[N, 1, 8, 8])"; "" where they are many or unclear."""
    from onnxdecomp.graph.attributes import dims
    from onnxdecomp.runtime.session import TensorSpec

    found = []
    for port in model.graph.inputs:
        if port.name in model.graph.initializers:
            continue
        if (shape := dims(port)) is None or port.dtype is None:
            return ""
        dtype = port.dtype.numpy().name
        found.append(str(TensorSpec(str(port.name), shape, "str" if dtype == "object" else dtype)))
    return f" ({visible(', '.join(found))})" if 0 < len(found) <= _MOST else ""


def _given(context: click.Context, names: Collection[str]) -> list[str]:
    """What the user wrote of these options."""
    default = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in names or context.get_parameter_source(name) in default:
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [parameter.opts[0], shlex.quote(str(one))]
    return words
