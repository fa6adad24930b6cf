"""Recurrent layers against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array
from onnxdecomp.training.autograd.network import Network
from tests.builders.feeds import normal
from tests.training.autograd.one_node import check, model

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTH, BATCH, SIZE, HIDDEN = 5, 3, 4, 6


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(("LSTM", "GRU", "RNN")),
    st.sampled_from(("forward", "reverse", "bidirectional")),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from((0, 1)),
)
def test_a_layer(kind: str, direction: str, biased: bool, lengths: bool, states: bool, late: int) -> None:
    d, gates = 2 if direction == "bidirectional" else 1, GATES[kind]
    inputs: list[Array | None] = [
        normal(LENGTH, BATCH, SIZE),
        normal(d, gates * HIDDEN, SIZE),
        normal(d, gates * HIDDEN, HIDDEN),
        normal(d, 2 * gates * HIDDEN) if biased else None,
        np.array([5, 2, 4], np.int32) if lengths else None,
        normal(d, BATCH, HIDDEN) if states else None,
    ]
    if kind == "LSTM":
        inputs.append(normal(d, BATCH, HIDDEN) + 1 if states else None)
    extra: dict[str, Any] = {"linear_before_reset": late} if kind == "GRU" else {}
    while inputs[-1] is None:
        inputs.pop()
    check(
        kind,
        inputs,
        outputs=3 if kind == "LSTM" else 2,
        hidden_size=HIDDEN,
        direction=direction,
        tolerance=1e-4,
        **extra,
    )


def test_no_steps() -> None:
    """The states stay what they were. ONNX Runtime is not asked: its kernels leave them uncomputed then."""
    weights = [normal(2, 4 * HIDDEN, size) for size in (SIZE, HIDDEN)]
    state = normal(2, BATCH, HIDDEN)
    inputs = [normal(0, BATCH, SIZE), *weights, None, None, state, state + 1]
    made = model("LSTM", inputs, outputs=3, hidden_size=HIDDEN, direction="bidirectional")
    feed = {f"x{index}": array for index, array in enumerate(inputs) if array is not None}
    with torch.no_grad():
        y, hidden, cell = Network(ir.from_proto(made))(feed).values()
    assert y.shape == (0, 2, BATCH, HIDDEN)
    np.testing.assert_array_equal(hidden.numpy(), state)
    np.testing.assert_array_equal(cell.numpy(), state + 1)


def test_peepholes() -> None:
    check(
        "LSTM",
        [
            normal(LENGTH, BATCH, SIZE),
            normal(1, 4 * HIDDEN, SIZE),
            normal(1, 4 * HIDDEN, HIDDEN),
            *[None] * 4,
            normal(1, 3 * HIDDEN),
        ],
        outputs=3,
        hidden_size=HIDDEN,
        tolerance=1e-4,
    )


@pytest.mark.parametrize(
    ("activations", "alphas", "betas"),
    [
        (["Relu", "Tanh", "Sigmoid"], [], []),
        (["HardSigmoid", "Softsign", "Tanh"], [0.3], [0.4]),
        (["Sigmoid", "LeakyRelu", "Elu"], [0.2, 0.7], []),
    ],
)
def test_other_activations(activations: list[str], alphas: list[float], betas: list[float]) -> None:
    given_by: dict[str, Any] = {"activation_alpha": alphas} if alphas else {}
    given_by |= {"activation_beta": betas} if betas else {}
    check(
        "LSTM",
        [normal(LENGTH, BATCH, SIZE), normal(1, 4 * HIDDEN, SIZE) / 3, normal(1, 4 * HIDDEN, HIDDEN) / 3],
        outputs=3,
        hidden_size=HIDDEN,
        activations=activations,
        tolerance=1e-4,
        **given_by,
    )
