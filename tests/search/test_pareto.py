from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxdecomp
from onnxdecomp.search.pareto import macs_left
from onnxdecomp.search.plan import Choice, Cost, Plan
from tests.builders.models import network


def test_from_the_original_on_and_convex(tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((8, 8, 8, 8), dtype=np.float32)
    done = onnxdecomp.compress(
        network(tmp_path / "net.onnx", channels=32),
        calib={"x": x},
        target="macs=1.6x",
        method="tucker,svd",
        simplify="none",
        bench=False,
        verify=False,
    )
    search = done.record["search"]
    points = search["frontier"]
    assert (points[0]["loss"], points[0]["macs"], points[0]["layers"]) == (0, 1, 0)
    losses, macs = ([point[key] for point in points] for key in ("loss", "macs"))
    assert losses == sorted(losses)
    assert macs == sorted(macs, reverse=True)
    slopes = np.diff(macs) / np.diff(losses)
    assert (np.diff(slopes) >= -1e-9).all()  # ever less is gained for the same loss
    # The plan that was chosen is not below the hull.
    left = macs_left(done.plan)
    assert search["expected"]["loss"] >= np.interp(-left, -np.array(macs), losses) * (1 - 1e-6)
    assert search["weighed"] == sum(len(layer["candidates"]) for layer in search["layers"])


def test_macs_left() -> None:
    def choice(name: str, method: str | None) -> Choice:
        return Choice(name, "", "Conv", method=method, before=Cost(1, 60), after=Cost(1, 20))

    assert macs_left(Plan((choice("a", "svd"), choice("b", None)))) == pytest.approx(80 / 120)
    assert macs_left(Plan((Choice("c", "", "Conv"),))) == 1
