"""Every example of docs/examples runs as it stands, and ends with numbers."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.builders.commands import environment
from tests.conftest import ROOT

EXAMPLES = ROOT / "docs" / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sh"))
TESTS = sorted(EXAMPLES.rglob("test_*.py"))
LIBRARIES = {
    "speech_metric.py",
    "detector_metric.py",
    "box_metric.py",
    "__init__.py",
    *(path.name for path in TESTS),
}
"""What other examples use, and tests of it."""

PACKAGES = {
    "custom_pass": ("passes", "my_passes:PASSES"),
    "custom_method": ("decompositions", "my_methods:DECOMPOSITIONS"),
}
"""Packages among them, with the entry point that each has."""

NEEDED = {"finetune.py": "torch"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write to, a command `onnxdecomp`, and the custom packages as if they were installed."""
    tools, packages = tmp_path / "bin", tmp_path / "packages"
    tools.mkdir()
    for name, line in (("onnxdecomp", '-m onnxdecomp.cli.main "$@"'), ("python", '"$@"')):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {line}\n', encoding="utf-8")
        (tools / name).chmod(0o755)
    for folder, (group, target) in PACKAGES.items():
        about = packages / f"{folder}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {folder}\nVersion: 1.0\n", encoding="utf-8"
        )
        (about / "entry_points.txt").write_text(f"[onnxdecomp.{group}]\nmine = {target}\n", encoding="utf-8")
        declared = tomllib.loads((EXAMPLES / folder / "pyproject.toml").read_text(encoding="utf-8"))
        assert declared["project"]["entry-points"] == {f"onnxdecomp.{group}": {"mine": target}}
        monkeypatch.syspath_prepend(EXAMPLES / folder)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.syspath_prepend(packages)
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    return work


def test_there_are_twelve_and_more() -> None:
    assert len([path for path in SCRIPTS if path.name not in LIBRARIES]) >= 12


def _scripts(suffix: str) -> list[Any]:
    """Those of that kind."""
    found = [path for path in SCRIPTS if path.suffix == suffix and path.name not in LIBRARIES]
    return [pytest.param(path, id=path.name) for path in found]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("script", _scripts(".py"))
def test_python(script: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if (needed := NEEDED.get(script.name)) is not None:
        pytest.importorskip(needed)
    runpy.run_path(str(script), run_name="__main__")
    assert re.search(r"\d", capsys.readouterr().out.splitlines()[-1])


def test_the_metric_of_boxes() -> None:
    """Of two objects one is found, by the better of two boxes; a box that is unsure counts for nothing."""
    found = runpy.run_path(str(EXAMPLES / "box_metric.py"))["found"]
    labels = np.full((1, 3, 4), np.nan)
    labels[0, :2] = (0, 0, 4, 4), (6, 6, 9, 9)
    boxes = np.array([[(0, 0, 4, 5), (0, 0, 5, 5), (6, 6, 9, 9), (20, 20, 30, 30)]], float)
    scores = np.array([0.9, 0.8, 0.3, 0.7])
    outputs = {"scores": np.stack([1 - scores, scores], axis=1)[None], "boxes": boxes}
    assert found(outputs, SimpleNamespace(labels=labels)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_tests_of_a_custom_package(path: Path, place: Path) -> None:
    checks = [own for name, own in runpy.run_path(str(path)).items() if name.startswith("test_")]
    assert checks
    for check in checks:
        check()


@pytest.mark.parametrize("script", _scripts(".sh"))
def test_shell(script: Path, place: Path) -> None:
    done = subprocess.run(
        ["bash", script], env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d", done.stdout.splitlines()[-1])


@pytest.mark.parametrize("book", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_runs(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells run in order."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(EXAMPLES)
    cells = [c for c in json.loads(book.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in cells:
        exec(compile("".join(cell["source"]), book.name, "exec"), names)


@pytest.mark.parametrize("book", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_is_kept_with_its_pictures(book: Path) -> None:
    cells = [c for c in json.loads(book.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kept = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in kept) >= 2
    assert all(output["output_type"] != "error" for output in kept)
