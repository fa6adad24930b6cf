"""`onnxdecomp finetune`: win back accuracy by training the ONNX file itself."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxdecomp.cli.inputs import preprocess_option
from onnxdecomp.cli.output import check_files, json_option, report_options, write_record
from onnxdecomp.training.settings import Settings

if TYPE_CHECKING:
    from onnxdecomp.workflow.finetune import Finetuned

F = TypeVar("F", bound=Callable[..., Any])

_METAVARS = {int: "N", float: "NUMBER", str: "TEXT"}


def _settings(function: F) -> F:
    """An option for every setting."""
    hints = typing.get_type_hints(Settings)
    for option in reversed(dataclasses.fields(Settings)):
        kind = hints[option.name]
        function = click.option(
            f"--{option.name.replace('_', '-')}",
            option.name,
            type=kind,
            default=option.default,
            show_default=option.default != "",
            metavar=_METAVARS[kind],
            help=option.metadata["help"],
        )(function)
    return function


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="File to write  [default: MODEL.finetuned.onnx in the current folder].",
)
@click.option("--teacher", type=click.Path(), metavar="FILE", help="The original; without it, labels teach.")
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="Inputs, with labels or without: a .npz file, a folder of them, ONNX test data (test_data_set_*), a "
    "folder of images, or module:callable.",
)
@preprocess_option
@click.option(
    "--eval",
    "evaluation",
    metavar="DATA",
    help="Inputs to compare with the teacher on afterwards; those of --data if not given.",
)
@click.option("--samples", type=click.IntRange(min=2), metavar="N", help="Train on at most so many samples.")
@click.option("--from-scratch", is_flag=True, help="Begin from random numbers in all weights; needs labels.")
@_settings
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write the state after every epoch, and go on from it where the file exists.",
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu or cuda.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Of torch  [default: all cores].")
@report_options
@json_option("the run's record")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    model: str,
    output: str | None,
    teacher: str | None,
    data: str,
    preprocess: str | None,
    evaluation: str | None,
    samples: int | None,
    from_scratch: bool,
    checkpoint: str | None,
    device: str,
    threads: int | None,
    report_target: str | None,
    markdown_target: str | None,
    json_target: str | None,
    overwrite: bool,
    **settings: Any,
) -> None:
    """Train the weights of MODEL, a compressed one, to do again what the original did.

    Only numbers of initializers change. A held-out part of the data decides which epoch's weights are kept,
    those that came in among them: the result is never worse there. Needs the extra 'train' (torch).
    """
    from onnxdecomp.cli import console
    from onnxdecomp.data.read import prepared
    from onnxdecomp.runtime.output_path import check_apart
    from onnxdecomp.workflow.finetune import finetune

    target = output or f"{Path(model).stem}.finetuned.onnx"
    sources = {"--teacher": teacher, "--data": data, "--eval": evaluation}
    check_files(context, {**sources, "--checkpoint": checkpoint}, target)
    check_files(context, {"MODEL": model, "its external data": f"{model}.data"})
    check_apart({"--checkpoint": checkpoint}, {"MODEL": model, **sources})
    samples_of = prepared(data, preprocess)
    assert samples_of is not None
    with console.progress("load") as advance:
        result = finetune(
            model,
            target,
            data=samples_of,
            teacher=teacher,
            settings=settings,
            evaluation=None if evaluation is None else prepared(evaluation, preprocess),
            samples=samples,
            from_scratch=from_scratch,
            checkpoint=checkpoint,
            device=device,
            threads=threads,
            overwrite=overwrite,
            progress=advance,
        )
    write_record(context, result.record, json_target, report_target, markdown_target)
    if "-" not in (json_target, markdown_target):
        _show(result)


def _show(result: Finetuned) -> None:
    from onnxdecomp.cli import console

    training = result.training
    columns = ("epoch", "loss", "held-out loss", "held-out accuracy", "seconds")
    rows = [
        (
            f"{epoch['number']}{' (kept)' if epoch['number'] == training['best'] else ''}",
            "-" if epoch["train"] is None else f"{epoch['train']:.4g}",
            f"{epoch['held_out']:.4g}",
            "-" if epoch["accuracy"] is None else f"{epoch['accuracy']:.2%}",
            f"{epoch['seconds']:.1f}",
        )
        for epoch in training["epochs"]
    ]
    samples = training["samples"]
    lines: list[Any] = [
        console.table(None, columns, rows),
        f"{training['parameters']} numbers in {training['tensors']} initializers trained on "
        f"{samples['train']} samples, {samples['held_out']} held out: {training['objective']}",
    ]
    if not training["best"]:
        verdict = result.record["verdict"]
        lines.append("; ".join((verdict["text"], *verdict["because"])))
    checked = result.verification
    if checked is not None and checked.worst is not None:
        lines.append(
            f"worst relative L2 error against the teacher: {checked.worst:.3g} of {checked.worst_output}"
        )
    if checked is not None and checked.accuracy is not None:
        a = checked.accuracy
        change = f"{a.original:.4f} -> {a.new:.4f} ({a.new - a.original:+.4f})"
        lines.append(f"top-1 accuracy: {change} on {a.samples} samples")
    if result.path is not None:
        lines.append(f"written: {result.path}")
    console.show(*lines)
