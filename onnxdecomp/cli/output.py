"""--json, --report and --markdown: the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_LOG = "onnxdecomp.log"
"""What --log says, among what a context keeps."""


def json_option(what: str) -> Callable[[F], F]:
    """--json FILE|-, checked before the work whose result it is to hold.

    Args:
        what: What is written, for the help.
    """
    return click.option(
        "--json",
        "json_target",
        metavar="FILE|-",
        callback=_checked,
        help=f"Write {what} as JSON to FILE, or to stdout in place of the text.",
    )


def report_option(*names: str, help: str) -> Callable[[F], F]:
    """The option that names the page, checked likewise; by default --report."""
    return click.option(
        *(names or ("--report",)), "report_target", metavar="FILE.html", callback=_checked_report, help=help
    )


def markdown_option(function: F) -> F:
    """--markdown FILE.md|-, checked likewise."""
    return click.option(
        "--markdown",
        "markdown_target",
        metavar="FILE.md|-",
        callback=_checked_report,
        help="Write the report as Markdown, for a pull request, to FILE.md or stdout in place of the text.",
    )(function)


def log_option(function: F) -> F:
    """--log, checked before the work whose record it is to hold."""
    return click.option(
        "--log",
        type=click.Choice(["mlflow"]),
        expose_value=False,
        callback=_checked_log,
        help="Log the record, its report and the model as a run of MLflow, where MLFLOW_TRACKING_URI says.",
    )(function)


def all_layers_option(function: F) -> F:
    """--all-layers."""
    return click.option(
        "--all-layers",
        is_flag=True,
        help="A row for every layer and channel; otherwise those of many repeated blocks have one together.",
    )(function)


def report_options(function: F) -> F:
    """--report and --markdown."""
    page = report_option(help="Write a report to send around: one HTML page that needs no network.")
    return page(markdown_option(log_option(function)))


def write_record(
    context: click.Context,
    record: dict[str, Any],
    json_target: str | None = None,
    report_target: str | None = None,
    markdown_target: str | None = None,
) -> None:
    """Put the command line into the record, and write what was asked for."""
    from onnxdecomp.runtime import jsonio

    if isinstance(context.obj, tuple):  # what `main` was given
        import shlex

        record["run"]["command"] = shlex.join(("onnxdecomp", *context.obj))
    if json_target:
        jsonio.dump(record, json_target)
    write_log(context, record)
    every = bool(context.params.get("all_layers"))
    write_reports(record, report_target, markdown_target, all_layers=every)


def write_log(context: click.Context, record: dict[str, Any]) -> bool:
    """The record as a run of MLflow, where --log asks for it; says whether it does."""
    if _LOG not in context.meta:
        return False
    from onnxdecomp.cli import console
    from onnxdecomp.integrations import mlflow

    console.note(f"note: MLflow: run {mlflow.log(record)}")
    return True


def check_files(
    context: click.Context, inputs: Mapping[str, str | None], model: str | Path | None = None
) -> None:
    """Check, before the work, that what a command writes are different files and none of those that it reads.

    Args:
        context: Of the command: the record and the reports that it was asked for.
        inputs: Files that are read, by the option or argument that names them.
        model: The model that is written, or None.

    Raises:
        UsageError: Two of them are the same.
    """
    from onnxdecomp.runtime.output_path import check_apart

    named = {"--json": "json_target", "--report": "report_target", "--markdown": "markdown_target"}
    records = {option: context.params.get(name) for option, name in named.items()}
    beside = None if model is None else f"{model}.data"
    check_apart({"--output": model, "the output's external data": beside, **records}, inputs)


def write_reports(
    record: dict[str, Any],
    report_target: str | None,
    markdown_target: str | None,
    *,
    all_layers: bool = False,
) -> None:
    """The report of a record, as a page and as Markdown."""
    from onnxdecomp.runtime import jsonio

    if report_target or markdown_target:
        from onnxdecomp.report import html, markdown

        if report_target:
            jsonio.write(html(record), report_target)
        if markdown_target:
            jsonio.write(markdown(record, all_layers=all_layers), markdown_target)


def _checked(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value not in (None, "-"):
        _check_writable(Path(value), parameter.opts[0])
    return value


def _checked_log(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value == "mlflow":
        from onnxdecomp.integrations import mlflow

        mlflow.check()
        context.meta[_LOG] = value
    return value


def _checked_report(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from onnxdecomp.errors import UsageError

    if value is not None:
        from onnxdecomp.report import check_installed

        if value == "-" and parameter.name == "report_target":
            raise UsageError("--report writes a file: name it, such as report.html")
        check_installed()
    return _checked(context, parameter, value)


def _check_writable(path: Path, option: str) -> None:
    from onnxdecomp.errors import UsageError
    from onnxdecomp.runtime.output_path import check_folder, is_special

    if not is_special(path):  # a pipe or a device is written through
        check_folder(path)
    if path.suffix in (".onnx", ".npz", ".npy"):
        kind = "a model" if path.suffix == ".onnx" else "arrays"
        what = {"--json": "JSON", "--markdown": "Markdown"}.get(option, "a page")
        raise UsageError(f"{path}: {option} writes {what}, not {kind}; name another file")
