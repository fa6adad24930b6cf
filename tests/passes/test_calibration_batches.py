"""How many calibration inputs are stacked: the largest of them decides, wherever it stands."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxdecomp_passes.decompose import Decompose

from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.pipeline.base import PassContext
from tests.builders.feeds import normal
from tests.builders.graphs import conv, value
from tests.builders.graphs import model as make


def test_a_later_larger_input_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [conv("layer", "x", "y", pads=[1, 1, 1, 1])]
    weights = {"layer.w": normal(8, 8, 3, 3), "layer.b": normal(8)}
    model = ir.from_proto(make(nodes, [value("x", ["N", 8, "H", "W"])], [value("y", None)], weights))
    small, large = np.zeros((1, 8, 4, 4), np.float32), np.zeros((1, 8, 40, 40), np.float32)
    feeds = Feeds([{"x": x} for x in [*[small] * 40, large]], "here", stackable=True)
    monkeypatch.setattr("onnxdecomp.calibration.statistics._HELD", 2 * large.size)
    matched = Decompose(rank="2", method="svd").plan(model)[1]
    calibration, _ = Decompose()._calibration(model, matched, PassContext(calibration=Calibration(feeds)))
    assert calibration.batch == 2
