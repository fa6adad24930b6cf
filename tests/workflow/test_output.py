"""What goes to stdout and into files."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onnxdecomp.cli import console
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import jsonio


@dataclass(frozen=True)
class Value:
    number: float
    shape: tuple[int, ...]


def test_plain_values() -> None:
    value = {
        "a": Value(math.nan, (1, 2)),
        "b": [np.float32(math.inf), np.int64(3), np.bool_(True), np.array([1.0, math.nan])],
        1: Path("x") / "y",
        "c": None,
    }
    assert jsonio.plain(value) == {
        "a": {"number": None, "shape": [1, 2]},
        "b": [None, 3, True, [1.0, None]],
        "1": os.path.join("x", "y"),  # noqa: PTH118
        "c": None,
    }
    assert type(jsonio.plain(np.float64(0.5))) is float
    with pytest.raises(TypeError, match="object has no JSON form"):
        jsonio.plain(object())


def test_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonio.dump(Value(1.5, ()), "-")
    assert json.loads(capsys.readouterr().out) == {"number": 1.5, "shape": []}
    target = tmp_path / "v.json"
    target.write_text("before")
    with pytest.raises(TypeError):
        jsonio.dump(object(), target)
    assert target.read_text() == "before"
    jsonio.dump([1], target)
    assert json.loads(target.read_text()) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["v.json"]
    with pytest.raises(UsageError, match="cannot write"):
        jsonio.dump([1], tmp_path / "missing" / "v.json")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UsageError, match="No space left"):
        jsonio.dump([1], tmp_path / "v.json")
    assert list(tmp_path.iterdir()) == []


def test_tables_off_a_terminal_are_plain_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    long = "layer[0]/" * 40
    console.show(console.table("T", ("name", "n"), [(long, 5), ("[bold]", 12)]))
    lines = stream.getvalue().splitlines()
    assert any(long in line for line in lines)
    assert any("[bold]" in line for line in lines)
    assert "\x1b" not in stream.getvalue()
    ends = {line.rstrip().rfind(digit) for line in lines for digit in "52" if line.rstrip().endswith(digit)}
    assert len(ends) == 1  # numbers stand right-aligned


def test_progress_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("working", 3) as advance:
        advance()
        advance("other step", 2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
