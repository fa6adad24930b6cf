"""`onnxdecomp report`: the page of a run again, from its record."""

from __future__ import annotations

from pathlib import Path

import click

from onnxdecomp.cli.output import (
    all_layers_option,
    check_files,
    log_option,
    markdown_option,
    report_option,
    write_log,
    write_reports,
)


@click.command()
@click.argument("records", metavar="RUN.json...", nargs=-1)
@report_option(
    "-o",
    "--output",
    help="The page  [default: RUN.html in the current folder, where neither --markdown nor --log is given].",
)
@markdown_option
@log_option
@all_layers_option
@click.option("--schema", is_flag=True, help="Print the JSON Schema of records, and do nothing else.")
@click.pass_context
def command(
    context: click.Context,
    /,
    records: tuple[str, ...],
    report_target: str | None,
    markdown_target: str | None,
    all_layers: bool,
    schema: bool,
) -> None:
    """Make the report of RUN.json, which --json of compress, inspect, bench or finetune wrote ("-": stdin).

    Everything on the page is in the record: no model is needed. Several records of finetune give one page
    with the curves of all of them.
    """
    from onnxdecomp.cli import console
    from onnxdecomp.errors import UsageError
    from onnxdecomp.report import check_installed, read_record, schema_text, together

    if schema:
        click.echo(schema_text(), nl=False)
        return
    if not records:
        raise UsageError("name the record that --json wrote: onnxdecomp report RUN.json")
    check_installed()
    check_files(context, {f"RUN.json {record}": record for record in records})
    every = [read_record(record) for record in records]
    read, target = every[0] if len(every) == 1 else together(every), report_target
    logged = write_log(context, read)
    if target is None and markdown_target is None and not logged:
        single = len(records) == 1 and records[0] != "-"
        target = f"{Path(records[0]).stem}.html" if single else "report.html"
    write_reports(read, target, markdown_target, all_layers=all_layers)
    if target is not None and markdown_target != "-":
        console.show(console.pairs([("wrote", target)]))
