"""Fleets: many models from one file, a table at the end, and mistakes found before the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.workflow.fleet import compress_fleet, read_fleet
from tests.builders.commands import command
from tests.workflow.test_targets import filled

FLEET = """
[defaults]
simplify = "none"
bench = false
method = "svd"
calib = "calib.npz"

[[model]]
file = "net.onnx"
target = "macs=1.5x"
output = "a.onnx"

[[model]]
file = "missing.onnx"
target = "macs=1.5x"

[[model]]
file = "net.onnx"
rank = "0.5"
output = "b.onnx"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (filled(tmp_path) / "models.toml").write_text(FLEET)
    return tmp_path


def test_each_model_has_its_own_options_and_a_failure_stops_no_other(folder: Path) -> None:
    members = read_fleet(folder / "models.toml", {"seed": 3})
    assert [member.config.seed for member in members] == [3, 3, 3]
    assert [member.config.target or member.config.rank for member in members] == ["macs=1.5x"] * 2 + ["0.5"]
    assert members[1].output == folder / "missing.svd.onnx"
    first, second, third = compress_fleet(members)
    assert first.result is not None
    assert first.result.record["totals"]["macs"]["ratio"] >= 1.5
    assert (second.result, second.code) == (None, 3)
    assert "missing.onnx" in second.error
    assert third.result is not None
    assert {path.name for path in folder.glob("*.onnx")} == {"net.onnx", "a.onnx", "b.onnx"}


def test_the_command_ends_with_a_table_and_the_code_of_the_first_that_failed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    file = f"{folder.name}/models.toml"
    done = command(capsys, "compress", "--batch", file, "--json", f"{folder.name}/all.json")
    assert done.code == 3
    lines = [line for line in done.out.splitlines() if line.strip()]
    assert lines[0].split()[:4] == ["model", "layers", "MACs", "file"]
    assert [line.split()[0] for line in lines if ".onnx" in line] == ["net.onnx", "missing.onnx", "net.onnx"]
    held = json.loads((folder / "all.json").read_text())
    assert [one["exit_code"] for one in held["models"]] == [0, 3, 0]
    assert held["models"][0]["record"]["output"]["sha256"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no model"),
        ("[[model]]\ntarget = 'macs=2x'", "model 1: 'file' names the model"),
        ("[[model]]\nfile = 'a.onnx'\ntaget = 'macs=2x'", "did you mean 'target'"),
        ("[[model]]\nfile = 'a.onnx'\ntarget = 'makks=2x'", "model 1"),
        ("[[model]]\nfile = 'a.onnx'\nexecutor = 'serial'", "--executor"),
        ("[defaults]\nfile = 'a.onnx'\n[[model]]\nfile = 'a.onnx'", "defaults"),
        ("[[model]]\nfile = 'a.onnx'\n[[model]]\nfile = 'a.onnx'", "would both go to"),
        ("[models]\n", "what is 'models'"),
        ("model = 3", "names no model"),
        ("[[model", "is not valid TOML"),
    ],
)
def test_mistakes_are_found_before_the_work(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=told):
        read_fleet(file, {})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("net.onnx", "--batch", "models.toml"), "MODEL"),
        (("--batch", "models.toml", "-o", "x.onnx"), "--output"),
        (("--batch", "nothing.toml"), "cannot read"),
        (("--batch", "two"), "two"),
        (("--batch", "8"), "MODEL"),
        ((), "MODEL"),
    ],
)
def test_what_does_not_go_with_many_models(
    arguments: tuple[str, ...],
    told: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    done = command(capsys, "compress", *arguments)
    assert done.code == 2
    assert told in done.err
