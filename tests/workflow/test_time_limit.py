"""A time limit: the best that was found by then, verified, and said so."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxdecomp
from onnxdecomp.runtime.deadline import Deadline
from onnxdecomp.search import layer_profiles
from onnxdecomp.search.latency_model import Stopwatch
from onnxdecomp.workflow import time_limit
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.result import Result
from tests.workflow.test_targets import filled

OPTIONS = {"simplify": "none", "bench": False, "method": "tucker,svd", "overwrite": True}


def compressed(folder: Path, target: str, **options: object) -> Result:
    config = CompressConfig.of(None, {**OPTIONS, "calib": str(folder / "calib.npz"), **options})
    return onnxdecomp.compress(folder / "net.onnx", folder / "new.onnx", config=config, target=target)


def clocked(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A run may take so many seconds, of which one passes with every look at the clock."""
    ticks = count()
    deadline = Deadline(seconds, 0.0, lambda: float(next(ticks)))
    monkeypatch.setattr(Deadline, "after", staticmethod(lambda _: deadline))


def test_with_enough_time_the_bytes_are_those_without_a_limit(tmp_path: Path) -> None:
    filled(tmp_path)
    without = compressed(tmp_path, "macs=1.5x").record["output"]["sha256"]
    limited = compressed(tmp_path, "macs=1.5x", time_limit="10h")
    assert limited.record["output"]["sha256"] == without
    assert "limited" not in limited.record["search"]


def test_without_time_every_layer_stays_and_the_reason_is_told(tmp_path: Path) -> None:
    filled(tmp_path)
    result = compressed(tmp_path, "macs=1.5x", time_limit=1e-6)
    assert not result.changed
    assert result.record["search"]["limited"] is True
    assert any("the time limit of 1e-06 s ended the search" in note for note in result.notes)
    assert result.verification is not None
    assert result.verification.status == "passed"
    assert {layer.reason for layer in result.layers} == {"the time limit came before it was weighed"}


def test_what_was_weighed_in_time_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline comes between the two layers: the first is decomposed, the second not."""
    filled(tmp_path)
    clocked(monkeypatch, 4.0)
    result = compressed(tmp_path, "macs=1.05x", time_limit=1)
    reasons = [layer.reason for layer in result.layers]
    assert reasons[1] == "the time limit came before it was weighed"
    assert [layer.method is not None for layer in result.layers] == [True, False]
    assert result.changed
    assert any("1 of 2 layers were not weighed" in note for note in result.notes)


def test_plans_are_tried_as_long_as_there_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    free = compressed(tmp_path, "error=0.05")
    clocked(monkeypatch, 7.0)
    limited = compressed(tmp_path, "error=0.05", time_limit=1)
    tries = limited.record["search"]["tries"]
    assert len(tries) < len(free.record["search"]["tries"])
    assert limited.record["search"]["limited"] is True
    assert limited.verification is not None
    assert limited.verification.status == "passed"


def test_without_time_no_plan_is_said_to_have_been_tried(tmp_path: Path) -> None:
    filled(tmp_path)
    result = compressed(tmp_path, "error=0.05", time_limit=1e-6)
    assert not result.changed
    assert {layer.reason for layer in result.layers} == {"the time limit came before it was weighed"}
    assert not any("that was tried" in note for note in result.notes)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({}, time_limit.FIRST_RUN),
        ({"time_limit": "2m"}, 120.0),
        ({"time_limit": "2m", "target": "macs=2x"}, 120.0),
        ({"target": "macs=2x"}, None),
        ({"calib": "some.npz"}, time_limit.NO_GOAL),
        ({"quantize": "int8"}, time_limit.NO_GOAL),
        ({"calib": "some.npz", "target": "error=0.1"}, None),
        ({"calib": "some.npz", "workdir": "work"}, None),
        ({"rank": "0.5"}, None),
    ],
)
def test_a_first_run_has_a_minute(options: dict[str, object], seconds: float | None) -> None:
    deadline, notes = time_limit.deadline_of(CompressConfig.of(None, options))
    assert (None if deadline is None else deadline.seconds) == seconds
    assert bool(notes) == (not options)


def test_layers_are_weighed_when_timing_has_taken_half_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine: 26 of 50 seconds are over before the first layer is looked at."""
    filled(tmp_path)
    now = [0.0]
    monkeypatch.setattr(Deadline, "after", staticmethod(lambda _: Deadline(50.0, 0.0, lambda: now[0])))
    timed = layer_profiles._timed

    def slowly(*args: Any) -> Any:
        now[0] = 26.0
        return timed(*args)

    monkeypatch.setattr(layer_profiles, "_timed", slowly)
    result = compressed(tmp_path, "macs=1.5x", time_limit=50)
    assert result.changed
    assert "limited" not in result.record["search"]


@pytest.mark.parametrize(("takes", "timed"), [(1e4, False), (1.0, True)])
def test_layers_are_not_timed_where_that_would_take_the_time(
    takes: float, timed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    monkeypatch.setattr(Stopwatch, "foreseen", lambda self: takes)
    result = compressed(tmp_path, "error=0.05", time_limit="1h", bench=True)
    assert any("no layer was timed" in note for note in result.notes) != timed


def test_timing_is_foreseen_by_a_run_of_the_model(tmp_path: Path) -> None:
    filled(tmp_path)
    feed = {name: array[:1] for name, array in np.load(tmp_path / "calib.npz").items()}
    watch = Stopwatch(tmp_path / "net.onnx", feed, seconds=3.0)
    assert 3.0 < watch.foreseen() < 60.0
    assert replace(watch, seconds=1000.0).foreseen() > 1000.0


def test_of_a_copy_one_sample_is_compared_behind_the_limit(tmp_path: Path) -> None:
    filled(tmp_path)
    for limit, samples in ((1e-6, 1), ("1h", None)):
        result = compressed(tmp_path, "error=1e-9", time_limit=limit)
        assert not result.changed
        assert result.verification is not None
        assert (result.verification.samples == 1) == (samples == 1)
