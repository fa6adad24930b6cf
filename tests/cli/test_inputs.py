from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from onnxdecomp.cli.inputs import preprocess_option
from onnxdecomp.data.preprocess import NAMES


@click.command()
@preprocess_option
def show(preprocess: str | None) -> None:
    click.echo(repr(preprocess))


@pytest.mark.parametrize(
    ("arguments", "expected"), [([], "None"), (["--preprocess", "raw:bgr"], "'raw:bgr'")]
)
def test_preprocess_option(arguments: list[str], expected: str) -> None:
    assert CliRunner().invoke(show, arguments).output.strip() == expected


def test_its_help_lists_every_name() -> None:
    text = CliRunner().invoke(show, ["--help"], terminal_width=300).output
    assert all(name in text for name in NAMES)
