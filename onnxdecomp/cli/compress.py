"""`onnxdecomp compress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxdecomp.cli import options
from onnxdecomp.cli.help import Sectioned
from onnxdecomp.cli.inputs import preprocess_option
from onnxdecomp.cli.output import all_layers_option, check_files, json_option, report_options, write_record

if TYPE_CHECKING:
    from onnxdecomp.pipeline.configuration import PipelineSource
    from onnxdecomp.workflow.config import CompressConfig


@click.command(cls=Sectioned)
@click.argument("model", type=click.Path(), required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="File to write  [default: MODEL.METHOD.onnx in the current folder].",
)
@options.configured("goal")
@options.configured("methods")
@options.recipe_option
@options.config_option
@options.configured("data")
@preprocess_option
@options.configured("runtime")
@options.configured("after")
@report_options
@json_option("the run's record")
@all_layers_option
@options.configured("output")
@options.methods
@click.pass_context
def command(
    context: click.Context,
    /,
    model: str | None,
    output: str | None,
    recipe: str | None,
    config: str | None,
    preprocess: str | None,
    report_target: str | None,
    markdown_target: str | None,
    json_target: str | None,
    all_layers: bool,
    **_: Any,
) -> None:
    """Replace the layers of MODEL by chains of smaller ones, and make what passes between them narrower.

    The result is checked against MODEL (interface, numbers, and accuracy where the data have labels) and
    timed against it.

    \b
      onnxdecomp compress model.onnx --calib inputs.npz
      onnxdecomp compress model.onnx --calib inputs.npz --eval labelled.npz --target drop=1%
      onnxdecomp compress model.onnx --calib inputs.npz --recipe cnn-cpu
    """
    if isinstance(file := context.params["batch"], Path):
        _fleet(context, file, model, output, config, json_target)
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'", ctx=context)
    from onnxdecomp.cli import console
    from onnxdecomp.cli.next_step import next_step
    from onnxdecomp.cli.show import show_plan, show_result
    from onnxdecomp.workflow.compress import compress, default_output
    from onnxdecomp.workflow.config_checks import checked
    from onnxdecomp.workflow.time_limit import seconds_of

    told = bool(report_target or markdown_target)
    asked = _asked(
        options.said(context), config, preprocess, recipe=recipe, told=told, json=json_target is not None
    )
    settled = checked(asked)
    target = output or default_output(model, settled)
    sources = {"--calib": context.params["calib"], "--eval": context.params["data"]}
    check_files(context, {**sources, "--plan": context.params["plan"], "--config": config}, target)
    check_files(context, {"MODEL": model, "its external data": f"{model}.data"})
    with console.progress("load", most=seconds_of(settled)) as advance:
        result = compress(model, target, config=asked, progress=advance)
    for note in result.notes:
        console.note(f"note: {note}")
    write_record(context, result.record, json_target, report_target, markdown_target)
    if "-" not in (json_target, markdown_target):
        show = show_plan if asked.dry_run else show_result
        show(result, all_layers=all_layers, step=next_step(context, result, asked))


def _fleet(
    context: click.Context,
    file: Path,
    model: str | None,
    output: str | None,
    config: str | None,
    json_target: str | None,
) -> None:
    """Many models: what is about one of them is refused.

    Raises:
        UsageError: Something is about one model.
    """
    from onnxdecomp.cli.fleet import compress_all
    from onnxdecomp.errors import UsageError

    reports = context.params["report_target"] or context.params["markdown_target"]
    named = {"MODEL": model, "--output": output, "--config": config, "--report and --markdown": reports}
    named["--recipe"] = context.params["recipe"]
    for what, value in named.items():
        if value is not None:
            raise UsageError(f"--batch {file} and {what} exclude each other: {file} says it of each model")
    compress_all(file, options.said(context), json_target)


def _asked(
    said: dict[str, Any],
    config: str | None,
    preprocess: str | None,
    *,
    recipe: str | None = None,
    told: bool,
    json: bool,
) -> CompressConfig:
    """What is asked for; a report needs details, and timings of further settings.

    Args:
        said: The options given.
        config: A file with a configuration, over which they win.
        preprocess: How images become inputs.
        recipe: The name of a recipe in its place.
        told: Whether there is to be a report.
        json: Whether the record is to be written.

    Raises:
        UsageError: An option is not valid.
    """
    from onnxdecomp.data.read import prepared
    from onnxdecomp.errors import UsageError
    from onnxdecomp.runtime import environment
    from onnxdecomp.workflow.config import CompressConfig

    if preprocess is not None and not {"calib", "data"} & said.keys():
        raise UsageError("--preprocess is for images in --calib or --eval: give one of them")
    for name in ("calib", "data"):
        if name in said:
            said[name] = prepared(said[name], preprocess)
    asked = CompressConfig.of(_base(recipe, config), said)
    decisive = asked.threads or environment.cores()
    further: dict[str, object] = {}
    if asked.bench:
        own = asked.batch or 1
        further["bench_batches"] = tuple(dict.fromkeys((own, 1, 16))) if told else (own,)
        further["bench_threads"] = (decisive, 1) if told else (decisive,)
    unsaid = {name: value for name, value in further.items() if name not in asked.origins}
    return CompressConfig.of(asked, {"details": told or json or asked.details, **unsaid})


def _base(recipe: str | None, config: str | None) -> CompressConfig | PipelineSource:
    """What the options that were given win over.

    Raises:
        UsageError: Both are given, or there is no such recipe.
    """
    from onnxdecomp.errors import UsageError
    from onnxdecomp.workflow.config_json import source_of
    from onnxdecomp.workflow.recipes import registry

    if recipe is None:
        return source_of(config)
    if config is not None:
        raise UsageError(
            f"--recipe {recipe} and --config {config} exclude each other: both are where options begin"
        )
    return registry.recipe(recipe).config
