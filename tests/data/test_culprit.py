"""Samples that a model fails on: told with file, input and sample, and exit code 2, by every command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxdecomp
from onnxdecomp.core.layer import Array
from onnxdecomp.data.culprit import blaming, culprit
from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import GateError, ModelError, UsageError
from onnxdecomp.runtime.session import inputs_of, open_session, run
from tests.builders import graphs
from tests.builders.commands import command, files

QUICK: dict[str, Any] = {"simplify": "none", "rank": "4", "method": "svd", "bench": False}
LINE = ("--simplify", "none", "--rank", "4", "--method", "svd", "--no-bench", "-o", "out.onnx")
Capsys = pytest.CaptureFixture[str]
RNG = np.random.default_rng(0)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """y [B, S, 16] = (table[ids] * x) W: ids within -20..19."""
    monkeypatch.chdir(tmp_path)
    return embedding(tmp_path / "net.onnx", "B", "B")


def embedding(path: Path, *batches: str | None) -> Path:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["g"], name="embed"),
        helper.make_node("Mul", ["g", "x"], ["u"]),
        helper.make_node("MatMul", ["u", "w"], ["y"], name="mm"),
    ]
    weights = {
        "table": RNG.standard_normal((20, 16)).astype(np.float32),
        "w": RNG.standard_normal((16, 16)).astype(np.float32),
    }
    inputs = [
        graphs.value("ids", [batches[0], "S"], TensorProto.INT64),
        graphs.value("x", [batches[1], "S", 16]),
    ]
    return graphs.saved(graphs.model(nodes, inputs, {"y": [None, "S", 16]}, weights), path)


def good(count: int = 8) -> dict[str, Any]:
    return {
        "ids": RNG.integers(-20, 20, (count, 5)),
        "x": RNG.standard_normal((count, 5, 16)).astype(np.float32),
    }


def spoilt(name: str, sample: int, value: float) -> dict[str, Any]:
    arrays = good()
    arrays[name][sample].flat[3] = value
    return arrays


def uneven() -> dict[str, Array]:
    arrays = good()
    return {**arrays, "x": arrays["x"][:6]}


BAD: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (spoilt("x", 3, np.inf), ("sample 3", "'x'", "infinite")),
    (spoilt("x", 7, -np.inf), ("sample 7", "'x'", "infinite")),
    (spoilt("x", 5, np.nan), ("sample 5", "'x'", "NaN")),
    (spoilt("ids", 0, 20), ("sample 0", "'ids'", "20")),
    (spoilt("ids", 6, 1000), ("sample 6", "'ids'", "1000")),
    (spoilt("ids", 2, -21), ("sample 2", "'ids'", "-21")),
    (uneven(), ("number of samples", "ids 8", "x 6")),
    ({**good(), "x": np.full((8, 5, 16), 1e300)}, ("sample 0", "'x'", "float32 cannot hold")),
    ({name: array[:0] for name, array in good().items()}, ("empty",)),
    ({"ids": good()["ids"]}, ("no array for the input 'x'",)),
    ({**good(), "ids": good()["ids"].astype(np.float32)}, ("'ids'", "float32", "int64")),
    ({**good(), "ids": good()["ids"] > 0}, ("'ids'", "bool", "int64")),
    ({**good(), "x": good()["x"].astype(np.complex64)}, ("'x'", "complex64", "float32")),
    ({**good(), "x": good()["x"].astype(str)}, ("'x'", "float32")),
]


@pytest.mark.parametrize(("arrays", "told"), BAD)
def test_bad_data_is_told_as_such(
    arrays: dict[str, Any], told: tuple[str, ...], model: Path, capsys: Capsys
) -> None:
    np.savez("calib.npz", **arrays)
    lines = [
        ("compress", model, "--calib", "calib.npz", *LINE),
        ("compress", model, "--calib", "calib.npz", *LINE, "--no-verify"),
        ("compress", model, "--eval", "calib.npz", *LINE),
        ("verify", model, model, "--data", "calib.npz"),
    ]
    for line in lines:
        command(capsys, *line).is_error(2, "calib.npz", *told)
    assert files() == ["calib.npz", "net.onnx"]
    # In memory there is no file to name.
    with pytest.raises(UsageError) as caught:
        onnxdecomp.compress(model, "out.onnx", calib=arrays, **QUICK)
    assert all(part in str(caught.value) for part in told)
    assert "\n" not in str(caught.value)


def test_object_arrays_and_damaged_files(model: Path, capsys: Capsys) -> None:
    np.savez("calib.npz", ids=good()["ids"], x=np.array([{}] * 8, dtype=object))
    line = ("compress", model, "--calib", "calib.npz", *LINE)
    command(capsys, *line).is_error(2, "calib.npz", "Python objects")
    for content in (b"", b"PK\x03\x04", Path("calib.npz").read_bytes()[:100]):
        Path("calib.npz").write_bytes(content)
        command(capsys, *line).is_error(2, "calib.npz", "no readable .npz file")


@pytest.mark.parametrize("target", ["params=1.2x", "error=0.3"])
def test_a_search_tells_it_too(target: str, model: Path, capsys: Capsys) -> None:
    np.savez("calib.npz", **spoilt("ids", 6, 1000))
    options = ("--simplify", "none", "--target", target, "--method", "svd", "--no-bench", "--skip-below", "0")
    line = ("compress", model, "--calib", "calib.npz", *options)
    command(capsys, *line, "-o", "out.onnx").is_error(2, "calib.npz, sample 6", "'ids'")
    command(capsys, *line, "--dry-run").is_error(2, "calib.npz, sample 6", "'ids'")


def test_int8_tells_it_too(model: Path, capsys: Capsys) -> None:
    np.savez("calib.npz", **spoilt("ids", 6, 1000))
    line = ("compress", model, "--calib", "calib.npz", *LINE, "--quantize", "int8")
    command(capsys, *line).is_error(2, "calib.npz, sample 6", "'ids'")


def test_one_file_of_several(model: Path, capsys: Capsys) -> None:
    Path("calib").mkdir()
    for index in range(3):
        arrays = spoilt("ids", 1, 99) if index == 2 else good()
        np.savez(f"calib/{index}.npz", **arrays)
    line = ("compress", model, "--calib", "calib", *LINE)
    command(capsys, *line).is_error(2, "calib/2.npz, sample 1", "'ids'")
    (calib,) = (read_feeds("calib", inputs_of(open_session(model))),)
    assert calib.where(0) == "calib/0.npz, sample 0"
    assert calib.where(17) == "calib/2.npz, sample 1"


def test_feeds_of_the_caller(model: Path) -> None:
    def feeds() -> Iterator[dict[str, Array]]:
        arrays = spoilt("ids", 4, 99)
        for sample in range(8):
            yield {name: array[sample : sample + 1] for name, array in arrays.items()}

    for calib in (feeds(), list(feeds())):
        with pytest.raises(UsageError, match="sample 4: the original fails on 'ids'"):
            onnxdecomp.compress(model, calib=calib, **QUICK)


def test_arrays_that_are_one_feed_together(tmp_path: Path) -> None:
    """Without names of axes unequal arrays may be one feed: what fails then says what it may be."""
    model = embedding(tmp_path / "net.onnx", None, None)
    with pytest.raises(UsageError, match=r"number of samples\? ids 8, x 6"):
        onnxdecomp.compress(model, calib=uneven(), **QUICK)
    named_alike = embedding(tmp_path / "odd.onnx", "?", "?")
    with pytest.raises(UsageError, match=r"number of samples\? ids 8, x 6"):
        onnxdecomp.compress(named_alike, calib=uneven(), **QUICK)


def test_numbers_that_overflow_inside(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="mm"),
    ]
    weights = {"w": RNG.standard_normal((16, 16)).astype(np.float32)}
    made = graphs.model(nodes, {"x": ["N", 16]}, {"y": ["N", 16]}, weights)
    path = graphs.saved(made, tmp_path / "net.onnx")
    x = RNG.standard_normal((8, 16)).astype(np.float32)
    x[5] = 1e4
    result = onnxdecomp.compress(path, calib={"x": x}, **QUICK)
    assert "not finite" in result.layers[0].reason
    # Where that ends a run it is told as the sample's fault.
    feeds = read_feeds({"x": x}, inputs_of(open_session(path)))
    told = "sample 5: the original fails on 'x': its output 'y' is not finite"
    with pytest.raises(UsageError, match=told), blaming(path, feeds):
        raise ModelError("array must not contain infs or NaNs")


def test_who_is_to_blame(model: Path) -> None:
    session = open_session(model)
    feeds = read_feeds(good(), inputs_of(session))
    assert culprit(feeds, lambda feed: run(session, feed)) is None
    ours: tuple[Exception, ...] = (ModelError("our own"), ValueError("ours"))
    for error in ours:
        with pytest.raises(type(error), match="our"), blaming(model, feeds, None):
            raise error
    bad = read_feeds(spoilt("ids", 6, 99), inputs_of(session))
    theirs: tuple[Exception, ...] = (ModelError("a pass failed"), IndexError("torch"))
    for error in theirs:
        with (
            pytest.raises(UsageError, match="sample 6: the original fails on 'ids'"),
            blaming(model, feeds, bad),
        ):
            raise error
    with pytest.raises(GateError), blaming(model, bad):
        raise GateError("another matter")


def test_training_tells_it_too(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    onnxdecomp.compress(model, "out.onnx", calib=good(), **QUICK)
    with pytest.raises(UsageError, match="sample 6: the original fails on 'ids'"):
        onnxdecomp.finetune("out.onnx", teacher=model, data=spoilt("ids", 6, 99), settings="epochs=1")
