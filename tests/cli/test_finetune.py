"""finetune, and compress --finetune, as commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.builders.commands import QUICK, command, environment, files
from tests.builders.feeds import samples


@pytest.fixture
def small(model: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A compressed model and samples beside its original."""
    assert command(capsys, "compress", model, "-o", "small.onnx", *QUICK, "--no-verify").code == 0
    samples(Path("data.npz"), count=12)
    return Path("small.onnx")


def test_it_writes_a_better_model(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = command(
        capsys,
        *("finetune", small, "--teacher", "net.onnx", "--data", "data.npz", "--epochs", "3", "--batch", "4"),
        *("--rate", "0.01", "--json", "run.json"),
    )
    assert done.code == 0, done.err
    assert "written: small.finetuned.onnx" in done.out
    assert "(kept)" in done.out
    record = json.loads(Path("run.json").read_text())
    first, *_, last = record["training"]["epochs"]
    assert last["held_out"] < first["held_out"]
    assert record["run"]["command"].startswith("onnxdecomp finetune small.onnx")
    assert command(capsys, "report", "run.json", "-o", "page.html").code == 0
    assert "Training" in Path("page.html").read_text()
    assert command(capsys, "report", "run.json", "run.json").code == 0
    both = Path("report.html").read_text()
    assert "small.finetuned.onnx (1)" in both
    assert "small.finetuned.onnx (2)" in both
    assert files() == [
        "data.npz",
        "net.onnx",
        "page.html",
        "report.html",
        "run.json",
        "small.finetuned.onnx",
        "small.onnx",
    ]


def test_in_one_go(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples(Path("data.npz"), count=12)
    done = command(
        capsys,
        *("compress", model, "-o", "small.onnx", *QUICK, "--calib", "data.npz"),
        *("--finetune", "epochs=2,batch=4,rate=1e-2", "--json", "-"),
    )
    assert done.code == 0, done.err
    training = json.loads(done.out)["training"]
    assert training["settings"]["epochs"] == 2
    assert len(training["epochs"]) == 3


def test_a_training_that_won_nothing_says_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples(Path("data.npz"), count=12)
    done = command(
        capsys,
        *("compress", model, "-o", "small.onnx", *QUICK, "--calib", "data.npz"),
        *("--finetune", "epochs=1,batch=4,rate=1", "--json", "-"),
    )
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["training"]["best"] == 0
    assert any(note.startswith("finetune: no epoch was better") for note in record["notes"])
    assert "no epoch was better" in done.err


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("--data", "missing.npz"), ("missing.npz",)),
        (("--data", "data.npz", "--teacher", "net.onnx", "-o", "small.onnx"), ("--overwrite",)),
        (("--data", "data.npz", "--teacher", "net.onnx", "--epochs", "0"), ("epochs must be at least 1",)),
        (("--data", "data.npz"), ("--teacher", "labels")),
        (("--data", "data.npz", "--teacher", "net.onnx", "--loss", "kl"), ("no output is a row of scores",)),
        (("--data", "data.npz", "--teacher", "net.onnx", "--augment", "spin"), ("augment is of flip, crop",)),
        (("--teacher", "net.onnx"), ("--data",)),
    ],
)
def test_bad_requests(
    small: Path, arguments: tuple[str, ...], fragments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = small.read_bytes()
    command(capsys, "finetune", small, *arguments).is_error(2, *fragments)
    assert files() == ["data.npz", "net.onnx", "small.onnx"]
    assert small.read_bytes() == before


def test_a_teacher_that_is_no_model(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.onnx").write_bytes(Path("net.onnx").read_bytes()[:-100])
    for name in ("missing.onnx", "broken.onnx"):
        done = command(capsys, "finetune", small, "--teacher", name, "--data", "data.npz")
        done.is_error(3, name)


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        (("--finetune", "epochs=2"), "--calib"),
        (("--calib", "data.npz", "--finetune", "epoch=2"), "no setting 'epoch'"),
        (("--calib", "data.npz", "--finetune", "epochs=2", "--quantize", "int8"), "before quantization"),
    ],
)
def test_bad_requests_of_compress(
    model: Path, more: tuple[str, ...], fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    samples(Path("data.npz"), count=4)
    command(capsys, "compress", model, "-o", "small.onnx", *QUICK, *more).is_error(2, fragment)
    assert files() == ["data.npz", "net.onnx"]


def test_without_torch(small: Path) -> None:
    """The extra is named; nothing else of the tool imports torch."""
    import subprocess

    program = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "sys.modules['torch'] = None\n"
        "from onnxdecomp.cli.main import main; main(sys.argv[1:])"
    )
    for arguments, code in (
        (("finetune", small, "--teacher", "net.onnx", "--data", "data.npz"), 2),
        (("compress", "net.onnx", "-o", "again.onnx", *QUICK), 0),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert ("onnxdecomp[train]" in done.stderr) == (code == 2)
