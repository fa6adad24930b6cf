"""A kind of step that the product does not have: its class and its nodes are all that the rest asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import MatMul, Shape, WeightedStep
from onnxdecomp.fitting.als import alternate
from onnxdecomp.fitting.quadratic_loss import as_rows, problem
from onnxdecomp.latency.chain_model import chain_model
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.find import find
from onnxdecomp.layers.lower import lower
from onnxdecomp.layers.lowering_check import check_lowering
from onnxdecomp.layers.replace import Rewriter
from tests.builders.layers import linear_layer
from tests.builders.moments import asymmetric, gathered
from tests.core.test_chain import linear_case, normal


@dataclass(frozen=True, eq=False)
class Scale(WeightedStep):
    """x * weight: a diagonal matrix."""

    any_rank: ClassVar[bool] = True

    label: str = ""

    @property
    def inputs(self) -> int:
        return int(self.weight.size)

    @property
    def fan_in(self) -> int:
        return 1

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, x: Array) -> Array:
        return np.asarray(x * self.weight)

    def adjoint(self, z: Array, shape: Shape) -> Array:
        return np.asarray(z * self.weight)

    def weight_gradient(self, x: Array, z: Array) -> Array:
        return np.asarray((x * z).reshape(-1, x.shape[-1]).sum(axis=0))


@lower.register
def _(step: Scale, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    return emit.add("Mul", [x, emit.weight(step.weight, label, axis=0)], label)


def scaled(inputs: int, rank: int, outputs: int) -> Chain:
    steps = MatMul(normal(inputs, rank)), Scale(1 + normal(rank) ** 2, "scale"), MatMul(normal(rank, outputs))
    return Chain(steps, None, inputs)


@pytest.mark.parametrize("quantize", [False, True])
def test_it_takes_a_layers_place(quantize: bool) -> None:
    model = ir.from_proto(linear_case(20, 15, (2, 3)).model)
    matched, _ = find(model)
    rewritten = Rewriter(model).replace(matched[0], scaled(20, 6, 15), {}, quantize=quantize)
    kinds = [node.op_type for node in model.graph if node.op_type != "DequantizeLinear"]
    assert kinds == ["MatMul", "Mul", "MatMul"]
    (check,) = check_lowering([rewritten], opset=17, ir_version=8)
    assert check.passed, check
    assert rewritten.chain.params == 20 * 6 + 6 + 6 * 15


def test_it_is_fitted_and_timed() -> None:
    layer = linear_layer(12, 18, seed=8)
    posed = problem(gathered(layer, *asymmetric(layer, 200)), as_rows(layer.weight, layer), 1e-3)
    start = scaled(layer.inputs, 5, layer.outputs)
    found = alternate(start, posed, sweeps=2)
    scale = replace(found, steps=(found.steps[0], start.steps[1], found.steps[2]))
    losses = [posed.loss(as_rows(chain.dense(), layer)) for chain in (start, scale, found)]
    assert losses[2] < 0.5 * losses[0]
    assert losses[2] < losses[1]  # its numbers have been fitted, too
    assert not isinstance(chain_model(start, layer, (4, layer.inputs)), str)  # a reason why it cannot be
