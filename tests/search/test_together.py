"""Targets of several parts, and of parts that another option has a say in: met and measured, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import onnxdecomp
from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.runtime.timing import Ratio
from onnxdecomp.search.candidates import Outline, dense_cost
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.latency_model import Stopwatch, Timed
from onnxdecomp.search.plan import Choice, Cost, Plan
from onnxdecomp.search.plan_trials import LossLimit, try_plans
from onnxdecomp.search.select import Chosen
from onnxdecomp.search.targets import parse_budgets
from tests.builders import graphs
from tests.search.test_select import search

QUICK: dict[str, Any] = {"simplify": "none", "bench": False, "method": "svd", "skip_below": 0.0}


def falling(outputs: int, inputs: int, seed: int) -> Array:
    """A 3x3 kernel whose singular values fall by a factor of e over six."""
    rng = np.random.default_rng(seed)
    count = min(outputs, 9 * inputs)
    left, right = (np.linalg.qr(rng.standard_normal((size, count)))[0] for size in (outputs, 9 * inputs))
    weight = 8 * (left * np.exp(-np.arange(count) / 6)) @ right.T
    return np.asarray(weight.reshape(outputs, inputs, 3, 3), np.float32)


def network(path: Path, *, external: bool = False) -> Path:
    weights = {"w0": falling(32, 8, 0), "w1": falling(64, 32, 1), "w2": falling(48, 64, 2)}
    nodes = []
    for index, name in enumerate(weights):
        before, after = f"x{index}", f"x{index + 1}"
        nodes.append(helper.make_node("Conv", [before, name], [f"c{index}"], name=name, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [after]))
    model = graphs.model(nodes, {"x0": ["N", 8, 6, 6]}, {"x3": ["N", 48, 6, 6]}, weights)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")
    return path


@pytest.fixture(scope="module")
def inputs() -> dict[str, Array]:
    return {"x0": np.random.default_rng(5).standard_normal((24, 8, 6, 6)).astype(np.float32)}


@pytest.mark.parametrize(
    ("target", "options", "external"),
    [
        ("size=2x", {}, False),
        ("size=2x", {}, True),
        ("size=3.5x", {"quantize": "fp16"}, False),
        ("size=6x", {"quantize": "int8"}, False),
        ("size=2x,macs=1.2x", {}, False),
    ],
)
def test_a_size_is_that_of_the_file_as_it_is_written(
    target: str, options: dict[str, Any], external: bool, tmp_path: Path, inputs: dict[str, Array]
) -> None:
    model = network(tmp_path / "net.onnx", external=external)
    out = tmp_path / "out" / "net.onnx"
    out.parent.mkdir()
    found = onnxdecomp.compress(model, out, target=target, calib=inputs, **QUICK, **options)
    before = sum(file.stat().st_size for file in tmp_path.glob("net.onnx*"))
    after = sum(file.stat().st_size for file in out.parent.iterdir())
    asked = parse_budgets(target)[0].limit
    assert asked <= before / after <= 1.1 * asked
    assert found.record["totals"]["bytes"] == {"before": before, "after": after, "ratio": before / after}


def test_a_size_that_no_file_reaches(tmp_path: Path, inputs: dict[str, Array]) -> None:
    with pytest.raises(UsageError, match=r"size=500x is out of reach: .* at most size=\d"):
        onnxdecomp.compress(network(tmp_path / "net.onnx"), target="size=500x", calib=inputs, **QUICK)


@pytest.mark.parametrize("measured", [0.1, 0.3])
def test_a_loss_that_is_expected_refuses_nothing(measured: float) -> None:
    """No plan within the budgets is expected to lose little enough: what the best of them loses decides."""
    choice = Choice("a", "", "Conv", method="svd", ranks=(4,), before=Cost(9, 9), after=Cost(4, 4))
    only = Chosen(Plan((choice,)), 7.0, 0.0, 0.0, None)
    asked = []

    def pick(max_loss: float | None) -> Chosen | OutOfReach:
        asked.append(max_loss)
        return only if max_loss is None or max_loss >= 7 else OutOfReach("expected to lose 7", (7.0,))

    def reached(found: Chosen | OutOfReach) -> Chosen:
        assert isinstance(found, Chosen)
        return found

    def found() -> Any:
        costs, (loss,) = parse_budgets("macs=2x"), parse_budgets("error=0.2")
        assert loss.loss is not None
        limit = LossLimit(loss, loss.loss, loss.limit, lambda made: measured)
        made = ir.Model(ir.Graph([], [], nodes=[]), ir_version=8)
        return try_plans(pick, reached, costs, [limit], lambda plan: made, None)

    if measured > 0.2:
        with pytest.raises(UsageError, match=r"macs=2x,error=0.2 is out of reach: .* has error=0.3"):
            found()
    else:
        assert found().chosen is only
    assert asked.count(None) == 1


def test_a_loss_that_was_measured_refuses_the_rest() -> None:
    with pytest.raises(UsageError, match=r"macs=5x,error=0\.01 is out of reach: .* best has error=0\.\d+"):
        search("macs=5x,error=0.01")


def test_what_needs_no_loss_goes_with_none() -> None:
    plan, _ = search("params=1x,error=0")
    assert not plan.decomposed


def by_macs(
    _: Stopwatch,
    model: ir.Model,
    matched: Sequence[LayerMatch],
    options: Sequence[Sequence[Outline]],
    narrower: object,
) -> Timed:
    """Stands in for timing: a layer takes a third of the whole, and a chain of that its share of MACs."""
    parts = {
        index: (0.3, tuple(0.3 * option.cost.macs / dense_cost(match.layer).macs for option in own))
        for index, (match, own) in enumerate(zip(matched, options, strict=True))
    }
    return Timed(parts, 1.0, 1.0)


def test_a_latency_is_measured_where_nothing_else_is_timed(
    tmp_path: Path, inputs: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(tmp_path / "net.onnx")
    monkeypatch.setattr(Stopwatch, "time", by_macs)
    with pytest.raises(UsageError, match="out of reach"):
        onnxdecomp.compress(model, target="latency=1000x", calib=inputs, **QUICK)
    monkeypatch.setattr(Stopwatch, "time_plan", lambda watch, model, plan: Ratio(0.5, 0.4, 0.6, 0.95))
    found = onnxdecomp.compress(model, target="latency=1.02x", calib=inputs, **QUICK)
    assert found.plan.decomposed
    assert found.record["search"]["measured"]["latency"] == 0.5
    monkeypatch.setattr(Stopwatch, "time_plan", lambda watch, model, plan: Ratio(1.5, 1.4, 1.6, 0.95))
    with pytest.raises(UsageError, match=r"latency is out of reach: .* 0\.667x as fast"):
        onnxdecomp.compress(model, target="latency=1.02x", calib=inputs, **QUICK)
