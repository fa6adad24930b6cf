"""Executors: what people name, refused before the work; plans carried out elsewhere give the same bytes."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import onnxdecomp
from onnxdecomp.apply import stages_ahead
from onnxdecomp.apply.stages_ahead import StagesTask, do
from onnxdecomp.errors import UsageError
from onnxdecomp.tasks.executors import ExecutorSpec, opened, parse_executor
from onnxdecomp.workflow.compress import compress_by
from onnxdecomp.workflow.config import CompressConfig
from tests.workflow.test_targets import filled, wide
from tests.workflow.test_workdir import OPTIONS, entries, made

TARGET = "macs=3x"
"""More than one plan is tried for it."""


@pytest.mark.parametrize(
    ("text", "kind", "count", "where"),
    [
        ("serial", "serial", None, ""),
        ("processes", "processes", None, ""),
        ("processes:3", "processes", 3, ""),
        ("dask", "dask", None, ""),
        ("dask:tcp://10.0.0.1:8786", "dask", None, "tcp://10.0.0.1:8786"),
        ("my.module:pool", "callable", None, "my.module:pool"),
    ],
)
def test_executors_as_people_write_them(text: str, kind: str, count: int | None, where: str) -> None:
    assert parse_executor(text) == ExecutorSpec(text, kind, count, where)


@pytest.mark.parametrize("text", ["", "threads", "processes:0", "processes:-1", "processes:two", ":x", "m:"])
def test_what_is_no_executor_is_quoted(text: str) -> None:
    with pytest.raises(UsageError, match="--executor"):
        parse_executor(text)


def test_a_cluster_needs_a_folder(tmp_path: Path) -> None:
    config = CompressConfig.of(None, {"executor": "dask:tcp://127.0.0.1:1"})
    with pytest.raises(UsageError, match="--workdir"):
        onnxdecomp.compress(filled(tmp_path) / "net.onnx", None, config=config)


def test_what_a_callable_gives_must_be_an_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def pool(): return ThreadPoolExecutor(1)\n"
        "def number(): return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    with opened(parse_executor("mine.py:pool")) as pool:
        assert isinstance(pool, ThreadPoolExecutor)
        assert pool.submit(len, "abc").result() == 3
    with pytest.raises(UsageError, match="gives a int"), opened(parse_executor("mine.py:number")):
        pass


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a model, and the hash of what a serial run makes of it."""
    folder = filled(tmp_path_factory.mktemp("serial"), wide)
    return folder, made(folder, TARGET)


def test_tasks_are_done_elsewhere_and_the_bytes_are_those_of_a_serial_run(
    serial: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every plan that is tried comes from what the tasks have kept, and is not fitted here."""
    folder, plain = serial
    done: list[StagesTask] = []

    def noted(task: StagesTask) -> None:
        do(task)
        done.append(task)

    monkeypatch.setattr(stages_ahead, "do", noted)
    with ThreadPoolExecutor(1) as pool:
        assert _by(pool, folder, tmp_path / "work") == plain
    assert len(done) >= 2
    assert len({task.base for task in done}) == len(done)
    assert all((tmp_path / "work" / task.model).is_file() for task in done)
    before = entries(tmp_path / "work")
    for task in done:  # again: nothing is changed
        do(replace(task))
    assert entries(tmp_path / "work") == before


def test_a_task_that_fails_is_done_here(
    serial: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = serial

    def never(_: StagesTask) -> None:
        raise RuntimeError("this worker is broken")

    monkeypatch.setattr(stages_ahead, "do", never)
    with ThreadPoolExecutor(1) as pool:
        assert _by(pool, folder, tmp_path / "work") == plain


def test_processes_give_the_bytes_of_a_serial_run(serial: tuple[Path, str]) -> None:
    pytest.importorskip("loky", reason="needs the extra 'cluster'")
    folder, plain = serial
    assert made(folder, TARGET, executor="processes:1") == plain


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_a_dask_cluster_of_which_a_worker_is_killed(
    serial: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two worker processes, of which the first that begins a task is killed in it."""
    distributed = pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    folder, plain = serial
    work = tmp_path / "work"
    monkeypatch.setattr(stages_ahead, "do", _killing)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None
    ) as cluster:
        assert made(folder, TARGET, workdir=work, executor=f"dask:{cluster.scheduler_address}") == plain
    killed = (work / "killed").read_text()
    assert killed.isdecimal()


def _killing(task: StagesTask) -> None:
    """Do a task; the process of the first dies in the middle of it."""
    mark = Path(task.folder) / "killed"
    try:
        with mark.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        do(task)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def _by(pool: Any, folder: Path, work: Path) -> str:
    """The hash of what a run with this executor writes."""
    options = {**OPTIONS, "calib": str(folder / "calib.npz"), "workdir": work, "target": TARGET}
    result = compress_by(pool, folder / "net.onnx", folder / "by.onnx", CompressConfig.of(None, options))
    return str(result.record["output"]["sha256"])
