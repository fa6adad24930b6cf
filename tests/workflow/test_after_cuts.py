"""What comes after cuts: quantization, training, guards of error and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxdecomp
from onnxdecomp.evaluate.benchmark import BenchResult
from onnxdecomp.latency.meter import LatencyMeter
from onnxdecomp.workflow.result import Result
from tests.builders.graphs import saved
from tests.builders.models import thin_middle
from tests.workflow.test_latency_guard import FASTER, SLOWER, result

HOW: dict[str, Any] = {"simplify": "none", "bench": False, "threads": 1, "overwrite": True}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return saved(thin_middle(), tmp_path / "net.onnx")


def inputs(count: int = 24, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 8, 6, 6), dtype=np.float32)}


def halved(model: Path, **options: Any) -> Result:
    """Both channels at half their units."""
    how = {**HOW, **options}
    return onnxdecomp.compress(model, "out.onnx", method="width", rank="0.5", calib=inputs(), **how)


def shapes(file: str) -> dict[str, tuple[int, ...]]:
    found = onnx.load(file).graph.initializer
    return {one.name: tuple(one.dims) for one in found if len(one.dims) > 1}


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_quantized(kind: str, model: Path) -> None:
    done = halved(model, quantize=kind, max_error=0.5)
    assert {c.name: c.status for c in done.channels} == {"one": "cut", "two": "cut", "fc": "kept"}
    assert done.verification is not None
    assert done.verification.passed
    stored = {one.data_type for one in onnx.load("out.onnx").graph.initializer if len(one.dims) == 4}
    wanted = {"int8": onnx.TensorProto.INT8, "fp16": onnx.TensorProto.FLOAT16}[kind]
    assert stored == {wanted}
    assert set(shapes("out.onnx").values()) == {(8, 8, 3, 3), (12, 8, 3, 3), (12, 20)}


@pytest.mark.parametrize("settings", ["epochs=4,batch=6,rate=0.02", "epochs=1,batch=6,hints=0.5"])
def test_trained(settings: str, model: Path) -> None:
    """All layers at a cut are, those too that have only lost rows."""
    pytest.importorskip("torch")
    halved(model)
    before = shapes("out.onnx")
    plain = {one.name: numpy_helper.to_array(one) for one in onnx.load("out.onnx").graph.initializer}
    done = halved(model, finetune=settings)
    training = done.record["training"]
    assert training["tensors"] == len(before) == 3
    after = {one.name: numpy_helper.to_array(one) for one in onnx.load("out.onnx").graph.initializer}
    assert {name: one.shape for name, one in plain.items()} == {
        name: one.shape for name, one in after.items()
    }
    if training["best"]:
        assert all(not np.array_equal(plain[name], after[name]) for name in before)
    else:
        assert all(np.array_equal(plain[name], after[name]) for name in before)


def test_the_same_bytes_twice(model: Path) -> None:
    """Of a search, too, which chooses widths and chains together."""
    files = []
    for _ in range(2):
        onnxdecomp.compress(model, "out.onnx", target="macs=2x", method="width,svd", calib=inputs(), **HOW)
        files.append(Path("out.onnx").read_bytes())
    assert files[0] == files[1]


def test_a_largest_error_is_held_by_more_units(model: Path) -> None:
    """What the search saw of the error is not what is found on other inputs."""
    options: dict[str, Any] = {"method": "width", "calib": inputs(6), "data": inputs(24, 5)}
    free = onnxdecomp.compress(model, "out.onnx", target="macs=4x", **options, **HOW)
    assert free.verification is not None
    assert free.verification.worst is not None
    limit = 0.7 * free.verification.worst
    held = onnxdecomp.compress(model, "out.onnx", target="macs=4x", max_error=limit, **options, **HOW)
    assert held.verification is not None
    assert held.verification.passed
    width = {channel.name: channel.kept for channel in free.channels}
    assert any(channel.kept > width[channel.name] for channel in held.channels)
    assert all(channel.kept >= width[channel.name] for channel in held.channels)
    assert any("got more units" in note or "put back: " in note for note in held.notes), held.notes
    assert any("gives way to the largest error" in note for note in held.notes)


def test_never_slower(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The channel that saves least is put back; what is left is timed again."""
    ratios = [SLOWER, FASTER]

    def timed(self: LatencyMeter, model: Any) -> BenchResult:
        return result(ratios.pop(0) if len(ratios) > 1 else ratios[0])

    monkeypatch.setattr(LatencyMeter, "time_model", timed)
    timing = {"bench": True, "allow_slower": False, "bench_seconds": 0.02}
    done = halved(model, **timing)
    assert [(c.name, c.status) for c in done.channels[:2]] == [("one", "cut"), ("two", "kept")]
    assert "does not pay on cpu" in done.channels[1].reason
    assert any(note.startswith("put back, for with them the model takes 1.20x") for note in done.notes)
    assert [look["decomposed"] for look in done.record["looks"]] == [2, 1]
    assert [layer.left for layer in done.layers] == [(8, 8, 3, 3), (24, 8, 3, 3), None]
    macs = done.record["totals"]["macs"]
    assert macs["after"] == sum(layer.macs.after or 0 for layer in done.layers) < macs["before"]
