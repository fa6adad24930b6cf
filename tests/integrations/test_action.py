"""The GitHub Action: its scripts run as the action runs them, with a `gh` that keeps what it is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.commands import environment
from tests.builders.models import network
from tests.conftest import ROOT

ACTION = ROOT / ".github" / "actions" / "compare"

pytestmark = pytest.mark.skipif(not ACTION.is_dir(), reason="the distributions have no action")

GH = """#!/bin/sh
printf '%s ' "$@" >>"$CALLS"
echo >>"$CALLS"
for word in "$@"; do case $word in body=@*) cp "${word#body=@}" "$BODY";; esac; done
case $* in *--paginate*) printf '%s' "$KNOWN";; esac
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, where `onnxdecomp` and `gh` are commands."""
    tools = tmp_path / "bin"
    tools.mkdir()
    line = f'#!/bin/sh\nexec "{sys.executable}" -m onnxdecomp.cli.main "$@"\n'
    for name, content in (("onnxdecomp", line), ("gh", GH)):
        (tools / name).write_text(content, encoding="utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    network(tmp_path / "large.onnx", channels=32)
    network(tmp_path / "small.onnx", channels=32)
    return tmp_path


def bash(script: str, **given: object) -> subprocess.CompletedProcess[str]:
    inside = {**environment(), **{name: str(value) for name, value in given.items()}}
    return subprocess.run(
        ["bash", ACTION / script], env=inside, capture_output=True, text=True, check=False, timeout=120
    )


def compared(place: Path, gate: str) -> dict[str, str]:
    """What the action's first step leaves as outputs."""
    empty = {"DATA": "", "METRIC": "", "ARGUMENTS": "--threads 1 --warmup 1"}
    done = bash(
        "bench.sh",
        ORIGINAL="large.onnx", MODELS="small.onnx", GATE=gate, DURATION="0.05", FOLDER=place / "out",
        GITHUB_OUTPUT=place / "outputs", GITHUB_STEP_SUMMARY=place / "summary.md", **empty,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (place / "outputs").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines)


def comment(place: Path, known: str) -> tuple[str, str]:
    """What `gh` was called with, and the text of the comment."""
    done = bash(
        "comment.sh",
        NAME="models", REPOSITORY="someone/project", NUMBER=7, KNOWN=known, CALLS=place / "calls",
        BODY=place / "body", REPORT=place / "out" / "report.md", ERROR=place / "out" / "error.txt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (place / "calls").read_text(encoding="utf-8"), (place / "body").read_text(encoding="utf-8")


def test_a_gate_that_fails_is_commented_with_its_reason(place: Path) -> None:
    outputs = compared(place, "size<0.5")
    assert (outputs["code"], outputs["passed"]) == ("1", "false")
    assert Path(outputs["record"]).is_file()
    assert "small.onnx" in (place / "summary.md").read_text(encoding="utf-8")
    calls, body = comment(place, known="")
    assert "--method POST repos/someone/project/issues/7/comments" in calls
    assert body.startswith("<!-- onnxdecomp: models -->\n**the gate failed: small.onnx")
    assert "size < 0.5 is wanted" in body
    assert "## onnxdecomp" in body


def test_a_comment_of_the_same_name_is_brought_up_to_date(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "report.md").write_text("## a report\n", encoding="utf-8")
    calls, body = comment(place, known="4711\n")
    assert "--method PATCH repos/someone/project/issues/comments/4711" in calls
    assert "POST" not in calls
    assert body == "<!-- onnxdecomp: models -->\n## a report\n"


def test_the_action_passes_what_it_declares_and_scripts_get_what_they_read() -> None:
    """Inputs stand in `env` alone: what somebody writes into one is never part of a script."""
    text = (ACTION / "action.yml").read_text(encoding="utf-8")
    declared = set(re.findall(r"^  (\w+):$", text.partition("outputs:")[0], re.M))
    assert {"original", "models", "gate", "data", "metric", "comment"} <= declared
    assert set(re.findall(r"inputs\.(\w+)", text)) == declared
    assert not re.search(r"run:.*\$\{\{", text)
    for script in ("bench.sh", "comment.sh"):
        assert f"$GITHUB_ACTION_PATH/{script}" in text
        read = set(re.findall(r"\$\{?([A-Z]\w*)", (ACTION / script).read_text(encoding="utf-8")))
        given = set(re.findall(r"^        ([A-Z_]+): ", text, re.M))
        assert {name for name in read if not name.startswith("GITHUB_")} <= given
