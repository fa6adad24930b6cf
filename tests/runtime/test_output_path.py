"""Where outputs go: through links, never in the place of devices, of other outputs, or of what is read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnxdecomp
from onnxdecomp.errors import UsageError
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.runtime.output_path import check_apart, check_folder, is_special, landing
from tests.builders.commands import command, files
from tests.builders.feeds import samples
from tests.builders.models import network

QUICK: dict[str, Any] = {"simplify": "none", "rank": "4", "method": "svd", "bench": False, "verify": False}
LINE = ("--simplify", "none", "--rank", "4", "--method", "svd", "--no-bench", "--no-verify", "--overwrite")
Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    return network(tmp_path / "net.onnx")


def external(path: Path) -> Path:
    """The same model with its weights in a second file."""
    onnx.save(
        onnx.load(network(path)), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    return path


def decomposed(path: Path) -> bool:
    return any(node.metadata_props for node in onnx.load(path).graph.node)


@contextmanager
def descriptor(kind: str, folder: Path) -> Iterator[tuple[Path, Callable[[], bytes]]]:
    """A link in `folder` to an open file descriptor of this process, and what was written there."""
    if kind == "pipe":
        reader, writer = os.pipe()
        os.set_blocking(reader, False)

        def written() -> bytes:
            try:
                return os.read(reader, 1 << 20)
            except BlockingIOError:
                return b""
    else:
        place = folder / "elsewhere" / "open"
        reader = writer = os.open(place, os.O_CREAT | os.O_RDWR)
        written = place.read_bytes
    link = folder / "link"
    link.symlink_to(f"/proc/self/fd/{writer}")
    try:
        yield link, written
    finally:
        for number in {reader, writer}:
            os.close(number)


# Links


@pytest.mark.parametrize("chain", [1, 2])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_replaced(there: bool, chain: int, model: Path) -> None:
    target = Path("elsewhere/target.onnx")
    if there:
        target.write_bytes(b"old")
        target.chmod(0o640)
    for index in range(chain):
        Path(f"link{index}").symlink_to(target if index == 0 else f"link{index - 1}")
    link = Path(f"link{chain - 1}")
    if there:
        with pytest.raises(UsageError, match=f"^{link}: exists already"):
            onnxdecomp.compress(model, link, **QUICK)
        assert target.read_bytes() == b"old"
    done = onnxdecomp.compress(model, link, overwrite=there, **QUICK)
    assert done.path == link
    assert done.record["output"]["path"] == str(link)
    assert link.is_symlink()
    assert target.is_file()
    assert not target.is_symlink()
    assert decomposed(link)
    assert files(Path("elsewhere")) == ["target.onnx"]
    assert files() == sorted(["elsewhere", "net.onnx", *(f"link{index}" for index in range(chain))])
    if there:
        assert target.stat().st_mode & 0o777 == 0o640


def test_a_copy_follows_links_too(model: Path) -> None:
    Path("link").symlink_to("elsewhere/target.onnx")
    onnxdecomp.compress(model, "link", **{**QUICK, "exclude": ("c*",)})
    assert Path("elsewhere/target.onnx").read_bytes() == model.read_bytes()
    assert Path("link").is_symlink()


def test_the_model_behind_a_link_over_itself(model: Path) -> None:
    Path("link").symlink_to("net.onnx")
    onnxdecomp.compress("link", "link", overwrite=True, **QUICK)
    assert Path("link").is_symlink()
    assert decomposed(model)


def test_links_that_lead_nowhere(model: Path) -> None:
    Path("circle").symlink_to("circle")
    Path("folder").symlink_to("elsewhere")
    Path("lost").symlink_to("none/target.onnx")
    before = files()
    for link, fragment in (("circle", "circle"), ("folder", "folder"), ("lost", "no folder")):
        with pytest.raises(UsageError, match=fragment):
            onnxdecomp.compress(model, link, overwrite=True, **QUICK)
        with pytest.raises(UsageError, match=fragment):
            check_folder(link)
        assert Path(link).is_symlink()
    assert files() == before
    assert files(Path("elsewhere")) == []


def test_a_cache_keeps_what_it_names_by_its_content(model: Path) -> None:
    blob = Path("elsewhere") / ("0123456789abcdef" * 4)
    shutil.copy(model, blob)
    Path("cached.onnx").symlink_to(blob)
    with pytest.raises(UsageError, match="cache"):
        onnxdecomp.compress("cached.onnx", "cached.onnx", overwrite=True, **QUICK)
    assert blob.read_bytes() == model.read_bytes()
    assert Path("cached.onnx").is_symlink()


def test_external_data_behind_a_link(model: Path) -> None:
    source = external(Path("big.onnx"))
    Path("near").symlink_to("target.onnx")
    done = onnxdecomp.compress(source, "near", **QUICK)
    assert done.path is not None
    assert Path("near").is_symlink()
    assert Path("target.onnx.data").is_file()
    assert onnxdecomp.verify(source, "near", max_error=None).passed  # who opens the link finds the data
    assert onnxdecomp.verify(source, "target.onnx", max_error=None).passed
    Path("far").symlink_to("elsewhere/target.onnx")
    with pytest.raises(UsageError, match="external data"):
        onnxdecomp.compress(source, "far", **QUICK)
    assert files(Path("elsewhere")) == []
    assert Path("far").is_symlink()


# Devices, pipes, stdout


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_no_model_takes_the_place_of_an_open_file(kind: str, model: Path, capsys: Capsys) -> None:
    with descriptor(kind, model.parent) as (link, written):
        assert is_special(link)
        command(capsys, "compress", model, "-o", link, *LINE).is_error(2, f"{link}: is no regular file")
        with pytest.raises(UsageError, match="no regular file"):
            onnxdecomp.compress(model, link, overwrite=True, **QUICK)
        assert link.is_symlink()
        assert written() == b""
    assert files() == ["elsewhere", "link", "net.onnx"]


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_a_record_is_written_through(kind: str, model: Path, capsys: Capsys) -> None:
    with descriptor(kind, model.parent) as (link, written):
        done = command(capsys, "inspect", model, "--rank", "4", "--json", link)
        assert done.code == 0
        assert json.loads(written())["kind"] == "plan"
        assert link.is_symlink()
    assert files() == ["elsewhere", "link", "net.onnx"]


def test_a_record_follows_a_link_to_a_file(model: Path, capsys: Capsys) -> None:
    Path("elsewhere/run.json").write_text("old")
    Path("link").symlink_to("elsewhere/run.json")
    assert command(capsys, "inspect", model, "--rank", "4", "--json", "link").code == 0
    assert Path("link").is_symlink()
    assert json.loads(Path("elsewhere/run.json").read_text())["kind"] == "plan"
    assert files(Path("elsewhere")) == ["run.json"]


def test_what_is_no_place_for_a_model(model: Path, capsys: Capsys) -> None:
    os.mkfifo("fifo")
    before = files()
    for name in (
        "-",
        "fifo",
        "/dev/null",
        "/proc/self/fd/none",
        "/proc/none.onnx",
        "/sys/none.onnx",
        "elsewhere",
    ):
        command(capsys, "compress", model, "-o", name, *LINE).is_error(2, f"{name}: ")
        with pytest.raises(UsageError):
            save(load(model), name, overwrite=True)
    assert files() == before
    assert Path("fifo").is_fifo()
    assert Path("/dev/null").is_char_device()
    pytest.importorskip("torch")
    command(capsys, "finetune", model, "--data", "none.npz", "-o", "-").is_error(2, "-: ")


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm to write to")
def test_a_file_in_shared_memory_is_a_file() -> None:
    path = Path(f"/dev/shm/onnxdecomp-test-{os.getpid()}")
    assert not is_special(path)
    assert landing(path) == path


# Files that are one


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (("-o", "x", "--json", "x"), ("--json", "--output")),
        (("-o", "x", "--report", "./elsewhere/../x"), ("--report", "--output")),
        (("-o", "x", "--markdown", "x.data"), ("--markdown", "external data")),
        (("-o", "x", "--json", "y", "--report", "y"), ("--report", "--json")),
        (("-o", "x", "--json", "-", "--markdown", "-"), ("--markdown", "--json")),
        (("-o", "calib.npz", "--calib", "calib.npz"), ("--output", "--calib")),
        (("-o", "link.npz", "--calib", "calib.npz"), ("--output", "--calib")),
        (("-o", "hard.npz", "--eval", "calib.npz"), ("--output", "--eval")),
        (("-o", "x", "--eval", "calib.npz", "--json", "calib.npz"), ("--json", "arrays")),
        (("-o", "plan.json", "--plan", "plan.json"), ("--output", "--plan")),
        (("-o", "x", "--config", "pipeline.toml", "--json", "pipeline.toml"), ("--json", "--config")),
        (("-o", "x", "--json", "model"), ("--json", "MODEL")),
    ],
)
def test_nothing_is_written_over_something_else(
    line: tuple[str, ...], named: tuple[str, str], model: Path, capsys: Capsys
) -> None:
    samples(Path("calib.npz"))
    Path("link.npz").symlink_to("calib.npz")
    Path("hard.npz").hardlink_to("calib.npz")
    Path("model").symlink_to(model)
    Path("pipeline.toml").write_text("")
    Path("plan.json").write_text(json.dumps(onnxdecomp.inspect(model, rank="4").record))
    before = {name: Path(name).read_bytes() for name in files() if Path(name).is_file()}
    ranks = () if "--plan" in line else ("--rank", "4", "--method", "svd")
    refused = command(capsys, "compress", model, *line, *ranks, "--no-bench", "--overwrite")
    refused.is_error(2, *named)
    assert {name: Path(name).read_bytes() for name in files() if Path(name).is_file()} == before


@pytest.mark.parametrize(
    "line",
    [
        ("inspect", "{model}", "--rank", "4", "--json", "{link}"),
        ("verify", "{model}", "{model}", "--json", "{link}"),
        ("bench", "{model}", "--iterations", "1", "--json", "{link}"),
        ("report", "{record}", "--markdown", "{record}"),
    ],
)
def test_other_commands_keep_what_they_read(line: tuple[str, ...], model: Path, capsys: Capsys) -> None:
    Path("link").symlink_to(model)
    record = Path("run.json")
    record.write_text(json.dumps(onnxdecomp.inspect(model, rank="4").record))
    before = model.read_bytes(), record.read_bytes()
    filled = [part.format(model=model, link="link", record=record) for part in line]
    command(capsys, *filled).is_error(2, "would replace what")
    assert (model.read_bytes(), record.read_bytes()) == before


def test_in_python(model: Path) -> None:
    calib = samples(Path("calib.npz"))
    content = calib.read_bytes()
    with pytest.raises(UsageError, match="calib"):
        onnxdecomp.compress(model, calib, calib=calib, overwrite=True, **QUICK)
    shutil.copy(calib, "out.onnx.data")
    with pytest.raises(UsageError, match="external data would replace what calib"):
        onnxdecomp.compress(model, "out.onnx", calib="out.onnx.data", overwrite=True, **QUICK)
    assert calib.read_bytes() == content


def test_what_is_apart(tmp_path: Path) -> None:
    check_apart({"a": tmp_path / "x", "b": tmp_path / "y", "c": None}, {"d": "module:callable", "e": "-"})
    check_apart({"a": "-"}, {"b": "-"})  # stdin and stdout
    with pytest.raises(UsageError, match="b would replace what a goes to"):
        check_apart({"a": tmp_path / "x", "b": tmp_path / "none" / ".." / "x"}, {})
