"""The summary ends with a command that can be typed."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import click
import pytest

from onnxdecomp.cli.compress import command as compress
from tests.builders.commands import QUICK, command
from tests.builders.feeds import samples

Capsys = pytest.CaptureFixture[str]


def told(out: str) -> tuple[list[str], str]:
    """The words of the command in the last line, and what it is for."""
    line = out.splitlines()[-1]
    assert line.startswith("next "), out
    words, _, reason = line.removeprefix("next").strip().rpartition(": ")
    return shlex.split(words), reason


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((), ("--calib", "INPUTS.npz")),
        (("--calib", "data set.npz"), ("--quantize", "int8")),
        (("--calib", "data set.npz", "--quantize", "int8-static"), ("--data", "TEST.npz")),
        (("--dry-run", "--json", "plan.json"), ("--plan", "plan.json")),
    ],
)
def test_the_next_command_is_one(
    given: tuple[str, ...], wanted: tuple[str, ...], model: Path, capsys: Capsys
) -> None:
    samples(model.with_name("data set.npz"))
    done = command(capsys, "compress", model.name, *QUICK, *given)
    assert done.code == 0, done.err
    words, reason = told(done.out)
    assert words[0] == "onnxdecomp"
    assert model.name in words
    assert reason
    assert words[-2:] == list(wanted)
    if "--calib" in given and words[1] == "compress":
        assert ("--calib", "data set.npz") in itertools.pairwise(words)
    if words[1] == "compress":
        assert isinstance(compress.make_context("compress", words[2:]), click.Context)
