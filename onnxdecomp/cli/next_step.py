"""The command that makes sense after a run of `compress`: the last line of its summary."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from onnxdecomp.workflow.config import CompressConfig
    from onnxdecomp.workflow.result import Result

_CARRIED = ("calib", "data", "preprocess", "metric", "mask", "provider", "threads", "input_shape")
"""Options that say what the model is fed with and where: they belong into any further command."""

_INPUTS = "--calib INPUTS.npz"


def next_step(context: click.Context, result: Result, asked: CompressConfig) -> str:
    """A command line, with what it is for.

    Args:
        context: Of the command that ran.
        result: What came of it.
        asked: What it was asked for.
    """
    model = shlex.quote(context.params["model"])
    again = " ".join(["onnxdecomp compress", model, *_given(context)])
    if asked.dry_run:
        plan = context.params["json_target"]
        carried_out = f"--plan {shlex.quote(plan)}" if plan and plan != "-" else "without --dry-run"
        return f"{again} {carried_out}: carry it out"
    if asked.calib is None:
        what = "fit it to inputs, which loses less" if result.changed else "search with inputs"
        return f"{again} {_INPUTS}: {what}"
    if not asked.fewer_bits:
        only, kind = "" if result.changed else " --method none", "int8" if asked.provider == "cpu" else "fp16"
        return f"{again}{only} --quantize {kind}: see what {kind} brings"
    if not result.changed:
        return f"{again} --target error=0.1: allow twice the usual error"
    if result.path is None or asked.data is not None:
        return f"{again} --report report.html: a page with all of it"
    small = shlex.quote(str(result.path))
    return f"onnxdecomp verify {model} {small} --data TEST.npz: judge it by data of your own"


def _given(context: click.Context) -> list[str]:
    """What the user wrote of the options that any further command needs."""
    default = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in _CARRIED or context.get_parameter_source(name) in default:
            continue
        value = context.params[name]
        for one in value if isinstance(value, tuple) else (value,):
            words += [parameter.opts[0], shlex.quote(str(one))]
    return words
