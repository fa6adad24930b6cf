"""Commands run as a user runs them, in this process or in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onnxdecomp.cli.main import main
from tests.conftest import ROOT

QUICK = ("--simplify", "none", "--no-bench", "--method", "tucker", "--rank", "4")
"""Options of compress that make it fast on `models.network`."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    def is_error(self, code: int, *fragments: str) -> None:
        """Assert that it failed as a user is promised: the code, one line on stderr, nothing on stdout."""
        assert self.code == code, self
        assert self.out == ""
        assert self.err.startswith("onnxdecomp: error: "), self.err
        assert self.err.endswith("\n"), self.err
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        for fragment in fragments:
            assert fragment in self.err


def files(folder: Path = Path()) -> list[str]:
    """The names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    captured = capsys.readouterr()
    return Outcome(ended.value.code, captured.out, captured.err)


def environment() -> dict[str, str]:
    """The environment of a subprocess that imports the checkout."""
    paths = [str(ROOT), str(ROOT / "passes"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def arguments(*given: object) -> list[str]:
    """The command line of a real process."""
    return [sys.executable, "-m", "onnxdecomp.cli.main", *map(str, given)]


def process(*given: object, cwd: Path | None = None, **options: Any) -> Outcome:
    """Run a command in a process of its own."""
    done = subprocess.run(
        arguments(*given),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
