"""Every kind of step as nodes: ONNX Runtime computes with them what the step does in NumPy."""

from __future__ import annotations

from itertools import count

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import BlockMatMul, Convolve, LeftMatMul, Lookup, Reshape, Shape, Step, Transpose
from onnxdecomp.errors import ModelError
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.lower import lower
from tests.builders.running import run
from tests.core.test_steps import KINDS, drawn, each, normal


def lowered(step: Step, x: Array, rank: int | None) -> Array:
    """What the nodes of a step give for an activation."""
    numbers, constants = count(), []

    def constant(array: Array, name: str, key: object) -> ir.Value:
        constants.append(ir.Value(name=name, const_value=ir.tensor(array, name=name)))
        return constants[-1]

    kind = ir.DataType.from_numpy(x.dtype)
    source = ir.Value(name="x", shape=ir.Shape(x.shape), type=ir.TensorType(kind))
    emit = Emitter(constant, lambda name: f"{name}{next(numbers)}", "layer", ir.DataType.FLOAT, {})
    emit.add("Identity", [lower(step, source, rank, "step", emit)], "y")
    outputs = [emit.nodes[-1].outputs[0]]
    graph = ir.Graph(
        [source], outputs, nodes=emit.nodes, initializers=constants, opset_imports={"": emit.opset}, name="g"
    )
    (y,) = run(ir.Model(graph, ir_version=8), {"x": x})
    return y


def rank_of(step: Step, shape: Shape) -> int:
    """The axes of the activation if all of its features were on one."""
    match step:
        case LeftMatMul() | BlockMatMul():
            return len(shape) - 1
        case Reshape():
            return len(shape) - len(step.source) + 1
        case Transpose():
            return len(shape) - len(step.perm) + 1
    return len(shape)


def probe(step: Step, shape: Shape) -> tuple[Array, Array]:
    """An activation as the nodes take it, and what they should give."""
    x = normal(*shape).astype(np.float32)
    if isinstance(step, Lookup):
        indices = np.random.default_rng(0).integers(0, step.inputs, shape[:-1])
        return indices, step.forward(np.eye(step.inputs)[indices])
    if isinstance(step, Convolve) and not step.spec.transposed:
        # A response to an impulse is the kernel read backwards.
        axes = tuple(axis for axis, size in enumerate(step.weight.shape) if axis >= 2 and size > 1)
        return x, np.flip(step.forward(x), axes)
    return x, step.forward(x)


@each
@settings(max_examples=15)
@given(data=st.data())
def test_nodes_compute_the_step(kind: type[Step], data: st.DataObject) -> None:
    step, shape = drawn(kind, data)
    x, expected = probe(step, shape)
    np.testing.assert_allclose(lowered(step, x, rank_of(step, shape)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.any_rank], ids=lambda kind: kind.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_some_do_without_the_rank(kind: type[Step], data: st.DataObject) -> None:
    step, shape = drawn(kind, data)
    x, expected = probe(step, shape)
    np.testing.assert_allclose(lowered(step, x, None), expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_rank_is_said() -> None:
    with pytest.raises(ModelError, match="layer: the rank of its activation is unknown"):
        lowered(Reshape((4,), (2, 2)), normal(3, 4).astype(np.float32), None)
