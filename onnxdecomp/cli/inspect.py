"""`onnxdecomp inspect`."""

from __future__ import annotations

from typing import Any

import click

from onnxdecomp.cli import options
from onnxdecomp.cli.help import Sectioned
from onnxdecomp.cli.output import all_layers_option, check_files, json_option, write_record


@click.command(cls=Sectioned)
@click.argument("model", type=click.Path())
@options.decomposition("goal")
@options.decomposition("methods")
@options.config_option
@options.decomposition("data")
@options.decomposition("runtime")
@options.methods
@json_option("the plan")
@all_layers_option
@click.pass_context
def command(
    context: click.Context,
    /,
    model: str,
    config: str | None,
    json_target: str | None,
    all_layers: bool,
    **_: Any,
) -> None:
    """Show the layers of MODEL, their cost, and what a method would make of them.

    Layers are shown as the file has them; with --simplify as the simplifier leaves them.
    """
    from onnxdecomp.cli import console
    from onnxdecomp.cli.show import show_plan
    from onnxdecomp.workflow.compress import inspect

    check_files(context, {"MODEL": model, "--config": config})
    with console.progress("load") as advance:
        result = inspect(model, config=config, progress=advance, **options.said(context))
    for note in result.notes:
        console.note(f"note: {note}")
    write_record(context, result.record, json_target)
    if json_target != "-":
        show_plan(result, all_layers=all_layers)
