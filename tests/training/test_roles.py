"""Which initializers are trained: what the adapters of layers say, and what that makes of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp.layers.registry import adapters
from onnxdecomp.training.roles import Role, roles
from tests.builders.cases import case_of

RNG = np.random.default_rng(0)

POSITIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "Conv": ((1,), (2,)),
    "ConvTranspose": ((1,), (2,)),
    "FusedConv": ((1,), (2,)),
    "Gemm": ((0, 1), (2,)),
    "FusedGemm": ((0, 1), (2,)),
    "MatMul": ((0, 1), ()),
    "FusedMatMul": ((0, 1), ()),
    "LSTM": ((1, 2), (3,)),
    "GRU": ((1, 2), (3,)),
    "RNN": ((1, 2), (3,)),
    "Gather": ((0,), ()),
    "Einsum": ((0, 1, 2, 3), ()),
    "MatMulNBits": ((), ()),
    "MatMulInteger": ((), ()),
    "MatMulIntegerToFloat": ((), ()),
    "DynamicQuantizeMatMul": ((), ()),
    "Attention": ((), ()),
}
"""Weights and biases among the inputs of operators of layers; the last five cannot be trained through."""


def test_every_operator_of_layers_says_what_is_trained() -> None:
    said = {
        op_type: adapter.parameter_roles(op_type) for (_, op_type), adapter in adapters().by_operator.items()
    }
    assert {op_type: (role.weights, role.biases) for op_type, role in said.items()} == POSITIONS


@pytest.mark.parametrize(
    ("op_type", "attributes", "shape", "numbers"),
    [
        ("Conv", {"group": 2}, (4, 3, 5), 15),
        ("ConvTranspose", {"group": 2}, (4, 3, 5), 10),
        ("Gemm", {}, (6, 7), 6),
        ("Gemm", {"transB": 1}, (6, 7), 7),
        ("MatMul", {}, (2, 6, 7), 6),
        ("LSTM", {}, (1, 8, 3), 3),
        ("Gather", {}, (50, 4), 1),
    ],
)
def test_an_output_adds_up_so_many_numbers(
    op_type: str, attributes: dict[str, Any], shape: tuple[int, ...], numbers: int
) -> None:
    node = ir.node(op_type, [], attributes=attributes)
    assert adapters().by_operator["", op_type].fan_in(node, shape) == numbers


def test_roles_of_a_graph() -> None:
    """Weights of layers, of groups too, biases and scales; statistics and what shapes are made of stay."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], name="one", group=2, pads=[1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("MatMul", ["n", "w2"], ["m"], name="two"),
        helper.make_node("Add", ["m", "b2"], ["y"]),
    ]
    weights = {
        "w1": RNG.standard_normal((4, 2, 3)),
        "w2": RNG.standard_normal((6, 5)),
        **{name: RNG.uniform(1, 2, 4) for name in ("b1", "scale", "shift", "mean", "var")},
        "b2": RNG.standard_normal(5),
    }
    case = case_of(nodes, weights, {"x": RNG.standard_normal((2, 4, 6))}, dynamic=False)
    found = {role.name: role for role in roles(ir.from_proto(case.model))}
    assert found == {
        "w1": Role("w1", "weight"),
        "w2": Role("w2", "weight", matrix=True),
        **{name: Role(name, "bias") for name in ("b1", "scale", "shift", "b2")},
    }
