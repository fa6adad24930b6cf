"""What `pip install onnxdecomp` brings is whole: built as for PyPI, and tried without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.package


def run(*line: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a Python module that must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, line)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built of it."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (source,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return source, wheel


def test_the_index_would_take_both(built: tuple[Path, Path], tmp_path: Path) -> None:
    told = run("-m", "twine", "check", "--strict", *built, cwd=tmp_path)
    assert told.count("PASSED") == 2


def test_the_source_distribution_has_what_the_site_and_the_tests_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "mkdocs.yml",
        "docs/index.md",
        "tests/conftest.py",
        "bench/pages.py",
        "models/digits.onnx",
    } <= names


def test_the_wheel_holds_both_packages_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"onnxdecomp", "onnxdecomp_passes"}
    assert {"onnxdecomp/report/record-1.schema.json", "onnxdecomp/workflow/recipes/safest.toml"} <= set(names)


def test_the_demo_runs_from_the_wheel_alone(built: tuple[Path, Path], tmp_path: Path) -> None:
    """With the dependencies of this environment, but neither the repository nor an editable installation."""
    place = tmp_path / "installed"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", place, built[1], cwd=tmp_path)
    code = f"import onnxdecomp as o; assert o.__file__.startswith({str(place)!r}), o.__file__"
    run("-c", code, cwd=tmp_path, PYTHONPATH=str(place))
    told = run("-m", "onnxdecomp.cli.main", "demo", "here", cwd=tmp_path, PYTHONPATH=str(place))
    assert "accuracy  99.80 % -> 99.80 %" in told
    assert {file.name for file in (tmp_path / "here").iterdir()} == {
        "digits.onnx",
        "digits.small.onnx",
        "digits_test.npz",
    }
