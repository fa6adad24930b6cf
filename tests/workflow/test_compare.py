"""bench --gate and its record: exit codes, reasons, and that files are written all the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.workflow.compare import compare, gate_failure
from tests.builders.commands import command
from tests.builders.feeds import samples
from tests.builders.models import network

Capsys = pytest.CaptureFixture[str]
QUICK = ("--iterations", 5, "--no-memory")


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model, and one that has fewer channels."""
    monkeypatch.chdir(tmp_path)
    return network(tmp_path / "big.onnx", channels=32), network(
        tmp_path / "small.onnx", channels=32, spoil=3.0
    )


def test_a_gate_that_passes(pair: tuple[Path, Path], capsys: Capsys) -> None:
    done = command(
        capsys, "bench", *pair, *QUICK, "--gate", "size<=1 and latency_low<1000", "--json", "run.json"
    )
    assert (done.code, done.err) == (0, "")
    record = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert record["gate"] == {"expression": "size<=1 and latency_low<1000", "passed": True, "failures": []}
    assert record["verify"] == []  # nobody asked for it
    assert record["run"]["command"].startswith("onnxdecomp bench ")
    assert [model["ratio"]["macs"] for model in record["models"]] == [1, 1]


def test_a_gate_that_fails(pair: tuple[Path, Path], capsys: Capsys) -> None:
    gate = "rel_l2<=1e-6 and size<=1"
    line = ("bench", *pair, *QUICK, "--batch", 1, "--batch", 2, "--gate", gate, "--json", "run.json")
    done = command(capsys, *line)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "the gate failed" in done.err
    assert "small.onnx on cpu, batch 1, threads 1: rel_l2 = " in done.err
    assert "(and 1 more)" in done.err
    assert "ratio of p50" in done.out
    record = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert [failure["batch"] for failure in record["gate"]["failures"]] == [1, 2]
    assert record["verify"][0]["rel_l2"] > 1e-6


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("latncy<=1", "did you mean 'latency'"),
        ("memory<=1", "leave --no-memory out"),
        ("drop<=0.01", "give samples with labels by --data"),
    ],
)
def test_a_gate_that_asks_for_nonsense(pair: tuple[Path, Path], capsys: Capsys, gate: str, said: str) -> None:
    command(capsys, "bench", *pair, *QUICK, "--gate", gate, "--json", "run.json").is_error(2, said)
    assert not Path("run.json").exists()


def test_a_gate_needs_two_models(pair: tuple[Path, Path], capsys: Capsys) -> None:
    command(capsys, "bench", pair[0], *QUICK, "--gate", "latency<=1").is_error(2, "at least two")


def test_latency_is_the_upper_end_of_the_interval(pair: tuple[Path, Path]) -> None:
    _, record = compare(pair, gate="latency < -1 or latency_low < -1", iterations=5, memory=False)
    ratio = record["settings"][0]["models"][1]["ratio"]
    reason = record["gate"]["failures"][0]["reason"]
    assert f"latency = {ratio['high']:.4g} " in reason
    assert f"latency_low = {ratio['low']:.4g} " in reason
    assert "the gate failed" in (gate_failure(record) or "")


def test_models_that_cannot_be_compared_fail_a_gate_on_numbers(pair: tuple[Path, Path]) -> None:
    other = network(Path("other.onnx"), channels=16)
    _, record = compare((pair[0], other), gate="rel_l2<=1", iterations=2, memory=False)
    assert "cannot be compared" in (gate_failure(record) or "")


def test_data_are_read_for_both(pair: tuple[Path, Path]) -> None:
    data = samples(Path("data.npz"), count=4)
    _, record = compare(pair, gate="rel_l2<=10", data=data, iterations=2, memory=False)
    assert record["verify"][0]["samples"] == record["run"]["data"]["data"]["samples"] == 4
    assert len(record["run"]["data"]["data"]["sha256"]) == 64
    feeds = ({"x": np.ones((1, 8, 8, 8), np.float32)} for _ in range(3))
    _, record = compare(pair, verify=True, data=feeds, iterations=2, memory=False)
    assert record["verify"][0]["samples"] == 3


def test_a_drop_needs_scores(pair: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="drop is not known here"):
        compare(pair, gate="drop<=0.01", data=samples(Path("data.npz")), iterations=2, memory=False)
