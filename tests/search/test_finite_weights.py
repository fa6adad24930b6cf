"""Layers whose numbers are out of order stay, or are checked as their numbers allow; the others go on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

import onnxdecomp
from onnxdecomp.core.layer import Array
from onnxdecomp.search.finite_weights import unsound
from tests.builders import graphs

BASE = np.random.default_rng(3).standard_normal((16, 16, 3, 3)).astype(np.float32) / 12


def with_one(value: float) -> Array:
    weight = BASE.copy()
    weight[2, 3, 0, 1] = value
    return weight


BAD = {
    "nan": with_one(np.nan),
    "inf": with_one(np.inf),
    "one is huge": with_one(3e38),
    "all are huge": (BASE * 1e37).astype(np.float32),
    "subnormal": (BASE * 1e-39).astype(np.float32),
    "hardly above zero": (BASE * 1e-43).astype(np.float32),
    "zero": np.zeros_like(BASE),
}
KEPT = ("nan", "inf", "one is huge", "all are huge")


def two_outputs(weight: Array, linear: bool) -> Any:
    """good: x -> y; bad: x -> z, of the weight given."""
    shape: tuple[str | int, ...]
    if linear:
        good, bad, shape = BASE.reshape(48, 48), weight.reshape(48, 48), ("N", 48)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="good"),
            helper.make_node("MatMul", ["x", "v"], ["z"], name="bad"),
        ]
    else:
        good, bad, shape = BASE, weight, ("N", 16, 6, 6)
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["y"], name="good", pads=[1] * 4),
            helper.make_node("Conv", ["x", "v"], ["z"], name="bad", pads=[1] * 4),
        ]
    return graphs.model(nodes, {"x": shape}, dict.fromkeys(("y", "z"), shape), {"w": good, "v": bad})


def samples(linear: bool) -> dict[str, Array]:
    shape = (24, 48) if linear else (24, 16, 6, 6)
    return {"x": np.random.default_rng(5).standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(
    ("goal", "calibrated", "linear"),
    [
        ({"rank": "0.25"}, False, False),
        ({"rank": "0.25"}, True, True),
        ({"target": "macs=1.4x"}, True, False),
    ],
)
def test_one_bad_layer_does_not_cost_the_run(
    goal: dict[str, Any], calibrated: bool, kind: str, linear: bool
) -> None:
    method = "svd" if linear else "tucker"
    calib = samples(linear) if calibrated else None
    found = onnxdecomp.compress(
        *(two_outputs(BAD[kind], linear),),
        **(goal | {"calib": calib, "method": method, "simplify": "none", "bench": False, "verify": False}),
    )
    good, bad = (next(entry for entry in found.layers if entry.name == name) for name in ("good", "bad"))
    assert found.lowering
    assert all(check.passed for check in found.lowering)
    if kind in KEPT:
        assert good.status == "decomposed"
        assert (bad.status, bad.reason) == ("kept", unsound(BAD[kind]))
    elif "rank" in goal:
        assert (good.status, bad.status) == ("decomposed", "decomposed")


def test_what_is_sound() -> None:
    assert unsound(BASE) is None
    assert unsound(np.float32(1e30) * BASE) is None
    assert unsound(np.float64(1e100) * BASE) is None
    assert unsound(np.zeros((0, 3), np.float32)) is None
    assert "NaN or infinite" in str(unsound(with_one(-np.inf)))


def test_a_defect_of_a_dead_layer_is_still_found() -> None:
    """The absolute floor is a few of the smallest numbers, and not what a small weight gives."""
    from dataclasses import replace

    import onnx_ir as ir
    from onnxdecomp_passes.decompose import Decompose

    from onnxdecomp.layers.lowering_check import check_lowering

    proto = two_outputs((BASE * 1e-34).astype(np.float32), False)
    result = Decompose(rank="0.25", method="svd", skip_below=0.0)(ir.from_proto(proto))
    bad = next(done for done in result.rewritten if done.match.layer.name == "bad")  # type: ignore[attr-defined]
    first = bad.chain.steps[0]
    wrong = replace(first, weight=first.weight * np.float32(1.001))
    chain = replace(bad.chain, steps=(wrong, *bad.chain.steps[1:]))
    (right,) = check_lowering([bad], opset=17, ir_version=8)
    (defect,) = check_lowering([replace(bad, chain=chain)], opset=17, ir_version=8)
    assert right.passed
    assert not defect.passed
