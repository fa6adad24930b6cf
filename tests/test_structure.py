"""The structure of the packages: what imports what, and that everything lies in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_imports_keep_the_contracts() -> None:
    """Floors of folders, no circle among files, and an engine that knows no pass: see pyproject.toml."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    line = [sys.executable, "-c", command, "--no-cache", "--no-logo"]
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


def test_every_module_lies_in_a_folder() -> None:
    own = {path.name for path in (ROOT / "onnxdecomp").iterdir() if path.is_file()}
    assert own == {"__init__.py", "_version.py", "errors.py", "py.typed"}


def test_every_folder_says_what_it_is_for() -> None:
    folders = [path.parent for path in (ROOT / "onnxdecomp").rglob("__init__.py")]
    silent = [
        str(f) for f in folders if not (f / "__init__.py").read_text(encoding="utf-8").startswith('"""')
    ]
    assert len(folders) > 15
    assert silent == []


def test_the_figure_is_that_of_the_code() -> None:
    found = subprocess.run([sys.executable, "docs/rooms.py", "--check"], cwd=ROOT, check=False)
    assert found.returncode == 0, "docs/rooms.svg is out of date: python docs/rooms.py"
