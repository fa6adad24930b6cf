"""`onnxdecomp verify`: compare a model with the original."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxdecomp.cli.inputs import data_options, metric_option
from onnxdecomp.cli.output import check_files, json_option
from onnxdecomp.cli.shapes import parse_shapes

if TYPE_CHECKING:
    from onnxdecomp.evaluate.verify import Verification


@click.command()
@click.argument("original", type=click.Path())
@click.argument("new", type=click.Path())
@data_options
@metric_option
@click.option(
    "--max-error",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    help="Largest relative L2 error of an output (for integers: fraction of wrong values) that passes.",
)
@click.option("--provider", default="cpu", show_default=True, help="Where both run.")
@click.option("--threads", type=click.IntRange(min=0), default=1, show_default=True, help="0: one per core.")
@click.option("--samples", type=click.IntRange(min=1), help="Use at most so many samples.  [default: all]")
@json_option("the comparison")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    original: str,
    new: str,
    data: str | None,
    input_shape: tuple[str, ...],
    mask: str,
    metric: str | None,
    seed: int,
    max_error: float,
    provider: str,
    threads: int,
    samples: int | None,
    json_target: str | None,
) -> None:
    """Compare NEW with ORIGINAL: interface, numbers, accuracy; FAILED is exit code 1.

    SKIPPED, where nothing can be compared, is exit code 0, unless --max-error was given: a limit that nothing
    was held to is not kept. Both run on the same inputs: DATA, or seeded random numbers at two sizes of the
    free dimensions. Where DATA has labels, the top-1 accuracy of both is measured, and with --metric what
    else they are for.
    """
    from click.core import ParameterSource

    from onnxdecomp.cli import console
    from onnxdecomp.errors import GateError
    from onnxdecomp.evaluate.verify import verify
    from onnxdecomp.runtime import jsonio

    check_files(context, {"ORIGINAL": original, "NEW": new, "--data": data})
    with console.progress("verifying") as advance:
        result = verify(
            original,
            new,
            data=data,
            shapes=parse_shapes(input_shape),
            mask=mask,
            metric=metric,
            seed=seed,
            provider=provider,
            threads=threads,
            max_error=max_error,
            samples=samples,
            advance=advance,
        )
    if json_target:
        jsonio.dump(result.to_json(), json_target)
    if json_target != "-":
        _show(result)
    if result.status == "failed":
        raise GateError(f"verification failed: {result.reason}")
    given = context.get_parameter_source("max_error") is ParameterSource.COMMANDLINE
    if result.status == "skipped" and given:
        raise GateError(f"--max-error {max_error:g} was not judged: {result.reason}")


def _show(result: Verification) -> None:
    from onnxdecomp.cli import console
    from onnxdecomp.cli.show import metric_line

    results: list[Any] = []
    if result.outputs:
        columns = (
            "output",
            "rel L2",
            "max abs",
            "p99 abs",
            "cosine",
            "SQNR dB",
            "same top-1",
            "equal",
            "bad",
        )
        rows = [
            (
                error.name,
                _number(error.rel_l2),
                _number(error.max_abs),
                _number(error.p99_abs),
                _number(error.cosine, ".6f"),
                _number(error.sqnr_db, ".1f"),
                _number(error.top1_agreement, ".4f"),
                _number(error.agreement, ".4f"),
                error.nonfinite,
            )
            for error in result.outputs
        ]
        results.append(console.table(None, columns, rows))
    for difference in result.interface:
        results.append(f"interface: {difference}")
    for note in result.notes:
        results.append(f"note: {note}")
    if result.accuracy:
        a = result.accuracy
        results.append(
            f"top-1 accuracy of {a.output}: {a.original:.4f} -> {a.new:.4f} ({a.new - a.original:+.4f}) "
            f"on {a.samples} samples"
        )
    if result.metric:
        results.append(metric_line(result.metric))
    if result.samples:
        results.append(f"{result.samples} samples ({result.data}), {result.provider}")
    error = "" if result.worst is None else f": worst rel L2 {result.worst:.3g} of {result.worst_output}"
    limit = "" if result.max_error is None or not error else f" (at most {result.max_error:g})"
    results.append(f"{result.status.upper()}{error}{limit}")
    if result.reason:
        results.append(result.reason)
    console.show(*results)


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)
