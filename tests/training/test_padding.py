"""Training on sequences that are filled up: what stands in the padding is in no loss."""

from __future__ import annotations

import onnx_ir as ir
import pytest

import onnxdecomp
from onnxdecomp.core.layer import Array
from tests.calibration.test_padding import LENGTHS, arrays, network

pytest.importorskip("torch")


def held_out(model: ir.Model, data: dict[str, Array], mask: str) -> float:
    """The loss on held-out samples before the first step."""
    original = ir.from_proto(network())
    settings = {"epochs": 1, "held_out": 0.5, "mask": mask, "loss": "relative"}
    found = onnxdecomp.finetune(model, teacher=original, data=data, settings=settings)
    loss: float = found.training["epochs"][0]["held_out"]
    return loss


def test_the_loss_is_that_of_the_real_positions() -> None:
    how = {"method": "svd", "rank": "3", "must_save": "none", "simplify": "none", "bench": False}
    model = onnxdecomp.compress(ir.from_proto(network()), verify=False, **how).model  # type: ignore[arg-type]
    data = arrays()
    other = {**data, "x": data["x"].copy()}
    for row, length in enumerate(LENGTHS):
        other["x"][row, length:] *= -3
    losses = {mask: [held_out(model, one, mask) for one in (data, other)] for mask in ("", "none")}
    assert losses[""][0] == pytest.approx(losses[""][1], rel=1e-4)
    assert losses["none"][0] != pytest.approx(losses["none"][1], rel=1e-2)
