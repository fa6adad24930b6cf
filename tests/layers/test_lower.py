"""Every kind of step as nodes: ONNX Runtime computes with them what the step does in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import TypedDict, Unpack

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, ConvSpec
from onnxdecomp.core.steps import (
    BlockMatMul,
    Convolve,
    LeftMatMul,
    Lookup,
    MatMul,
    Pad,
    PermuteChannels,
    RegroupBatch,
    Reshape,
    Shape,
    Slice,
    Step,
    Transpose,
)
from onnxdecomp.errors import ModelError
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.int8_weights import on_grid
from onnxdecomp.layers.lower import labels, lower, lower_linear
from onnxdecomp.layers.replace import Rewriter
from tests.builders.graphs import from_x, match_of, node
from tests.builders.layers import linear_layer
from tests.builders.running import run
from tests.core.test_steps import KINDS, drawn, each, each_weighted, normal, strided_convolves


class Options(TypedDict, total=False):
    """Of an emitter."""

    opset: int
    quantize: bool


def computed(
    emission: Callable[[ir.Value, Emitter], ir.Value], x: Array, **options: Unpack[Options]
) -> tuple[Array, list[str]]:
    """What the nodes that are emitted on a value give for an activation, and their operators."""
    numbers, constants = count(), []

    def constant(array: Array, name: str, key: object) -> ir.Value:
        constants.append(ir.Value(name=name, const_value=ir.tensor(array, name=name)))
        return constants[-1]

    kind = ir.DataType.from_numpy(x.dtype)
    source = ir.Value(name="x", shape=ir.Shape(x.shape), type=ir.TensorType(kind))
    emit = Emitter(constant, lambda name: f"{name}{next(numbers)}", "layer", ir.DataType.FLOAT, {}, **options)
    value = emission(source, emit)
    operators = [node.op_type for node in emit.nodes]
    emit.add("Identity", [value], "y")
    outputs = [emit.nodes[-1].outputs[0]]
    graph = ir.Graph(
        [source], outputs, nodes=emit.nodes, initializers=constants, opset_imports={"": emit.opset}, name="g"
    )
    (y,) = run(ir.Model(graph, ir_version=8), {"x": x})
    return y, operators


def emitted(
    steps: Sequence[Step], x: Array, rank: int | None, **options: Unpack[Options]
) -> tuple[Array, list[str]]:
    """The same of some steps."""

    def emission(value: ir.Value, emit: Emitter) -> ir.Value:
        for step in steps:
            value = lower(step, value, rank, "step", emit)
        return value

    return computed(emission, x, **options)


def lowered(step: Step, x: Array, rank: int | None, **options: Unpack[Options]) -> Array:
    return emitted([step], x, rank, **options)[0]


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


@settings(max_examples=40)
@given(strided_convolves())
def test_a_convolution_keeps_all_attributes(drawn: tuple[Convolve, Shape]) -> None:
    step, shape = drawn
    # ONNX Runtime knows no automatic padding of a dilated kernel.
    assume(not isinstance(step.spec.pads, str) or set(step.spec.dilations) == {1})
    made = lowered(step, normal(*shape).astype(np.float32), len(shape))
    assert made.shape == step.output_shape(shape)


@each_weighted
@settings(max_examples=10)
@given(data=st.data())
def test_int8_factors_compute_what_they_stand_for(kind: type[Step], data: st.DataObject) -> None:
    step, shape = drawn(kind, data)
    (rounded,) = on_grid(Chain((step,), None, 1)).steps
    x, expected = probe(rounded, shape)
    given_ = lowered(step, x, rank_of(step, shape), quantize=True)
    np.testing.assert_allclose(given_, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [9, 10, 11, 13])
@pytest.mark.parametrize("step", [Pad(5, 1), Pad(5, -1), Slice(2, 1), Slice(2, -1)], ids=str)
def test_sizes_in_every_opset(step: Step, opset: int) -> None:
    x = normal(2, 3, 4).astype(np.float32)
    np.testing.assert_array_equal(lowered(step, x, 3, opset=opset), step.forward(x))


@pytest.mark.parametrize(
    ("perms", "operators"),
    [
        ([(1, 2, 0), (1, 2, 0)], ["Transpose"]),
        ([(1, 2, 0), (2, 0, 1)], []),
        ([(1, 2, 0), (1, 0, 2), (0, 2, 1)], ["Transpose"]),
        ([(0, 1, 2)], []),
    ],
)
def test_transposes_in_a_row_are_one(perms: list[tuple[int, ...]], operators: list[str]) -> None:
    x = normal(5, 2, 3, 4).astype(np.float32)
    steps = [Transpose(perm) for perm in perms]
    given_, made = emitted(steps, x, 2)
    assert made == operators
    np.testing.assert_array_equal(given_, Chain(tuple(steps), None, 1).forward(x))


def test_transposes_with_something_between_them_are_left_alone() -> None:
    x, turn = normal(5, 2, 3).astype(np.float32), Transpose((1, 0))
    _, made = emitted([turn, MatMul(normal(2, 2)), turn, turn, turn], x, 2)
    assert made == ["Transpose", "MatMul", "Transpose"]


POINTWISE = Convolve(normal(6, 4, 1, 1), ConvSpec((1, 1), (1, 1), (0, 0, 0, 0)))
BIAS = np.arange(6, dtype=np.float32)


@pytest.mark.parametrize("bias", ["own", "other", "none"])
@pytest.mark.parametrize(
    ("steps", "operators"),
    [
        ((POINTWISE,), ["Conv"]),
        ((PermuteChannels((3, 2, 1, 0)), POINTWISE), ["Gather", "Conv"]),
        ((POINTWISE, PermuteChannels((5, 3, 1, 0, 2, 4))), ["Conv", "Gather"]),
        ((POINTWISE, RegroupBatch(3), RegroupBatch(6)), ["Conv", "Reshape", "Reshape"]),
    ],
)
def test_the_bias_goes_into_a_last_convolution(
    steps: tuple[Step, ...], operators: list[str], bias: str
) -> None:
    weights = {"w": normal(6, 4, 1, 1).astype(np.float32), "b": BIAS}
    model = from_x([node("Conv", "x w b", "y", name="layer")], weights, [2, 4, 3, 5])
    match = match_of(model)
    added = {"own": match.layer.bias, "other": 2 * BIAS, "none": None}[bias]
    chain = Chain(steps, added, 4)
    Rewriter(model).replace(match, chain, {})
    alone = [*operators, "Add"] if operators[-1] != "Conv" and added is not None else operators
    assert [made.op_type for made in model.graph] == alone
    assert ("b" in model.graph.initializers) == (bias == "own" and operators[-1] == "Conv")
    x = normal(2, 4, 3, 5).astype(np.float32)
    (y,) = run(model, {"x": x})
    expected = Chain(steps, None, 4).forward(x) + (0 if added is None else added[:, None, None])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), None])
def test_a_chain_of_a_product_knows_the_rank_from_the_layer(shape: Shape | None) -> None:
    layer = replace(linear_layer(4, 6), input_shape=shape)
    steps = (Reshape((6,), (2, 3)), BlockMatMul(normal(2, 3, 2)), Reshape((2, 2), (4,)))
    chain = Chain(steps, normal(4), 6)
    x = normal(*(shape or (5, 6))).astype(np.float32)

    def emission(value: ir.Value, emit: Emitter) -> ir.Value:
        return lower_linear(chain, layer, value, emit)

    if shape is None:
        with pytest.raises(ModelError, match="the rank of its activation is unknown"):
            computed(emission, x)
        return
    y, _ = computed(emission, x)
    without_bias = replace(chain, bias=None).forward(x)
    np.testing.assert_allclose(y, without_bias, rtol=1e-4, atol=1e-4)


def test_labels_are_the_steps_own_or_their_places() -> None:
    one, own = MatMul(normal(2, 2)), MatMul(normal(2, 2), "core")
    assert labels(Chain((one,), None, 2)) == ["last"]
    assert labels(Chain((one, one), None, 2)) == ["first", "last"]
    assert labels(Chain((one, own, one, one), None, 2)) == ["first", "core", "step3", "last"]
