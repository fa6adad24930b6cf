"""Timing for the search: what cannot be timed is left out and named, and no more than that."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxdecomp.decompositions.registry import get
from onnxdecomp.latency.measure import Timing
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.runtime.timing import Ratio
from onnxdecomp.search import latency_model
from onnxdecomp.search.candidates import outlines
from onnxdecomp.search.latency_model import Stopwatch
from onnxdecomp.search.layer_profiles import profile_layers
from onnxdecomp.search.scope import Scope
from tests.builders.models import thin_middle
from tests.search.test_select import CALIBRATION


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    """A stopwatch that cannot time the first chain that it is asked for."""

    def times(asked: list[Any], **_: Any) -> list[Timing]:
        good = Timing(1.0, 0.5, 0.5)
        return [Timing(math.nan, math.nan, 0.5, "no kernel"), *[good] * (len(asked) - 1)]

    monkeypatch.setattr(latency_model, "time_chains", times)
    monkeypatch.setattr(Stopwatch, "_ratio", lambda *_: Ratio(1.0, 0.9, 1.1, 0.95))
    onnx.save(thin_middle(), tmp_path / "net.onnx")
    return Stopwatch(tmp_path / "net.onnx", {"x": np.zeros((1, 8, 6, 6), np.float32)})


def test_one_outline_that_cannot_be_timed_costs_no_other(watch: Stopwatch) -> None:
    model = ir.from_proto(thin_middle())
    infer_shapes(model)
    matched, _ = find(model)
    options = [outlines(match, [get("svd")]) for match in matched]
    first = next(index for index, own in enumerate(options) if own)
    timed = watch.time(model, matched, options)
    part, parts = timed.parts[first]
    assert len(parts) == len(options[first]) > 1
    assert [math.isfinite(value) for value in parts] == [False, *[True] * (len(parts) - 1)]
    assert parts[1] == pytest.approx(part / 2)
    (note,) = timed.notes
    assert matched[first].layer.name in note
    assert "no kernel" in note
    found = profile_layers(model, matched, Scope(("svd",), skip_below=0.0), CALIBRATION, stopwatch=watch)
    ranks = [candidate.outline.ranks for candidate in found.layers[first].candidates]
    assert ranks
    assert options[first][0].ranks not in ranks
    assert found.notes == timed.notes
