"""Ctrl-C and termination in the middle of the work: nothing is left behind, and the exit code says so."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxdecomp.cli import process as own
from tests.builders.commands import QUICK, environment, files
from tests.builders.models import network
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")

# The command itself, in which one function waits at the place where the signal is to come.
_PROGRAM = """
import sys, time
from pathlib import Path
import {module} as module
from onnxdecomp.cli.main import main

original = {name}
def ready():
    Path(sys.argv[1]).touch()
def waiting(*arguments, **named):
    {before}
    ready()
    time.sleep(60)
{name} = waiting
main(sys.argv[2:])
"""

_AWAY = "from hashlib import pbkdf2_hmac; pbkdf2_hmac('sha256', b'', b'', 10**9)"
"""A call of another library that takes many minutes, and during which Python handles no signal."""

_WORKER = "import subprocess; module.worker = subprocess.Popen(['sleep', '60'])"

PLACES = {
    "decompose": ("onnxdecomp.decompositions.tucker", "module.Tucker.fit", "pass"),
    "save": ("onnxdecomp.graph.save", "module._sync", "original(*arguments, **named)"),
    "verify": ("onnxdecomp.evaluate.verify", "module.verify", "pass"),
    "decompose, away": (
        "onnxdecomp.decompositions.tucker",
        "module.Tucker.fit",
        f"{_WORKER}; ready(); {_AWAY}",
    ),
    "save, away": ("onnxdecomp.graph.save", "module._sync", f"ready(); {_AWAY}"),
    "verify, away": ("onnxdecomp.evaluate.verify", "module.verify", f"ready(); {_AWAY}"),
}


@pytest.fixture(autouse=True)
def _in_the_foreground() -> Iterator[None]:
    """A shell starts its background jobs with SIGINT ignored, and children would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("place", "number", "options"),
    [
        ("decompose", signal.SIGINT, ()),
        ("save", signal.SIGINT, ()),
        ("save", signal.SIGTERM, ()),
        ("verify", signal.SIGTERM, ("-o", "net.onnx", "--overwrite")),
        ("decompose, away", signal.SIGTERM, ()),
        ("save, away", signal.SIGTERM, ()),
        ("verify, away", signal.SIGINT, ("-o", "net.onnx", "--overwrite")),
    ],
)
def test_a_signal(place: str, number: signal.Signals, options: tuple[str, ...], tmp_path: Path) -> None:
    module, name, before = PLACES[place]
    program = _PROGRAM.format(module=module, name=name, before=before)
    folder = tmp_path / "work"
    folder.mkdir()
    content = network(folder / "net.onnx").read_bytes()
    ready = tmp_path / "ready"
    line = [sys.executable, "-c", program, str(ready), "compress", "net.onnx", *QUICK, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=folder, env=environment(), text=True, **pipes) as running:  # type: ignore[call-overload]
        try:
            deadline = time.monotonic() + 60
            while not ready.exists() and running.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            assert ready.exists(), running.communicate()
            if not place.startswith("decompose"):
                assert len(files(folder)) > 1  # there is something to tidy up
            running.send_signal(number)
            out, err = running.communicate(timeout=30)
        finally:
            running.kill()
    assert (running.returncode, out, err) == (128 + number, "", "onnxdecomp: interrupted\n")
    assert files(folder) == ["net.onnx"]
    assert (folder / "net.onnx").read_bytes() == content


def test_only_the_first_signal_interrupts_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    tidied = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)  # impatience
            tidied.append(True)

    with pytest.raises(own.Interrupted) as raised, own.signals():
        work()
    assert raised.value.exit_code == own.INTERRUPTED == 130
    assert tidied == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with own.signals():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_temporary_folders_are_where_a_signal_finds_them() -> None:
    sources = [path for package in ("onnxdecomp", "passes") for path in (ROOT / package).rglob("*.py")]
    users = {path.name for path in sources if "TemporaryDirectory(" in path.read_text(encoding="utf-8")}
    assert users == {"temporary_files.py"}
