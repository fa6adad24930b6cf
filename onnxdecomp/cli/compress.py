"""`onnxdecomp compress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxdecomp.cli import options
from onnxdecomp.cli.inputs import input_shape_option, parse_shapes

if TYPE_CHECKING:
    from onnxdecomp.api import Result


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="File to write  [default: MODEL with the method in its name, in the current folder].",
)
@options.decomposition
@click.option(
    "--eval", "data", type=click.Path(), metavar="DATA", help="Inputs to verify with; see the README."
)
@click.option("--samples", type=click.IntRange(min=1), help="At most so many samples of the data.")
@input_shape_option
@click.option("--max-error", type=float, help="Exit with 1, writing nothing, above this relative L2 error.")
@click.option(
    "--provider", default="cpu", show_default=True, help="Execution provider to verify and time on."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads within an operator  [default: all cores]."
)
@click.option("--verify/--no-verify", default=True, help="Compare the outputs with the original's.")
@click.option("--bench/--no-bench", default=True, help="Time the result against the original.")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@click.option("--json", "json_target", metavar="FILE|-", help="Write the run's record as JSON.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--fail-if-unchanged", is_flag=True, help="Exit with 5 if nothing was decomposed.")
@click.pass_context
def command(
    context: click.Context,
    /,
    model: str,
    output: str | None,
    config: str | None,
    data: str | None,
    samples: int | None,
    input_shape: tuple[str, ...],
    max_error: float | None,
    provider: str,
    threads: int | None,
    verify: bool,
    bench: bool,
    dry_run: bool,
    json_target: str | None,
    overwrite: bool,
    fail_if_unchanged: bool,
    seed: int,
    **_: Any,
) -> None:
    """Replace the layers of MODEL by chains of smaller ones.

    The result is checked against MODEL (interface, numbers, and accuracy where the data have labels) and
    timed against it.
    """
    from onnxdecomp import console, jsonio
    from onnxdecomp.api import compress
    from onnxdecomp.cli.show import show_result

    method = context.params["method"]
    with console.progress("compress") as advance:
        result = compress(
            model,
            output or f"{Path(model).stem}.{method}.onnx",
            config=config,
            data=data,
            samples=samples,
            input_shapes=parse_shapes(input_shape),
            max_error=max_error,
            provider=provider,
            threads=threads,
            verify=verify,
            bench=bench,
            dry_run=dry_run,
            overwrite=overwrite,
            fail_if_unchanged=fail_if_unchanged,
            seed=seed,
            progress=lambda what, done, total: advance(0, description=_step(what, done, total)),
            **options.given(context, options.DECOMPOSE),
        )
    _notes(result)
    if json_target:
        jsonio.dump(result.record, json_target)
    if json_target != "-":
        show_result(result)


def _step(what: str, done: int, total: int) -> str:
    return f"{what} ({done + 1} of {total})" if total else what


def _notes(result: Result) -> None:
    from onnxdecomp import console

    err = console.stderr_console()
    for note in result.notes:
        err.print(f"note: {note}")
    if result.path is not None and not result.changed:
        err.print(f"note: nothing was decomposed; {result.path} is the original")
