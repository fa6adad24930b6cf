"""Numbers of threads: what would bring the machine down is refused before it starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onnxdecomp
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import environment
from onnxdecomp.runtime.session import open_session
from tests.builders.commands import QUICK, command, files
from tests.builders.models import network

MOST = 4 * (os.cpu_count() or 1)
MANY = MOST + 1


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "line",
    [
        ("compress", "net.onnx", *QUICK, "--threads", MANY),
        ("compress", "net.onnx", "--method", "tucker", "--rank", "4", "--bench-threads", MANY),
        ("compress", "net.onnx", *QUICK, "--dry-run", "--threads", MANY),
        ("verify", "net.onnx", "net.onnx", "--threads", MANY),
        ("bench", "net.onnx", "--threads", MANY),
        ("bench", "net.onnx", "--threads", 1, "--threads", MANY),
    ],
    ids=lambda line: " ".join(map(str, line)),
)
def test_on_the_command_line(line: tuple[object, ...], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = command(capsys, *line)
    outcome.is_error(2, f"{MANY} threads", f"at most {MOST}")
    assert files() == ["net.onnx"]


@pytest.mark.parametrize("count", [MANY, 9999, -1])
@pytest.mark.parametrize(
    "call",
    [
        lambda n: onnxdecomp.compress("net.onnx", threads=n, rank="4"),
        lambda n: onnxdecomp.compress("net.onnx", bench_threads=(1, n), rank="4"),
        lambda n: onnxdecomp.bench(["net.onnx"], threads=(n,)),
        lambda n: onnxdecomp.verify("net.onnx", "net.onnx", threads=n),
        lambda n: open_session("net.onnx", threads=n),
        lambda n: open_session("net.onnx", inter_op=n),
    ],
    ids=["compress", "bench_threads", "bench", "verify", "threads", "inter_op"],
)
def test_in_python(call: Callable[[int], Any], count: int) -> None:
    with pytest.raises(UsageError, match="threads"):
        call(count)


@pytest.mark.parametrize("count", [MANY, -1])
def test_of_training(count: int) -> None:
    with pytest.raises(UsageError, match="threads"):
        onnxdecomp.finetune("net.onnx", data=[], threads=count)


def test_some_more_than_the_cores_are_allowed() -> None:
    environment.check_threads(None, 0, 1, MOST)
    assert environment.most_threads() == MOST
