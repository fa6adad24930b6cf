"""`onnxdecomp recipes`: named configurations of `compress`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxdecomp.cli.output import json_option

if TYPE_CHECKING:
    from onnxdecomp.workflow.recipes.registry import Recipe


@click.command()
@json_option("the list")
def command(json_target: str | None) -> None:
    """List the named configurations that `compress --recipe NAME` takes.

    Options given beside a recipe win over it. NAME@VERSION is refused where a release has another version.
    """
    from onnxdecomp.cli import console
    from onnxdecomp.runtime import jsonio
    from onnxdecomp.workflow.recipes.registry import names, recipe

    found = [recipe(name) for name in names()]
    if json_target:
        jsonio.dump(
            [
                {
                    "name": one.name,
                    "version": one.version,
                    "summary": one.summary,
                    "needs": one.needs,
                    "remark": one.remark,
                    "options": one.options,
                }
                for one in found
            ],
            json_target,
        )
    if json_target != "-":
        console.show(console.pairs([line for one in found for line in _lines(one)]))


def _lines(one: Recipe) -> list[tuple[str, str]]:
    from onnxdecomp.cli.options import written

    return [
        (f"{one.name}@{one.version}", one.summary),
        ("  needs", one.needs),
        *([("  remark", one.remark)] if one.remark else []),
        ("  options", written(one.options)),
    ]
