"""`onnxdecomp inspect`."""

from __future__ import annotations

from typing import Any

import click

from onnxdecomp.cli import options


@click.command()
@click.argument("model", type=click.Path())
@options.decomposition
@click.option("--json", "json_target", metavar="FILE|-", help="Write the plan as JSON.")
@click.pass_context
def command(
    context: click.Context, /, model: str, config: str | None, json_target: str | None, seed: int, **_: Any
) -> None:
    """Show the layers of MODEL, their cost, and what a method would make of them.

    Layers are shown as the file has them; with --simplify as the simplifier leaves them.
    """
    from onnxdecomp import jsonio
    from onnxdecomp.api import inspect
    from onnxdecomp.cli.show import show_plan

    given = {"simplify": "none", **options.given(context, options.DECOMPOSE)}
    result = inspect(model, config=config, seed=seed, **given)
    if json_target:
        jsonio.dump(result.record, json_target)
    if json_target != "-":
        show_plan(result)
