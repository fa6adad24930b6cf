"""The command itself: quick help, suggestions, exit codes of what is no model's fault."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from onnxdecomp import __version__
from onnxdecomp.cli.main import COMMANDS, cli
from tests.builders.commands import command, environment

Capsys = pytest.CaptureFixture[str]

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "numpy", "scipy", "tensorly", "rich", "sympy")


def test_help_imports_nothing_heavy() -> None:
    program = f"""
import sys
sys.argv = ["onnxdecomp", "--help"]
from onnxdecomp.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
sys.exit(",".join(name for name in {HEAVY!r} if name in sys.modules) or None)
"""
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "compress" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str, capsys: Capsys) -> None:
    short = command(capsys, name, "-h")
    assert short.code == 0
    assert short.out.startswith(f"Usage: onnxdecomp {name} ")
    assert "--debug" in short.out
    assert short == command(capsys, name, "--help")
    assert max(map(len, short.out.splitlines())) <= 100


def test_what_a_command_changes_of_the_process_ends_with_it(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = gc.get_threshold(), []
    monkeypatch.setattr(cli, "invoke", lambda _context: seen.append(gc.get_threshold()))
    assert command(capsys, "doctor").code == 0
    assert seen[0][0] > before[0]
    assert gc.get_threshold() == before


def test_version_and_help(capsys: Capsys) -> None:
    assert command(capsys, "--version").out == f"onnxdecomp {__version__}\n"
    helped = command(capsys, "-h")
    assert helped.code == 0
    assert all(f"  {name} " in helped.out for name in COMMANDS)
    assert command(capsys) == helped


def test_every_command_is_there() -> None:
    import click

    context = click.Context(cli)
    names = cli.list_commands(context)
    assert {"compress", "inspect", "verify", "bench", "finetune"} <= set(names)
    for name in names:
        found = cli.get_command(context, name)
        assert found is not None
        # What compress --help promises to do is in one line of the overview too.
        assert found.help


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        (("comress", "m.onnx"), "unknown command 'comress'; did you mean 'compress'?"),
        (("m.onnx",), "did you mean 'onnxdecomp compress m.onnx'?"),
        (("--vers",), "--version"),
        (("compress",), "Missing argument 'MODEL'; see 'onnxdecomp compress --help'"),
        (("compress", "m.onnx", "extra"), "extra"),
        (("verify", "m.onnx"), "Missing argument 'NEW'"),
        (("--debug",), "Missing command"),
    ],
)
def test_wrong_usage(line: tuple[str, ...], fragment: str, capsys: Capsys) -> None:
    outcome = command(capsys, *line)
    assert outcome.code == 2
    assert fragment in outcome.err.splitlines()[-1]
    assert outcome.out == ""


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX")
def test_a_reader_that_goes_away() -> None:
    line = [sys.executable, "-m", "onnxdecomp.cli.main", "methods"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, env=environment(), **pipes) as running:  # type: ignore[call-overload]
        running.stdout.close()
        err = running.stderr.read()
    assert (running.returncode, err) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_results_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "onnxdecomp.cli.main", "methods"],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "onnxdecomp: error: No space left on device\n"


def test_an_encoding_without_arrows() -> None:
    env = {**environment(), "PYTHONIOENCODING": "ascii"}
    line = [sys.executable, "-m", "onnxdecomp.cli.main", "methods"]
    done = subprocess.run(line, env=env, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stdout.isascii()
