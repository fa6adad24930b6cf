"""Help in sections: the groups of CompressConfig, one sentence for an option, and all of it by --help-all."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import click

from onnxdecomp.core.options import described, option_fields
from onnxdecomp.workflow.config import GROUPS, CompressConfig

_ALL = "--help-all"

_SECTION: Mapping[str, str] = {
    **{
        field.name: title
        for field in option_fields(CompressConfig)
        for group, title in GROUPS.items()
        if described(field).group == group
    },
    **dict.fromkeys(("recipe", "config"), GROUPS["goal"]),
    "preprocess": GROUPS["data"],
    **dict.fromkeys(
        ("output", "report_target", "markdown_target", "json_target", "all_layers"), GROUPS["output"]
    ),
}
"""Where an option stands, by the name of its parameter."""

_REST = "Help and errors"


class Sectioned(click.Command):
    """A command of many options: --help has a sentence for each, --help-all has all of them in full."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """As click; one option more."""
        found = super().get_params(ctx)
        told = click.Option(
            [_ALL],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_all,
            help="Show everything about all options, the methods' own included",
        )
        return [*found, told]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The sections."""
        whole = bool(ctx.meta.get(_ALL))
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in GROUPS.values()}
        methods: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):
                continue
            method, own, _ = (parameter.name or "").partition("__")
            record = _record(parameter, ctx, whole=whole)
            if record is not None and own:
                methods.setdefault(f"Options of {method}", []).append(record)
            elif record is not None:
                sections.setdefault(_SECTION.get(parameter.name or "", _REST), []).append(record)
        for title, records in [*sections.items(), *(methods.items() if whole else ())]:
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if not whole:
            formatter.write_paragraph()
            formatter.write_text(
                f"{ctx.command_path} {_ALL} says more of each, and has the methods' own options."
            )


def brief(text: str) -> str:
    """The first sentence of an option's help, and its default."""
    body, mark, default = text.partition("  [default: ")
    first = re.split(r"(?<=[^.]\.)\s+(?=[A-Z'])", body, maxsplit=1)[0].rstrip(".")
    return f"{first}{mark}{default.rstrip('.')}"


def _record(parameter: click.Parameter, ctx: click.Context, *, whole: bool) -> tuple[str, str] | None:
    if not whole and isinstance(parameter, click.Option) and parameter.help:
        told = brief(parameter.help)
        parameter = copy.copy(parameter)
        parameter.help = told
    return parameter.get_help_record(ctx)


def _show_all(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()
