"""Layers in two precisions, in turns: the ratio, and that it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.latency import against_float
from onnxdecomp.latency.against_float import ratios
from onnxdecomp.latency.cache import FILE
from onnxdecomp.latency.measure import Request
from tests.builders.layers import hollow_linear

LAYER = hollow_linear(16, 32, "MatMul")
ASKED = [Request(LAYER, dense_chain(LAYER), (rows, 32)) for rows in (1, 4, 1)]


def test_the_frame_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against_float, "typical_times", lambda runs, *_: [1.0, 3.0, 2.5])
    assert ratios(ASKED, "int8-dynamic") == [0.75] * 3


def test_what_was_timed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By sizes, and apart from other precisions."""
    timed: list[int] = []

    def times(runs: list[Any], *_: Any) -> list[float]:
        timed.append(len(runs))
        return [0.0, 2.0, 1.0]

    monkeypatch.setattr(against_float, "typical_times", times)
    for precision, count in (("int4", 2), ("int4", 2), ("int4:64", 4)):
        assert ratios(ASKED, precision, cache=tmp_path / FILE) == [0.5] * 3
        assert timed == [3] * count


def test_what_cannot_run_has_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against_float, "runnable", lambda *_: "no such kernel")
    assert ratios(ASKED, "int4") == [None] * 3
