"""onnxdecomp passes: the passes that a pipeline can be made of."""

from __future__ import annotations

from typing import Any

import click

from onnxdecomp.cli.output import json_option


@click.command("passes", short_help="List the passes that a pipeline can use.")
@json_option("the list")
def command(json_target: str | None) -> None:
    """List the passes that a pipeline (`--config FILE`) can use, with options and origin."""
    from onnxdecomp.errors import UsageError
    from onnxdecomp.pipeline import configuration, installed
    from onnxdecomp.runtime.jsonio import dump

    found, problems = installed.discover()
    listing: list[dict[str, Any]] = []
    for info in found.values():
        entry: dict[str, Any] = {"name": info.name, "distribution": info.distribution}
        try:
            kind = info.load()
        except UsageError as error:
            entry |= {"summary": None, "options": [], "error": str(error)}
        else:
            options = [
                {"name": o.name, "type": o.type, "default": o.default, "help": o.help}
                for o in installed.options(kind)
            ]
            entry |= {"summary": kind.summary, "options": options, "error": None}
        listing.append(entry)

    for problem in problems:
        click.echo(f"warning: {problem}", err=True)
    if json_target:
        dump({"default": configuration.DEFAULT, "passes": listing}, json_target)
    if json_target != "-":
        _print(listing, configuration.DEFAULT)


def _print(listing: list[dict[str, Any]], default: tuple[str, ...]) -> None:
    for entry in listing:
        click.echo(f"{entry['name']}  ({entry['distribution']})")
        click.echo(f"    {entry['error'] or entry['summary']}")
        for option in entry["options"]:
            unset = option["default"] in (None, (), {})
            value = "" if unset else f" (default: {_toml(option['default'])})"
            help_text = f"  {option['help']}" if option["help"] else ""
            click.echo(f"      {option['name']}: {option['type']}{value}{help_text}")
    click.echo(f"\ndefault pipeline: {', '.join(default)}")


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
