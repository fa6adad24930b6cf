"""Every bad input: one line that says what is wrong, the right exit code, and no file left behind."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxdecomp.graph import save as saving
from tests.builders.commands import QUICK, command, files, process
from tests.builders.feeds import samples
from tests.builders.models import network, write

Capsys = pytest.CaptureFixture[str]


def truncated(path: Path) -> Path:
    network(path)
    path.write_bytes(path.read_bytes()[:5000])
    return path


def text(path: Path) -> Path:
    path.write_text("this is no model\n" * 100)
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def absent(path: Path) -> Path:
    return path


def without_its_data(path: Path) -> Path:
    network(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    path.with_name("weights.bin").unlink()
    return path


def not_a_number(path: Path) -> Path:
    return network(path, spoil=np.nan)


def infinite(path: Path) -> Path:
    return network(path, spoil=np.inf)


def unknown_domain(path: Path) -> Path:
    node = helper.make_node("Sorcery", ["x"], ["y"], domain="com.example")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    return write(path, [node], {}, opset_imports=opsets)


def too_new(path: Path) -> Path:
    return network(path, opset_imports=[helper.make_opsetid("", 999)])


BAD_MODELS: list[tuple[Callable[[Path], Path], str]] = [
    (truncated, "truncated"),
    (text, "not an ONNX model"),
    (empty, "empty"),
    (folder, "folder"),
    (absent, "no such file"),
    (without_its_data, "weights.bin"),
    (unknown_domain, "com.example"),
    (too_new, "opset 999"),
]


@pytest.mark.parametrize("make", [not_a_number, infinite])
def test_a_weight_that_is_not_finite_stays(
    make: Callable[[Path], Path], tmp_path: Path, capsys: Capsys
) -> None:
    done = command(capsys, "compress", make(tmp_path / "net.onnx"), "-o", tmp_path / "out.onnx", *QUICK)
    assert done.code == 0
    assert "c2: its weight holds NaN or infinite values" in done.out


@pytest.mark.parametrize(("make", "fragment"), BAD_MODELS)
def test_bad_models(make: Callable[[Path], Path], fragment: str, tmp_path: Path, capsys: Capsys) -> None:
    path = make(tmp_path / "bad.onnx")
    before = sorted(tmp_path.iterdir())
    outcome = command(capsys, "compress", path, "-o", tmp_path / "out.onnx", *QUICK)
    outcome.is_error(3, fragment, "bad.onnx")
    assert sorted(tmp_path.iterdir()) == before


BAD_REQUESTS = [
    (["--rank", "0"], "rank"),
    (["--rank", "-3"], "rank"),
    (["--rank", "nan"], "rank"),
    (["--rank", "1000,1000"], "fits no layer"),
    (["--rank", "1,2,3"], "rank"),
    (["--rank", "energy=2"], "energy"),
    (["--rank", "lots"], "lots"),
    (["--method", "tukcer"], "did you mean 'tucker'"),
    (["--layer", "c*"], "PATTERN=METHOD"),
    (["--layer", "c*=svd:sweeps=3"], "sweeps"),
    (["--rank-multiple", "0"], "rank multiple"),
    (["--rnak", "4"], "--rank"),
    (["--include", "head*"], "'head*'"),
    (["--exclude", "head*"], "'head*'"),
    (["--must-save", "all"], "--must-save"),
    (["--simplify", "magic"], "--simplify"),
    (["--max-error", "-1"], "--max-error"),
    (["--threads", "0"], "--threads"),
    (["--seed", "x"], "--seed"),
    (["--samples", "0"], "--samples"),
    (["--input-shape", "1x3"], "--input-shape"),
    (["--provider", "gpu"], "unknown provider 'gpu'"),
    (["--eval", "nothing.npz"], "nothing.npz"),
    (["--config", "nothing.toml"], "nothing.toml"),
    (["--json", "missing/run.json"], "missing"),
    (["--json", "net.onnx"], "--json writes JSON"),
    (["--json", "inputs.npz"], "--json writes JSON, not arrays"),
    (["-o", "missing/out.onnx"], "missing"),
    (["-o", "."], "folder"),
    (["-o", "net.onnx"], "--overwrite"),
    (["another.onnx"], "another.onnx"),
    (["--method", "tucker", "--tucker-tolerance", "nan"], "tolerance=nan"),
    (["--method", "cp", "--cp-starts", "0"], "starts=0"),
    (["--method", "btd", "--btd-blocks", "-1"], "blocks=-1"),
    (["--method", "tr", "--tr-starts", "0", "--tr-random-starts", "0"], "needs one to begin with"),
    (["--method", "tt", "--tt-order", "99"], "order 99"),
    (["--method", "ht", "--ht-order", "99"], "order 99"),
    (["--layer", "c*=svd:rank=4:rank=5"], "gives rank, an option of one rule twice"),
    (["--target", ""], "--target is given an empty value"),
    (["--rank="], "--rank is given an empty value"),
    ([""], "an argument is empty"),
]


@pytest.mark.parametrize(("wrong", "fragment"), BAD_REQUESTS)
def test_bad_requests(wrong: list[str], fragment: str, model: Path, capsys: Capsys) -> None:
    content = model.read_bytes()
    quick = [*QUICK, "-o", "out.onnx"]
    command(capsys, "compress", model, *quick, *wrong).is_error(2, fragment)
    assert files() == ["net.onnx"]
    assert model.read_bytes() == content


def test_a_model_is_not_written_by_the_name_of_something_else(model: Path, capsys: Capsys) -> None:
    for name in ("out.txt", "out.JSON"):
        command(capsys, "compress", model, *QUICK, "-o", name).is_error(2, f"{name}: an ONNX model")
    assert command(capsys, "compress", model, *QUICK, "-o", "out.v2").code == 0
    assert files() == ["net.onnx", "out.v2"]


def test_an_output_that_exists_stays(model: Path, capsys: Capsys) -> None:
    out = model.with_name("net.tucker.onnx")
    out.write_text("precious")
    command(capsys, "compress", model, *QUICK).is_error(2, "exists already", "--overwrite")
    assert out.read_text() == "precious"
    assert command(capsys, "compress", model, *QUICK, "--overwrite").code == 0
    onnx.checker.check_model(onnx.load(out))


def test_the_input_can_be_overwritten_if_asked(model: Path, capsys: Capsys) -> None:
    before = model.read_bytes()
    assert command(capsys, "compress", model, "-o", model, *QUICK, "--overwrite").code == 0
    assert len(model.read_bytes()) < len(before)
    assert files() == ["net.onnx"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(model: Path, capsys: Capsys) -> None:
    sealed = model.with_name("sealed")
    sealed.mkdir(mode=0o500)
    command(capsys, "compress", model, *QUICK, "-o", sealed / "o.onnx").is_error(2, "not writable")
    command(capsys, "compress", model, *QUICK, "--json", sealed / "o.json").is_error(2, "not writable")


def test_a_folder_that_cannot_be_written_after_all(
    model: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What root meets on a read-only file system: the permission bits say yes.
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", refuse)
    command(capsys, "compress", model, *QUICK, "-o", "out.onnx").is_error(2, "out.onnx", "Read-only")
    assert files() == ["net.onnx"]


def test_no_space_left(model: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "_sync", full)
    command(capsys, "compress", model, *QUICK).is_error(2, "the disk is full")
    assert files() == ["net.onnx"]


def test_no_space_left_at_the_last_step(model: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target == Path("net.tucker.onnx").absolute():
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    command(capsys, "compress", model, *QUICK).is_error(2, "No space left")
    assert files() == ["net.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_a_file_size_limit(tmp_path: Path) -> None:
    import resource

    network(tmp_path / "net.onnx", channels=64)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    outcome = process("compress", "net.onnx", *QUICK, "-o", "out.onnx", cwd=tmp_path, preexec_fn=limit)
    outcome.is_error(2, "out.onnx", "large")
    assert files(tmp_path) == ["net.onnx"]


BAD_DATA: list[tuple[dict[str, Any], str]] = [
    ({"x": np.zeros((0, 8, 8, 8), np.float32)}, "empty"),
    ({"input": np.zeros((1, 8, 8, 8), np.float32)}, "no array for the input 'x'"),
    ({"x": np.full((2, 8, 8, 8), np.nan, np.float32)}, "NaN"),
    ({"x": np.zeros((2, 9, 8, 8), np.float32)}, "shape"),
    ({"x": np.zeros((2, 8, 8, 8), np.int64)}, "int64"),
    ({"x": np.zeros((2, 8, 8, 8), np.float32), "labels": np.zeros((3,), np.int64)}, "labels"),
]


@pytest.mark.parametrize(("arrays", "fragment"), BAD_DATA)
def test_bad_data(arrays: dict[str, Any], fragment: str, model: Path, capsys: Capsys) -> None:
    data = samples(model.with_name("data.npz"), **arrays)
    before = files()
    command(capsys, "compress", model, *QUICK, "--eval", data).is_error(2, fragment)
    command(capsys, "verify", model, model, "--data", data).is_error(2, fragment)
    assert files() == before


def test_an_empty_folder_as_data(model: Path, capsys: Capsys) -> None:
    empty = folder(model.with_name("data"))
    command(capsys, "compress", model, *QUICK, "--eval", empty).is_error(2, "no .npz file")


def test_bad_data_is_found_before_the_work(
    model: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxdecomp.pipeline import pipeline

    def work(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(pipeline, "run", work)
    data = samples(model.with_name("data.npz"), z=np.zeros(3))
    command(capsys, "compress", model, *QUICK, "--eval", data).is_error(2, "'x'")


BAD_CONFIGURATIONS = [
    ("pipeline = [", "not valid TOML"),
    ('pipeline = "decompose"', "list"),
    ('pipeline = ["decompose", "polish"]', "unknown pass 'polish'"),
    ("[decompose]\nrnak = '4'", "did you mean 'rank'"),
    ("[decompose]\nrank = 4", "must be text"),
    ("[decompose]\nmethod = 'magic'", "unknown method"),
    ("[decompose.options.tucker]\nmax_sweeps = 'many'", "max_sweeps"),
    ('pipeline = ["simplify"]\n[decompose]\nrank = "4"', "lacks"),
]


@pytest.mark.parametrize(("content", "fragment"), BAD_CONFIGURATIONS)
def test_bad_configurations(content: str, fragment: str, model: Path, capsys: Capsys) -> None:
    config = model.with_name("pipeline.toml")
    config.write_text(content)
    command(capsys, "compress", model, "--config", config).is_error(2, fragment)
    command(capsys, "inspect", model, "--config", config).is_error(2, fragment)


def test_a_provider_that_does_not_start(model: Path, capsys: Capsys) -> None:
    for arguments in (
        ("compress", model, *QUICK, "--provider", "qnn"),
        ("verify", model, model, "--provider", "qnn"),
        ("bench", model, "--provider", "qnn"),
    ):
        command(capsys, *arguments).is_error(4, "QNN", "doctor")
    assert files() == ["net.onnx"]


def test_nothing_to_decompose(model: Path, capsys: Capsys) -> None:
    network_of_one = write(model.with_name("relu.onnx"), [helper.make_node("Relu", ["x"], ["y"])], {})
    before = files()
    only = ("compress", network_of_one, *QUICK)
    command(capsys, *only, "--fail-if-unchanged").is_error(5, "nothing was decomposed")
    assert files() == before
    unchanged = command(capsys, *only)
    assert unchanged.code == 0
    assert "nothing was decomposed" in unchanged.out
    assert Path("relu.tucker.onnx").read_bytes() == network_of_one.read_bytes()


def test_an_error_above_the_limit(model: Path, capsys: Capsys) -> None:
    outcome = command(capsys, "compress", model, *QUICK, "--max-error", "1e-6", "--json", "run.json")
    outcome.is_error(1, "verification failed", "1e-06", "rank")
    assert files() == ["net.onnx"]


def test_a_bug_is_reported_in_one_line(model: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxdecomp.workflow import finish_result

    def defect(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a line\nand another")

    monkeypatch.setattr(finish_result, "check_lowering", defect)
    command(capsys, "compress", model, *QUICK).is_error(3, "ZeroDivisionError", "--debug")
    assert files() == ["net.onnx"]


@pytest.mark.parametrize("position", ["before", "after"])
def test_debug_shows_the_traceback(position: str, model: Path, capsys: Capsys) -> None:
    line = ["inspect", str(model), "--method", "magic"]
    outcome = command(capsys, *(["--debug", *line] if position == "before" else [*line, "--debug"]))
    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("onnxdecomp: error: unknown method 'magic'")


def test_models_that_do_not_load_in_the_other_commands(tmp_path: Path, capsys: Capsys) -> None:
    good, bad = network(tmp_path / "good.onnx"), text(tmp_path / "bad.onnx")
    for arguments in (
        ("inspect", bad),
        ("verify", bad, good),
        ("verify", good, bad),
        ("bench", bad),
        ("bench", good, bad),
        ("bench", tmp_path),
        ("verify", good, tmp_path),
    ):
        command(capsys, *arguments).is_error(3)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are POSIX")
def test_models_that_are_pipes_or_devices(model: Path, capsys: Capsys) -> None:
    """Nothing waits for them."""
    os.mkfifo("pipe.onnx")
    for bad in ("pipe.onnx", "/dev/zero"):
        for line in (
            ("verify", bad, model),
            ("verify", model, bad),
            ("bench", bad),
            ("bench", model, bad),
            ("inspect", bad),
            ("compress", bad, *QUICK),
        ):
            command(capsys, *line).is_error(3, bad, "regular file")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are POSIX")
@pytest.mark.parametrize("device", [False, True])
def test_files_that_are_pipes_or_devices(device: bool, model: Path, capsys: Capsys) -> None:
    """Nothing waits for them, whichever option names them, nor for those in a folder of data."""
    for name in ("pipe", "pipe.npz", "folder/a.npz", "tensors/input_0.pb"):
        Path(name).parent.mkdir(exist_ok=True)
        if device:
            Path(name).symlink_to("/dev/zero")
        else:
            os.mkfifo(name)
    before = files()
    for line in (
        ("compress", model, *QUICK, "--config", "pipe"),
        ("compress", model, "--no-bench", "--plan", "pipe"),
        ("compress", model, *QUICK, "--calib", "pipe"),
        ("compress", model, *QUICK, "--calib", "pipe.npz"),
        ("compress", model, *QUICK, "--eval", "folder"),
        ("compress", model, *QUICK, "--eval", "tensors"),
        ("verify", model, model, "--data", "folder"),
        ("report", "pipe"),
    ):
        command(capsys, *line).is_error(2, "regular file")
    assert files() == before


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX")
def test_a_pipe_of_the_shell_is_read(model: Path, capsys: Capsys) -> None:
    """As in `--config <(command)`: somebody does write to it."""
    reading, writing = os.pipe()
    os.write(writing, b'pipeline = ["sorcery"]')
    os.close(writing)
    with os.fdopen(reading):
        command(capsys, "compress", model, *QUICK, "--config", f"/dev/fd/{reading}").is_error(2, "sorcery")


def test_the_demo_spoils_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "mine.txt"):
        done = command(capsys, "demo", folder)
        assert (done.code, done.out) == (2, "")
        assert str(folder) in done.err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
