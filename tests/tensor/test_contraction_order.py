from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, ConvSpec
from onnxdecomp.core.steps import LeftMatMul, MatMul, RegroupBatch, RegroupSpatial, Reshape, Step
from onnxdecomp.tensor.contraction_order import (
    Order,
    cheapest_order,
    contraction,
    conv_order,
    conv_steps,
    linear_order,
    linear_steps,
)


@st.composite
def trains(draw: st.DrawFn) -> tuple[Array, ...]:
    """Cores [r, i, j, r'] of two to four modes, ones among the sizes."""
    d = draw(st.integers(2, 4))
    small = st.integers(1, 4)
    bonds = [1, *(draw(small) for _ in range(d - 1)), 1]
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((bonds[k], draw(small), draw(small), bonds[k + 1])) for k in range(d))


def matrix_of(cores: Sequence[Array]) -> Array:
    """The train multiplied out [Π j, Π i, last bond], core after core."""
    dense = np.ones((1, 1, 1))
    for core in cores:
        dense = np.einsum("tsr,rijq->tjsiq", dense, core)
        dense = dense.reshape(dense.shape[0] * dense.shape[1], -1, core.shape[3])
    return dense


def order_of(shapes: Sequence[tuple[int, ...]], cores: Sequence[int]) -> Order:
    applied = [sum(1 << c for c in cores[:n]) for n in range(len(cores))]
    return tuple(contraction(shapes, core, done) for core, done in zip(cores, applied, strict=True))


@settings(max_examples=60, deadline=None)
@given(cores=trains(), data=st.data())
def test_every_order_applies_the_same_matrix(cores: tuple[Array, ...], data: st.DataObject) -> None:
    order = order_of([c.shape for c in cores], data.draw(st.permutations(range(len(cores)))))
    inputs = math.prod(core.shape[1] for core in cores)
    chain = Chain(tuple(linear_steps(cores, order)), None, inputs)
    expected = matrix_of(cores)[:, :, 0]
    np.testing.assert_allclose(chain.dense(), expected, atol=1e-11)
    assert chain.macs((5, inputs)) == 5 * sum(step.macs for step in order)
    assert chain.params == sum(core.size for core in cores)
    assert all(isinstance(step, MatMul | LeftMatMul | Reshape) for step in chain.steps)
    assert not any(same_twice(a, b) for a, b in itertools.pairwise(chain.steps))
    x = np.random.default_rng(1).standard_normal((2, 3, inputs))
    y = x
    for step in chain.steps:
        y = step.forward(y)
    np.testing.assert_allclose(y, x @ expected.T, atol=1e-9)


def same_twice(a: Step, b: Step) -> bool:
    return isinstance(a, Reshape) and (isinstance(b, Reshape) or a.source == a.target)


@settings(max_examples=60, deadline=None)
@given(cores=trains(), data=st.data())
def test_every_order_applies_the_same_convolution(cores: tuple[Array, ...], data: st.DataObject) -> None:
    d = data.draw(st.integers(1, 3))
    kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(d))
    last = data.draw(st.integers(1, 3))
    rng = np.random.default_rng(0)
    *front, end = cores
    end = rng.standard_normal((*end.shape[:3], last))
    train = (*front, end, rng.standard_normal((last, *kernel)))
    transposed = data.draw(st.booleans())
    # images of 8 and 4 on the two sides of the kernel, whatever its size is
    pads = (0,) * d + tuple(max(0, k - 2) for k in kernel)
    extra = tuple(int(k == 1) for k in kernel) if transposed else ()
    spec = ConvSpec((2,) * d, (1,) * d, pads, transposed=transposed, output_padding=extra)
    shapes = [*(c.shape for c in train[:-1]), (last, 1, 1, 1)]
    order = order_of(shapes, data.draw(st.permutations(range(len(train)))))
    inputs = math.prod(core.shape[1] for core in cores)
    chain = Chain(tuple(conv_steps(train, spec, order)), None, inputs)
    expected = np.tensordot(matrix_of(train[:-1]), train[-1], 1)
    np.testing.assert_allclose(chain.dense(), expected, atol=1e-11)
    assert chain.params == sum(core.size for core in train)
    where = order.index(next(step for step in order if step.core == len(train) - 1))
    positions = [1 if (k > where) != transposed else 2**d for k in range(len(order))]
    positions[where] = math.prod(kernel)
    image = (3, inputs, *(4 if transposed else 8,) * d)
    total = sum(step.macs * count for step, count in zip(order, positions, strict=True))
    assert chain.macs(image) == 3 * 4**d * total
    outputs = math.prod(core.shape[2] for core in cores)
    assert chain.output_shape(image) == (3, outputs, *(8 if transposed else 4,) * d)
    for a, b in itertools.pairwise(chain.steps):
        assert not (type(a) is type(b) and isinstance(a, RegroupBatch | RegroupSpatial))


@settings(max_examples=60, deadline=None)
@given(cores=trains())
def test_the_cheapest_order_is_the_cheapest_of_all(cores: tuple[Array, ...]) -> None:
    shapes = [core.shape for core in cores]

    def cost(order: Order) -> int:
        return sum(step.macs for step in order)

    best = min(cost(order_of(shapes, p)) for p in itertools.permutations(range(len(cores))))
    assert cost(linear_order(cores)) == best


def test_orders_from_either_end_the_middle_and_both_ends() -> None:
    def order(*modes: tuple[int, int], rank: int = 2) -> list[int]:
        bonds = (1, *(rank,) * (len(modes) - 1), 1)
        shapes = [(bonds[k], i, j, bonds[k + 1]) for k, (i, j) in enumerate(modes)]
        return [step.core for step in cheapest_order(shapes)]

    assert order((16, 2), (4, 4), (2, 16)) == [0, 1, 2]
    assert order((2, 16), (4, 4), (16, 2)) == [2, 1, 0]
    assert order((4, 4), (64, 1), (4, 4)) == [1, 0, 2]
    assert order((32, 2), (4, 4), (32, 2)) in ([0, 2, 1], [2, 0, 1])
    assert order(*((2, 2),) * 12) == list(range(12))


@pytest.mark.parametrize("transposed", [False, True])
def test_strides_decide_when_the_kernel_is_applied(transposed: bool) -> None:
    cores = (np.zeros((1, 4, 4, 4)), np.zeros((4, 4, 4, 2)), np.zeros((2, 3, 3)))
    spec = ConvSpec((3, 3), (1, 1), (0, 0, 0, 0), transposed=transposed)
    order = [step.core for step in conv_order(cores, spec)]
    assert order.index(2) == (2 if transposed else 0)
