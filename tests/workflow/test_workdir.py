"""Work folders: a run goes on where it was ended, with the same bytes, whatever ended it and where."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxdecomp
from onnxdecomp.calibration.activation_cache import Window
from onnxdecomp.errors import UsageError
from onnxdecomp.search import layer_profiles
from onnxdecomp.tasks.store import Store
from onnxdecomp.workflow.config import CompressConfig
from tests.conftest import ROOT
from tests.workflow.test_targets import filled, wide

OPTIONS = {"simplify": "none", "bench": False, "method": "tucker,svd,width", "overwrite": True}


def made(folder: Path, target: str = "macs=2x", **options: Any) -> str:
    """The hash of what a run writes."""
    config = CompressConfig.of(None, {**OPTIONS, "calib": str(folder / "calib.npz"), **options})
    result = onnxdecomp.compress(folder / "net.onnx", folder / "new.onnx", config=config, target=target)
    assert result.changed
    return str(result.record["output"]["sha256"])


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("entries/*/*.npz"))


def test_the_same_bytes_from_any_part_of_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing, all, and any part of the entries; with all of them no activation is computed again."""
    filled(tmp_path, wide)
    work = tmp_path / "work"
    plain = made(tmp_path)
    assert made(tmp_path, workdir=work) == plain
    kept = entries(work)
    assert kept
    looks: list[object] = []
    advance = Window.advance
    with monkeypatch.context() as patched:

        def noted(window: Window, names: Sequence[str], pending: Collection[ir.Node] = ()) -> object:
            looks.append(names)
            return advance(window, names, pending)

        patched.setattr(Window, "advance", noted)
        assert made(tmp_path, workdir=work) == plain
    assert looks == []
    assert entries(work) == kept
    draw = random.Random(0)
    for share in (0.4,):
        for path in draw.sample(kept, int(share * len(kept))):
            path.unlink()
        assert made(tmp_path, workdir=work) == plain
        assert entries(work) == kept
    for path in kept[::3]:
        path.write_bytes(path.read_bytes()[:-7])
    assert made(tmp_path, workdir=work) == plain


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and work/ of a run on it."""
    folder = filled(tmp_path_factory.mktemp("begun"))
    made(folder, workdir=folder / "work")
    return folder


def test_another_target_begins_with_what_is_known_of_the_layers(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a layer was weighed again")

    monkeypatch.setattr(layer_profiles, "candidates", never)
    monkeypatch.setattr(layer_profiles, "observe_unchanged", never)
    assert made(begun, "macs=3x", workdir=begun / "work")


@pytest.mark.parametrize("other", [{"threads": 1}, {"calib": "other"}])
def test_what_depends_on_something_else_is_not_taken(begun: Path, other: dict[str, Any]) -> None:
    images = np.random.default_rng(2).standard_normal((40, 8, 8, 8), dtype=np.float32)
    np.savez(begun / "other.npz", x=images)
    if "calib" in other:
        other = {"calib": str(begun / "other.npz")}
    before = len(entries(begun / "work"))
    made(begun, workdir=begun / "work", **other)
    assert len(entries(begun / "work")) > before + 4


def test_a_folder_that_cannot_be_used_is_said_before_the_work(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "work").write_text("a file")
    with pytest.raises(UsageError, match="--workdir"):
        made(tmp_path, workdir=tmp_path / "work")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    """kill -9 as soon as some entries are there; what was being written leaves nothing that is read."""
    filled(tmp_path)
    plain = made(tmp_path)
    (tmp_path / "new.onnx").unlink()
    work = tmp_path / "work"
    options = ("--simplify", "none", "--no-bench", "--method", "tucker,svd,width", "--target", "macs=2x")
    command = [
        sys.executable,
        "-m",
        "onnxdecomp.cli.main",
        "compress",
        "net.onnx",
        "-o",
        "new.onnx",
        *options,
    ]
    command += ["--calib", "calib.npz", "--workdir", str(work)]
    path = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "passes")))}
    run = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **path}, stderr=subprocess.DEVNULL)
    while len(entries(work)) < 4 and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not (tmp_path / "new.onnx").exists()
    before = {path: path.stat().st_mtime_ns for path in entries(work)}
    whole = {path for path in before if Store(work).read(path.stem) is not None}
    assert made(tmp_path, workdir=work) == plain
    assert {path for path in whole if path.stat().st_mtime_ns != before[path]} == set()
