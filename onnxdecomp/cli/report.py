"""`onnxdecomp report`: the page of a run again, from its record."""

from __future__ import annotations

from pathlib import Path

import click

from onnxdecomp.cli.output import markdown_option, report_option, write_reports


@click.command()
@click.argument("record", metavar="RUN.json", required=False)
@report_option(
    "-o",
    "--output",
    help="The page  [default: RUN.html in the current folder, where no --markdown is given].",
)
@markdown_option
@click.option("--schema", is_flag=True, help="Print the JSON Schema of records, and do nothing else.")
def command(
    record: str | None,
    report_target: str | None,
    markdown_target: str | None,
    schema: bool,
) -> None:
    """Make the report of RUN.json, which the --json of compress, inspect or bench wrote ("-": stdin).

    Everything on the page is in the record: no model is needed.
    """
    from onnxdecomp import console
    from onnxdecomp.errors import UsageError
    from onnxdecomp.report import check_installed, read_record, schema_text

    if schema:
        click.echo(schema_text(), nl=False)
        return
    if record is None:
        raise UsageError("name the record that --json wrote: onnxdecomp report RUN.json")
    check_installed()
    read, target = read_record(record), report_target
    if target is None and markdown_target is None:
        target = f"{Path(record).stem}.html" if record != "-" else "report.html"
    write_reports(read, target, markdown_target)
    if target is not None and markdown_target != "-":
        console.show(console.pairs([("wrote", target)]))
