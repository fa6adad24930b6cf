from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from onnxdecomp.cli.main import cli
from onnxdecomp.errors import ModelError, ProviderError, UsageError
from onnxdecomp.evaluate import benchmark
from onnxdecomp.evaluate.benchmark import bench, describe
from onnxdecomp.runtime import device, provider_start
from onnxdecomp.runtime.memory import peak, peak_growth
from onnxdecomp.runtime.timing import Clock
from tests.builders.fake_device import FakeDevice, install
from tests.builders.graphs import saved
from tests.builders.models import scores, stateful

NO_CUDA = pytest.mark.skipif(provider_start.started("cuda"), reason="CUDA works here")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    weight = np.ones((64, 8))
    return [
        saved(scores(weight), tmp_path / "free.onnx"),
        saved(scores(weight, batch=2), tmp_path / "fixed.onnx"),
    ]


def test_every_setting_is_timed(models: list[Path]) -> None:
    result = bench(models, batch_sizes=(1, 4), threads=(1, 2), iterations=6, memory=False)
    assert [(s.threads, s.batch) for s in result.settings] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    for setting in result.settings:
        free, fixed = setting.models
        assert setting.rounds == 6
        assert free.batch == setting.batch
        assert free.shapes == {"x": (setting.batch, 64)}
        assert fixed.batch == 2
        assert free.latency.count == fixed.latency.count == 6
        assert free.latency.min <= free.latency.p50 <= free.latency.p99
        assert free.throughput == pytest.approx(free.batch / free.latency.mean * 1000)
        assert free.ratio is None
        assert fixed.ratio is not None
        assert fixed.ratio.low <= fixed.ratio.value <= fixed.ratio.high
        assert free.nodes == {"cpu": 1}
        assert free.peak_rss is None
        assert list(describe(setting)) == [
            f"{models[1]} takes 2 at a time: batch {setting.batch} does not apply"
        ]
        assert setting.spinning  # as in deployment; see tests/runtime/test_spinning.py
    json.dumps(result.to_json(), allow_nan=False)


def test_latencies_are_what_the_clock_of_the_setting_tells(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(step=3_000_000)

    def clock_of(provider: str, threads: int) -> Clock:
        assert provider == "cpu"
        return (lambda: next(ticks)) if threads == 1 else time.perf_counter_ns

    monkeypatch.setattr(device, "clock_of", clock_of)
    alone, others = bench(models, threads=(1, 2), iterations=6, memory=False).settings
    assert [(m.latency.min, m.latency.p99) for m in alone.models] == [(3.0, 3.0)] * 2
    assert others.models[0].latency.stdev > 0


def test_data_are_repeated_to_fill_the_batch(models: list[Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((3, 64), np.float32))
    result = bench(models[:1], batch_sizes=(8,), iterations=2, data=tmp_path / "data.npz", memory=False)
    assert result.settings[0].models[0].shapes == {"x": (8, 64)}
    path = saved(stateful(), tmp_path / "s.onnx")
    feed: dict[str, NDArray[Any]] = {
        "frame": np.ones((1, 4), np.float32),
        "state": np.ones((2, 1, 4), np.float32),
        "gain": np.array(1, np.int64),
    }
    assert bench([path, path], iterations=2, data=iter([feed]), memory=False).settings[0].models[0].batch == 1


def test_memory_of_a_fresh_process(tmp_path: Path) -> None:
    rows, columns = 4096, 1024  # 16 MiB of weights
    big = saved(scores(np.zeros((rows, columns))), tmp_path / "big.onnx")
    before = peak()
    growth = peak_growth(big, {"x": np.zeros((1, rows), np.float32)})
    assert growth is not None
    assert 16 << 20 <= growth <= 160 << 20
    assert peak() - before < 16 << 20  # not in this process
    assert peak_growth(tmp_path / "missing.onnx", {}) is None


@NO_CUDA
def test_a_cpu_fallback_is_not_called_cuda(models: list[Path]) -> None:
    with pytest.raises(ProviderError, match="CUDA"):
        bench(models, providers=("cpu", "cuda"), iterations=1, memory=False)


def test_nonsense(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        bench([])
    with pytest.raises(UsageError):
        bench(models, batch_sizes=(0,))
    with pytest.raises(UsageError):
        bench(models, threads=(-1,))
    with pytest.raises(UsageError):
        bench(models, duration=0)
    with pytest.raises(ModelError):
        bench([tmp_path / "missing.onnx"])


def test_command(models: list[Path], tmp_path: Path) -> None:
    def invoke(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli, ["bench", *(str(argument) for argument in arguments)])
        return (
            int(getattr(result.exception, "exit_code", result.exit_code)),
            result.stdout,
            result.stderr,
        )

    code, out, err = invoke(*models, "--iterations", 3, "--json", "-")
    assert code == 0
    assert len(json.loads(out)["settings"][0]["models"]) == 2
    assert "takes 2 at a time" in err
    code, out, _ = invoke(models[0], models[0], "--iterations", 3, "--no-memory")
    assert code == 0
    assert str(models[0]) in out  # not cut off, however long
    assert "ratio of p50" in out
    assert invoke()[0] == 2
    assert invoke(models[0], "--batch", 0)[0] == 2
    assert invoke(tmp_path / "missing.onnx")[0] == 3


@NO_CUDA
def test_command_refuses_a_fallback(models: list[Path]) -> None:
    result = CliRunner().invoke(cli, ["bench", str(models[0]), "--provider", "cuda", "--json", "-"])
    assert isinstance(result.exception, ProviderError)
    assert result.exception.exit_code == 4
    assert result.stdout == ""


def test_memory_of_a_card_is_what_each_model_adds(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by the device before and behind each; where nothing is told the record lacks it."""
    install(monkeypatch, FakeDevice())
    monkeypatch.setattr(benchmark, "peak_growth", lambda *_, **__: 1)
    found = bench(models, providers=("cuda",), iterations=5)
    assert [model.device_bytes for model in found.settings[0].models] == [1 << 20, 1 << 20]
    assert found.to_json()["settings"][0]["models"][0]["device_bytes"] == 1 << 20
    plain = bench(models[:1], iterations=5, memory=False).to_json()
    assert "device_bytes" not in plain["settings"][0]["models"][0]
