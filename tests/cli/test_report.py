"""--report, --markdown and the report command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders.commands import QUICK, command, files, process

Capsys = pytest.CaptureFixture[str]


def test_compress_writes_what_report_makes_again(model: Path, capsys: Capsys) -> None:
    line = ("compress", model, *QUICK, "--json", "run.json", "--report", "a.html", "--markdown", "a.md")
    assert command(capsys, *line).code == 0
    done = command(capsys, "report", "run.json", "-o", "b.html", "--markdown", "b.md")
    assert (done.code, done.out) == (0, "wrote  b.html\n")
    assert Path("a.html").read_text(encoding="utf-8") == Path("b.html").read_text(encoding="utf-8")
    assert Path("a.md").read_text(encoding="utf-8") == Path("b.md").read_text(encoding="utf-8")
    assert "onnxdecomp compress" in Path("a.md").read_text(encoding="utf-8")


def test_names_and_streams(model: Path, capsys: Capsys) -> None:
    assert command(capsys, "inspect", model, "--json", "plan.json").code == 0
    assert command(capsys, "report", "plan.json").code == 0
    assert files() == ["net.onnx", "plan.html", "plan.json"]
    done = command(capsys, "report", "plan.json", "--markdown", "-")
    assert done.out.startswith("## onnxdecomp: `net.onnx`")
    record = Path("plan.json").read_text(encoding="utf-8")
    piped = process("report", "-", "--markdown", "-", input=record, cwd=model.parent)
    assert (piped.code, piped.out) == (0, done.out)


def test_bench_writes_a_report(model: Path, capsys: Capsys) -> None:
    line = ("bench", model, model, "--iterations", 3, "--no-memory", "--report", "b.html", "--markdown", "-")
    done = command(capsys, *line)
    assert done.code == 0
    assert "net.onnx (2)" in done.out
    assert "net.onnx (2)" in Path("b.html").read_text(encoding="utf-8")


def test_records_of_another_kind_do_not_go_together(model: Path, capsys: Capsys) -> None:
    assert command(capsys, "inspect", model, "--json", "plan.json").code == 0
    done = command(capsys, "report", "plan.json", "plan.json")
    done.is_error(2, "only records of finetune are shown on one page, not of plan")
    assert files() == ["net.onnx", "plan.json"]


def test_the_schema_is_printed(capsys: Capsys) -> None:
    done = command(capsys, "report", "--schema")
    assert done.code == 0
    assert json.loads(done.out)["$schema"].startswith("https://json-schema.org/")


def test_bad_requests(model: Path, capsys: Capsys) -> None:
    for line, said in (
        (("report",), "name the record"),
        (("report", "missing.json"), "cannot read missing.json"),
        (("report", "net.onnx"), "is no"),
        (("compress", model, *QUICK, "--report", "-"), "--report writes a file"),
        (("compress", model, *QUICK, "--report", "nowhere/a.html"), "there is no folder"),
        (("compress", model, *QUICK, "--report", "net.onnx"), "--report writes a page"),
        (("compress", model, *QUICK, "--markdown", "net.onnx"), "--markdown writes Markdown"),
    ):
        command(capsys, *line).is_error(2, said)
    assert files() == ["net.onnx"]


def test_without_the_extra(model: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name in ("jinja2", "matplotlib") else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    done = command(capsys, "compress", model, *QUICK, "--report", "a.html")
    done.is_error(2, "reports need jinja2, matplotlib", "pip install 'onnxdecomp[report]'")
    assert files() == ["net.onnx"]  # found before the work
    command(capsys, "compress", model, *QUICK, "--json", "run.json")
    command(capsys, "report", "run.json").is_error(2, "pip install 'onnxdecomp[report]'")
