"""`onnxdecomp methods`: the decompositions, their layers, ranks, options and papers."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "json_target", metavar="FILE|-", help="Write the list as JSON.")
def command(json_target: str | None) -> None:
    """List the decompositions and the layers that they take."""
    from onnxdecomp import console, jsonio
    from onnxdecomp.methods import describe

    described = describe()
    if json_target:
        jsonio.dump(described, json_target)
        return
    rows = [
        (m["name"], m["summary"], ", ".join(m["ranks"]), ", ".join(m["takes"]), m["paper"]) for m in described
    ]
    console.stdout_console().print(
        console.table(None, ("method", "what it does", "ranks", "layers", "source"), rows)
    )
