"""Temporary folders: gone afterwards, and those of processes that were killed go with a later run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.runtime import temporary_files
from tests.builders import graphs, models
from tests.builders.commands import QUICK, command, environment, files
from tests.builders.models import network

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")

_PROGRAM = """
import os, sys
from pathlib import Path
from onnxdecomp.runtime import temporary_files

with temporary_files.folder(Path.cwd()) as made:
    (made / "half.onnx").write_bytes(b"half")
    print(made.name, flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that is at work in a temporary folder, which is an hour old."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    made = folder / process.stdout.readline().strip()
    past = made.stat().st_mtime - 3600
    os.utime(made, (past, past))
    return process, made


def test_what_a_killed_process_leaves_goes_with_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network(tmp_path / "m.onnx")
    living, used = holder(tmp_path)
    killed, left = holder(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    young = tmp_path / left.name.replace(left.name[-8:], "young")
    young.mkdir()
    foreign = tmp_path / ".onnxdecomp-elsewhere-12345678"
    foreign.mkdir()
    os.utime(foreign, (0, 0))
    try:
        assert (left / "half.onnx").exists()
        line = ("compress", tmp_path / "m.onnx", "-o", tmp_path / "out.onnx", *QUICK)
        assert command(capsys, *line).code == 0
        assert (used / "half.onnx").exists()
    finally:
        living.communicate("")
    assert files(tmp_path) == sorted([young.name, foreign.name, "m.onnx", "out.onnx"])


def test_a_model_with_external_data_is_saved_in_one(tmp_path: Path) -> None:
    """Saving locks the folder, and must not wait for its own process."""
    model = load(graphs.saved(models.linear(256), tmp_path / "m.onnx", "weights.bin"))
    with temporary_files.folder() as folder:
        save(model, folder / "saved.onnx", external=True)
        assert (folder / "saved.onnx.data").stat().st_size > 0


def test_a_folder_is_hidden_beside_an_output_only(tmp_path: Path) -> None:
    with temporary_files.folder(tmp_path) as beside, temporary_files.folder() as elsewhere:
        assert beside.parent == tmp_path
        assert beside.name.startswith(".onnxdecomp-")
        assert elsewhere.name.startswith("onnxdecomp-")
    assert not beside.exists()
    assert not elsewhere.exists()
