"""Timing: one input for everything that is timed, the user's own; and batches made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import onnxdecomp
from onnxdecomp.calibration import random_set as calibrate
from onnxdecomp.data.batches import rebatched, rows_of
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.random_inputs import bindings
from onnxdecomp.errors import ModelError
from onnxdecomp.evaluate import benchmark
from onnxdecomp.latency.meter import timed_input
from onnxdecomp.runtime.session import Feed, TensorSpec
from onnxdecomp.search import latency_model
from onnxdecomp.workflow import final_timing
from tests.builders import graphs
from tests.builders.commands import Outcome, command

OWN, OTHER = (1, 8, 20, 12), (1, 8, 24, 24)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """x [N, 8, H, W] to two convolutions; alone in the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((32, inputs, 3, 3)).astype(np.float32) / inputs for inputs in (8, 32)]
    nodes = [
        helper.make_node("Conv", [x, w], [y], name=name, pads=[1, 1, 1, 1])
        for x, w, y, name in (("x", "w1", "a", "c1"), ("a", "w2", "y", "c2"))
    ]
    made = graphs.model(
        nodes,
        {"x": ["N", 8, "H", "W"]},
        {"y": ["N", 32, "H", "W"]},
        dict(zip(("w1", "w2"), weights, strict=True)),
    )
    return graphs.saved(made, tmp_path / "net.onnx")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[tuple[int, ...]]]:
    """The shapes of "x" that each kind of timing saw."""
    found: dict[str, set[tuple[int, ...]]] = {}

    def spy(module: Any, name: str, feed_in: Any) -> None:
        real = getattr(module, name)

        def spied(*given: Any, **options: Any) -> Any:
            result = real(*given, **options)
            feed: Feed = feed_in(result, *given)
            found.setdefault(name, set()).add(feed["x"].shape)
            return result

        monkeypatch.setattr(module, name, spied)

    spy(benchmark, "feed_of", lambda result, *given: result)
    spy(latency_model, "shares", lambda result, path, feed, *given: feed)
    spy(final_timing, "profile", lambda result, path, model, layers, feed: feed)
    return found


def samples(shape: tuple[int, ...]) -> dict[str, Any]:
    x = np.random.default_rng(1).standard_normal((6, *shape[1:])).astype(np.float32)
    return {"x": x}


@pytest.mark.parametrize(
    ("options", "shape", "source"),
    [
        ({"calib": samples(OWN), "data": samples(OTHER)}, OWN, "feeds of the caller"),
        ({"data": samples(OWN)}, OWN, "feeds of the caller"),
        ({"input_shapes": {"x": OWN}, "batch": 3}, (3, *OWN[1:]), "random, seed 0"),
        ({"calib": samples(OWN), "batch": 2}, (2, *OWN[1:]), "feeds of the caller"),
    ],
)
def test_everything_is_timed_on_one_input(
    options: dict[str, Any],
    shape: tuple[int, ...],
    source: str,
    model: Path,
    seen: dict[str, set[tuple[int, ...]]],
) -> None:
    """The search's chains and plans, never slower, the final timing and the profile of the page."""
    done = onnxdecomp.compress(
        model,
        target="macs=1.5x,latency=1.01x",
        method="svd",
        allow_slower=True,
        simplify="none",
        threads=1,
        bench_seconds=0.01,
        details=True,
        **options,
    )
    assert done.changed
    assert seen == {"feed_of": {shape}, "shares": {shape}, "profile": {shape}}
    assert done.record["latency"]["shapes"] == {"x": list(shape)}
    assert done.record["latency"]["inputs"] == source


def test_never_slower_is_judged_on_the_input_of_the_search(
    model: Path, seen: dict[str, set[tuple[int, ...]]]
) -> None:
    onnxdecomp.compress(
        model,
        calib=samples(OWN),
        rank="4",
        method="svd",
        allow_slower=False,
        simplify="none",
        threads=1,
        bench_seconds=0.01,
    )
    assert seen == {"feed_of": {OWN}}


def test_random_errors_are_measured_at_the_shapes_asked_for(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    real = calibrate.synthetic

    def kept(*given: Any, **options: Any) -> Any:
        made.append(real(*given, **options))
        return made[-1]

    monkeypatch.setattr("onnxdecomp_passes.decompose.synthetic", kept)
    onnxdecomp.compress(
        model, target="macs=1.5x", method="svd", simplify="none", bench=False, input_shapes={"x": OWN}
    )
    (calibration,) = made
    assert calibration.feeds.shapes() == ({"x": OWN},)


def test_the_shapes_are_shown(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("calib.npz", **samples(OWN))
    done: Outcome = command(
        capsys, "compress", model, *("--simplify", "none", "--method", "svd", "--rank", "4"),
        *("--calib", "calib.npz", "--bench-batch", 1, "--bench-batch", 3, "--threads", 1),
        *("--markdown", "out.md", "--report", "out.html"),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "x 1×8×20×12" in done.out
    assert "x 3×8×20×12" in done.out
    assert "x 1×8×20×12" in Path("out.md").read_text()
    assert "x 1×8×20×12" in Path("out.html").read_text()


def test_a_models_own_rows_are_not_timed_twice(model: Path) -> None:
    feed = {"x": np.ones((4, *OWN[1:]), np.float32)}
    done = onnxdecomp.compress(
        model,
        calib=[feed, feed],
        rank="4",
        simplify="none",
        threads=1,
        bench_seconds=0.01,
        bench_batches=(1, 4, 6),
    )
    assert done.latency is not None
    assert [setting.models[0].batch for setting in done.latency.settings] == [4, 6]


def test_a_batch_is_made_of_the_rows_there_are() -> None:
    inputs = [
        TensorSpec("x", ("N", 3), "float32"),
        TensorSpec("state", (2, "N", 4), "float32"),
        TensorSpec("boxes", (None, 4), "float32"),
        TensorSpec("rate", (), "int64"),
    ]
    feed = {
        "x": np.arange(6.0).reshape(2, 3),
        "state": np.arange(16.0).reshape(2, 2, 4),
        "boxes": np.zeros((5, 4)),
        "rate": np.array(16000),
    }
    found = rebatched(feed, inputs, 3)
    assert {name: array.shape for name, array in found.items()} == {
        "x": (3, 3),
        "state": (2, 3, 4),
        "boxes": (5, 4),
        "rate": (),
    }
    assert found["x"].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert rebatched(found, inputs, 1)["state"].shape == (2, 1, 4)
    fixed = [TensorSpec("x", (2, 3), "float32")]
    assert rebatched(feed, fixed, 7)["x"].shape == (2, 3)


def test_time_is_no_batch() -> None:
    named = [TensorSpec("x", ("seq", "batch", 3), "float32"), TensorSpec("h", (1, "batch", 4), "float32")]
    feed = {"x": np.zeros((5, 1, 3)), "h": np.zeros((1, 1, 4))}
    found = rebatched(feed, named, 2)
    assert [array.shape for array in found.values()] == [(5, 2, 3), (1, 2, 4)]
    assert [rows_of(feed, named), rows_of(found, named)] == [1, 2]
    alone = [TensorSpec("x", ("time", 1, 3), "float32"), TensorSpec("h", (1, 1, 4), "float32")]
    assert [array.shape for array in rebatched(feed, alone, 2).values()] == [(5, 1, 3), (1, 1, 4)]
    assert rows_of(feed, alone) == 1
    assert rows_of({"x": np.zeros((8, 3))}, [TensorSpec("x", (8, 3), "float32")]) == 8
    assert rows_of({"x": np.zeros(())}, [TensorSpec("x", (), "float32")]) == 1


def test_random_inputs_of_models_with_the_time_first() -> None:
    inputs = [TensorSpec("x", ("T", "batch", 3), "float32")]
    found = bindings(inputs, lambda feed: None, count=1, batch=4)
    assert not isinstance(found, str)
    assert found[0].feed(inputs, (0,))["x"].shape == (32, 4, 3)


def test_the_first_input_given_is_taken(model: Path) -> None:
    calib, data = (
        Feeds(tuple({"x": np.full(OWN, value, np.float32)} for value in (first, 9.0)), "s")
        for first in (1.0, 2.0)
    )
    assert [timed_input(model, *given)[0]["x"].max() for given in ((calib, data), (None, data))] == [1, 2]
    assert len(timed_input(model, None, data)) == 1


def test_a_stated_shape_wins_over_calibration_inputs(model: Path) -> None:
    """Small patches calibrate, whole images are what is run."""
    calib = Feeds(({"x": np.full(OWN, 1, np.float32)},), "patches")
    found = {shape: timed_input(model, calib, shapes={"x": shape})[0]["x"] for shape in (OWN, OTHER)}
    assert [array.shape for array in found.values()] == [OWN, OTHER]
    assert (found[OWN] == 1).all()
    assert timed_input(model, calib, shapes={"x": OTHER}, batch=3)[0]["x"].shape == (3, *OTHER[1:])


def test_a_model_that_runs_on_no_random_input(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    made = graphs.model([node], {"x": ["N"]}, {"y": [None, 7, 11, 13]}, {"shape": np.array([-1, 7, 11, 13])})
    graphs.saved(made, tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match="--input-shape"):
        timed_input(tmp_path / "odd.onnx")


def test_further_batches_are_made_of_the_input_at_another(model: Path) -> None:
    done = onnxdecomp.compress(
        *(model, None),
        calib=samples(OWN),
        rank="4",
        simplify="none",
        threads=1,
        bench_seconds=0.01,
        batch=3,
        bench_batches=(3, 1, 6),
    )
    assert done.latency is not None
    assert [setting.batch for setting in done.latency.settings] == [3, 1, 6]
    assert [setting.models[0].batch for setting in done.latency.settings] == [3, 1, 6]
    assert done.record["latency"]["batch"] == 3


def test_one_row_is_asked_for(model: Path) -> None:
    """A user's own inputs have four."""
    given = Feeds(({"x": np.ones((4, *OWN[1:]), np.float32)},), "s")
    assert timed_input(model, given)[0]["x"].shape == (4, *OWN[1:])
    assert timed_input(model, given, batch=1)[0]["x"].shape == OWN


def fixed(tmp_path: Path, node: Any, rows: int | str, **constants: Any) -> Path:
    made = graphs.model([node], {"x": [rows, 4]}, {"y": [None, None]}, constants)
    return graphs.saved(made, tmp_path / "net.onnx")


def test_a_batch_that_a_model_does_not_take_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is fixed; or the file leaves it free, and an operator in it does not."""
    square = {"w": np.eye(4, dtype=np.float32)}
    net = fixed(tmp_path, helper.make_node("MatMul", ["x", "w"], ["y"], name="p"), 1, **square)
    out = tmp_path / "out.onnx"
    done = command(capsys, "compress", net, "-o", out, "--rank", "2", "--batch", 8)
    assert done.code == 2
    assert "--batch 8 does not apply" in done.err
    assert "takes 1 at a time" in done.err
    assert not out.exists()
    other = fixed(
        tmp_path, helper.make_node("Reshape", ["x", "shape"], ["y"]), "N", shape=np.array([1, 4], np.int64)
    )
    with pytest.raises(ModelError, match="does not run at batch 8"):
        timed_input(other, batch=8)
    assert timed_input(other, batch=1)[0]["x"].shape == (1, 4)
