"""`onnxdecomp compress`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from onnxdecomp.cli import options
from onnxdecomp.cli.inputs import input_shape_option, parse_shapes, preprocess_option
from onnxdecomp.cli.output import check_files, json_option, report_options, write_record


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="File to write  [default: MODEL.METHOD.onnx in the current folder].",
)
@options.decomposition
@click.option(
    "--calib",
    type=click.Path(),
    metavar="DATA",
    help="Inputs without labels that factors are fitted to, of the same forms as --eval.",
)
@click.option(
    "--eval",
    "data",
    type=click.Path(),
    metavar="DATA",
    help="Inputs to verify with, and labels for accuracy: a .npz file, a folder of them, ONNX test data "
    "(test_data_set_*), a folder of images, or module:callable. Those of --calib, or random ones, if not "
    "given.",
)
@preprocess_option
@click.option(
    "--samples", type=click.IntRange(min=1), metavar="N", help="Use at most so many samples of the data."
)
@input_shape_option
@click.option(
    "--quantize",
    type=click.Choice(("int8", "fp16", "none")),
    default=None,
    help="After the decomposition make the model int8 (needs --calib) or fp16; a target is then one for the "
    "quantized model  [default: none].",
)
@click.option(
    "--finetune",
    metavar="SETTINGS",
    help="Train the result on --calib against the original: settings of 'onnxdecomp finetune', such as "
    "'epochs=2,train=all'. Needs the extra 'train' (torch).",
)
@click.option(
    "--max-error",
    type=click.FloatRange(min=0),
    metavar="ERROR",
    help="Largest relative L2 error of an output. Where ranks are searched for, layers give way until it "
    "holds; with ranks given: exit with 1, writing nothing, if it is above this. With neither "
    "--rank nor --target also what the search may use up.",
)
@click.option(
    "--provider",
    default="cpu",
    metavar="NAME",
    show_default=True,
    help="Execution provider to verify and time on; 'onnxdecomp doctor' lists them.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads within an operator  [default: all cores].",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare the outputs with the original's.",
)
@click.option(
    "--bench/--no-bench", default=True, show_default=True, help="Time the result against the original."
)
@click.option(
    "--allow-slower/--never-slower",
    default=None,
    help="Whether the result may be no faster than the original; else layers are put back  [default: only if "
    "--rank, --plan, or a target of MACs, parameters or size asks for it].",
)
@click.option(
    "--plan",
    type=click.Path(),
    metavar="FILE",
    help="Carry out the plan in this file: the --json of a --dry-run or of another run.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@report_options
@click.option(
    "--bench-batch",
    "batches",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Time the result at this batch size too; repeatable. What decides is one sample  [default: with a "
    "report 1 and 16].",
)
@click.option(
    "--bench-threads",
    "bench_threads",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Time the result with so many threads too; repeatable. What decides is --threads  [default: with a "
    "report 1 and --threads].",
)
@json_option("the run's record")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--fail-if-unchanged", is_flag=True, help="Exit with 5 if nothing was decomposed.")
@options.methods
@click.pass_context
def command(
    context: click.Context,
    /,
    model: str,
    output: str | None,
    config: str | None,
    calib: str | None,
    data: str | None,
    preprocess: str | None,
    samples: int | None,
    input_shape: tuple[str, ...],
    finetune: str | None,
    max_error: float | None,
    provider: str,
    threads: int | None,
    verify: bool,
    bench: bool,
    allow_slower: bool | None,
    plan: str | None,
    dry_run: bool,
    report_target: str | None,
    markdown_target: str | None,
    batches: tuple[int, ...],
    bench_threads: tuple[int, ...],
    json_target: str | None,
    overwrite: bool,
    fail_if_unchanged: bool,
    **_: Any,
) -> None:
    """Replace the layers of MODEL by chains of smaller ones.

    The result is checked against MODEL (interface, numbers, and accuracy where the data have labels) and
    timed against it.
    """
    from onnxdecomp.cli import console
    from onnxdecomp.cli.show import show_plan, show_result
    from onnxdecomp.data.read import prepared
    from onnxdecomp.errors import UsageError
    from onnxdecomp.runtime import environment
    from onnxdecomp.workflow.compress import compress

    if preprocess is not None and calib is None and data is None:
        raise UsageError("--preprocess is for images in --calib or --eval: give one of them")
    given = options.given(context, (*options.DECOMPOSE, "seed", "quantize"))
    target = output or _default_output(model, config, given)
    sources = {"--calib": calib, "--eval": data, "--plan": plan, "--config": config}
    check_files(context, sources, target)
    check_files(context, {"MODEL": model, "its external data": f"{model}.data"})
    told = bool(report_target or markdown_target)
    decisive = threads or environment.cores()
    with console.progress("load") as advance:
        result = compress(
            model,
            target,
            config=config,
            calib=prepared(calib, preprocess) if calib is not None else None,
            plan=plan,
            data=prepared(data, preprocess) if data is not None else None,
            samples=samples,
            input_shapes=parse_shapes(input_shape),
            finetune=finetune,
            max_error=max_error,
            provider=provider,
            threads=threads,
            verify=verify,
            bench=bench,
            bench_batches=batches or ((1, 16) if told and bench else (1,)),
            bench_threads=bench_threads or (((decisive, 1) if told else (decisive,)) if bench else ()),
            details=told or json_target is not None,
            allow_slower=allow_slower,
            dry_run=dry_run,
            overwrite=overwrite,
            fail_if_unchanged=fail_if_unchanged,
            progress=advance,
            **given,
        )
    for note in result.notes:
        console.note(f"note: {note}")
    write_record(context, result.record, json_target, report_target, markdown_target)
    if "-" not in (json_target, markdown_target):
        (show_plan if dry_run else show_result)(result)


def _default_output(model: str, config: str | None, given: Mapping[str, Any]) -> Path:
    from onnxdecomp.workflow.compress import default_output

    return default_output(model, config, **{k: v for k, v in given.items() if k != "seed"})
