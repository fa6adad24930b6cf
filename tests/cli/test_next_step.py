"""The summary ends with a command that can be typed."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import click
import onnx_ir as ir
import pytest

from onnxdecomp.cli import next_step
from onnxdecomp.cli.compress import command as compress
from onnxdecomp.workflow import loss_note
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
        (("--calib", "data set.npz", "--freeze-initializers"), ("--quantize", "int8")),
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
    if words[1] == "compress":
        assert ("--freeze-initializers" in words) == ("--freeze-initializers" in given)
    if "--calib" in given and words[1] == "compress":
        assert ("--calib", "data set.npz") in itertools.pairwise(words)
    if words[1] == "compress":
        assert isinstance(compress.make_context("compress", words[2:]), click.Context)


def test_without_inputs_the_arrays_that_they_hold_are_named(model: Path, capsys: Capsys) -> None:
    done = command(capsys, "compress", model.name, *QUICK)
    assert told(done.out)[1] == "fit it to inputs (x float32[N, 8, 8, 8]), which loses less"


def test_arrays_of_many_inputs_or_unknown_shapes_are_not_named() -> None:
    def told(*ports: ir.Value) -> str:
        return next_step._arrays(ir.Model(ir.Graph(ports, [], nodes=[]), ir_version=9))

    kind = ir.TensorType(ir.DataType.STRING)
    text = ir.Value(name="words", shape=ir.Shape(["N", None]), type=kind)
    assert told(text) == " (words str[N, ?])"
    assert told(ir.Value(name="words", type=kind)) == ""
    assert told(*(ir.Value(name=f"x{n}", shape=ir.Shape([1]), type=kind) for n in range(5))) == ""


@pytest.mark.parametrize(
    "given", [("--quantize", "int8-static"), ("--method", "none", "--quantize", "int8-static")]
)
def test_of_fewer_bits_that_lose_much_more_stays_in_floating_point(
    given: tuple[str, ...], model: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples(model.with_name("data.npz"))
    monkeypatch.setattr(loss_note, "LITTLE", 0.0)
    line = ("compress", model.name, "--simplify", "none", "--no-bench", "--calib", "data.npz", *given)
    words, reason = told(command(capsys, *line).out)
    assert words[-6:] == ["--method", "none", "--quantize", "int8-static", "--max-error", "0"]
    assert reason == "lose less, with more in floating point"
    words, _ = told(command(capsys, *line, "--max-error", "0.9", "--overwrite", "-o", "b.onnx").out)
    assert words[1] != "compress" or "--max-error" not in words


def test_fewer_bits_come_on_top_of_what_was_done(model: Path, capsys: Capsys) -> None:
    """With --quantize alone no layer would be decomposed."""
    samples(model.with_name("data.npz"))
    line = (
        "compress",
        model.name,
        "--calib",
        "data.npz",
        "--simplify",
        "none",
        "--no-bench",
        "--allow-slower",
    )
    words, _ = told(command(capsys, *line, "--target", "macs=1.2x").out)
    assert words[-4:] == ["--target", "macs=1.2x", "--quantize", "int8"]
    words, _ = told(command(capsys, *line, "--max-error", "0.5", "--overwrite").out)
    assert words[-4:] == ["--max-error", "0.5", "--quantize", "int8"]


def test_a_search_that_ran_out_of_time_is_given_more(model: Path, capsys: Capsys) -> None:
    samples(model.with_name("data.npz"))
    line = ("compress", model.name, "--calib", "data.npz", "--no-bench", "--target", "error=0.05")
    words, reason = told(command(capsys, *line, "--time-limit", "0.001s").out)
    assert words[-4:] == ["--target", "error=0.05", "--time-limit", "1m"]
    assert reason == "search for longer"
