"""`onnxdecomp methods`: the decompositions, their layers, ranks, options and papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from onnxdecomp.cli.output import json_option


@click.command()
@json_option("the list")
def command(json_target: str | None) -> None:
    """List the decompositions and the layers that they take.

    FusedConv, FusedGemm, FusedMatMul and an Einsum that is a matrix product count as the Conv, Gemm or MatMul
    that they are; LSTM, GRU and RNN are their input projections, Gather is an embedding table. Methods with a
    line "together" take several layers at once.
    """
    from onnxdecomp.cli import console
    from onnxdecomp.decompositions.registry import describe, problems
    from onnxdecomp.runtime import jsonio

    described = describe()
    for problem in problems():
        click.echo(f"warning: {problem}", err=True)
    if json_target:
        jsonio.dump(described, json_target)
    if json_target != "-":
        console.show(console.pairs([line for method in described for line in _lines(method)]))


def _lines(method: Mapping[str, Any]) -> list[tuple[str, str]]:
    options = ", ".join(f"{name}={value}" for name, value in method["options"].items())
    facts = (
        ("together" if method.get("joint") else "layers", ", ".join(method["takes"])),
        ("ranks", ", ".join(method["ranks"])),
        ("options", options),
        ("source", method["paper"]),
        ("package", method.get("distribution", "")),
    )
    return [(method["name"], method["summary"]), *((f"  {name}", text) for name, text in facts if text)]
