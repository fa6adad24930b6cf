"""`onnxdecomp demo`: the embedded job, with a model and images that come with the package."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxdecomp.cli.output import json_option

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

MODEL, IMAGES = "digits.onnx", "digits_test.npz"
OPTIONS = ("--method", "tucker", "--rank", "0.375")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default="onnxdecomp-demo")
@json_option("the run's record")
@click.pass_context
def command(context: click.Context, folder: Path, json_target: str | None) -> None:
    """Compress a small network that comes along, to see what a run prints.

    It tells handwritten digits apart. The network, 500 test images and the result are written to FOLDER (by
    default onnxdecomp-demo), where they can be tried with other options.
    """
    from onnxdecomp.cli.compress import command as compress

    _check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MODEL, IMAGES):
        (folder / name).write_bytes(_source(name).read_bytes())
    model, images = folder / MODEL, folder / IMAGES
    output = folder / "digits.small.onnx"
    line = [str(model), *OPTIONS, "--eval", str(images), "-o", str(output), "--overwrite"]
    line += ["--json", json_target] if json_target else []
    click.echo(f"$ {shlex.join(('onnxdecomp', 'compress', *line))}", err=json_target == "-")
    with compress.make_context("compress", line, parent=context) as inner:
        compress.invoke(inner)


def _check(folder: Path) -> None:
    from onnxdecomp.errors import UsageError

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: this is no folder; name another one")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MODEL).is_file():
        raise UsageError(f"{folder}: holds other files; name an empty folder, or a new one")


def _source(name: str) -> Traversable:
    """A file of the demo: in an installed package beside this one, in a checkout in models/."""
    packed = files("onnxdecomp.cli").joinpath("demo_files", name)
    return packed if packed.is_file() else Path(__file__).resolve().parents[2] / "models" / name
