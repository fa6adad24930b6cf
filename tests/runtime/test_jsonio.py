"""JSON files: whole or absent, and pipes and devices are written to, not replaced.

A pipe stands for both: as root, a test on a device would replace it on the whole machine if it failed.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import jsonio


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are POSIX")
def test_a_pipe_is_written_through_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    jsonio.dump({"numbers": [1, 2]}, pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    reader.join(timeout=30)
    assert json.loads(read[0]) == {"numbers": [1, 2]}
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is a folder"):
        jsonio.dump({}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("x" * 10_000)
    jsonio.dump({"a": float("nan")}, path)
    assert json.loads(path.read_text()) == {"a": None}
    assert list(tmp_path.iterdir()) == [path]
