"""Adjoints: <A x, z> = <x, A* z> for every kind of step, in its input and in its factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.chain import (
    WEIGHTED,
    BlockMatMul,
    Convolve,
    Fold,
    LeftMatMul,
    Lookup,
    MatMul,
    Narrow,
    Pad,
    Permute,
    Reshape,
    Shape,
    Spread,
    Step,
    Transpose,
)
from onnxdecomp.core.layer import Array, ConvSpec
from onnxdecomp.fitting.adjoints import pull_back, weight_gradient, with_weight

SMALL = st.integers(1, 4)
SHAPES = st.lists(SMALL, max_size=2).map(tuple)


def normal(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape)


@st.composite
def convolves(draw: st.DrawFn) -> tuple[Step, Shape]:
    """Along each axis either the kernel so far or this one has size 1."""
    d, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sizes = [draw(st.tuples(st.booleans(), SMALL)) for _ in range(d)]
    kernel = [size if own else 1 for own, size in sizes]
    before = [1 if own else size for own, size in sizes]
    s, t = draw(SMALL), draw(SMALL)
    ones = (1,) * d
    spec = ConvSpec(ones, ones, (0,) * (2 * d), groups, draw(st.booleans()))
    return Convolve(normal(groups * t, s, *kernel), spec), (draw(SMALL), groups * s, *before)


@st.composite
def folds(draw: st.DrawFn) -> tuple[Step, Shape]:
    batch, channels, inner = draw(SMALL), draw(SMALL), draw(SMALL)
    shape = (batch, channels * inner, *draw(SHAPES))
    return Fold(draw(st.sampled_from([inner, channels, batch * channels]))), shape


@st.composite
def spreads(draw: st.DrawFn) -> tuple[Step, Shape]:
    channels, inner = draw(SMALL), draw(SMALL)
    return Spread(channels), (draw(SMALL), channels * inner, draw(SMALL), *draw(SHAPES))


@st.composite
def permutes(draw: st.DrawFn) -> tuple[Step, Shape]:
    order = draw(st.permutations(range(draw(st.integers(1, 6)))))
    return Permute(tuple(order)), (draw(SMALL), len(order), *draw(SHAPES))


@st.composite
def products(draw: st.DrawFn, kind: Callable[[Array], Step]) -> tuple[Step, Shape]:
    s, t = draw(SMALL), draw(SMALL)
    return kind(normal(s, t)), (draw(SMALL), *draw(SHAPES), s)


@st.composite
def left_products(draw: st.DrawFn) -> tuple[Step, Shape]:
    s, t = draw(SMALL), draw(SMALL)
    return LeftMatMul(normal(t, s)), (draw(SMALL), *draw(SHAPES), s, draw(SMALL))


@st.composite
def block_products(draw: st.DrawFn) -> tuple[Step, Shape]:
    b, s, t = draw(SMALL), draw(SMALL), draw(SMALL)
    return BlockMatMul(normal(b, s, t)), (draw(SMALL), *draw(SHAPES), b, s)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[Step, Shape]:
    a, b, c = draw(SMALL), draw(SMALL), draw(SMALL)
    source, target = draw(st.permutations([(a, b, c), (a * b, c), (a * b * c,), (c, a * b), (b * c, a)]))[:2]
    return Reshape(source, target), (draw(SMALL), *draw(SHAPES), *source)


@st.composite
def transposes(draw: st.DrawFn) -> tuple[Step, Shape]:
    perm = tuple(draw(st.permutations(range(draw(st.integers(1, 4))))))
    return Transpose(perm), (draw(SMALL), *draw(SHAPES), *(draw(SMALL) for _ in perm))


@st.composite
def resizes(draw: st.DrawFn, pad: bool) -> tuple[Step, Shape]:
    axis = draw(st.sampled_from([1, -1]))
    shape = (draw(SMALL), *(draw(st.lists(SMALL, min_size=1, max_size=3))))
    if pad:
        return Pad(draw(SMALL), axis), shape
    return Narrow(draw(st.integers(1, shape[axis])), axis), shape


STEPS: dict[type, st.SearchStrategy[tuple[Step, Shape]]] = {
    Convolve: convolves(),
    Fold: folds(),
    Spread: spreads(),
    Permute: permutes(),
    MatMul: products(MatMul),
    LeftMatMul: left_products(),
    BlockMatMul: block_products(),
    Lookup: products(Lookup),
    Reshape: reshapes(),
    Transpose: transposes(),
    Pad: resizes(True),
    Narrow: resizes(False),
}


def test_every_step_has_its_strategy() -> None:
    assert set(STEPS) == set(get_args(Step))
    assert set(WEIGHTED) <= set(STEPS)


@pytest.mark.parametrize("kind", STEPS, ids=lambda kind: kind.__name__)
@settings(max_examples=40)
@given(data=st.data())
def test_the_adjoint_in_the_input(kind: type, data: st.DataObject) -> None:
    step, shape = data.draw(STEPS[kind])
    x = normal(*shape)
    y = step.respond(x)
    z = normal(7, *y.shape)[3]
    back = pull_back(step, z, x.shape)
    assert back.shape == x.shape
    np.testing.assert_allclose(np.vdot(y, z), np.vdot(x, back), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", WEIGHTED, ids=lambda kind: kind.__name__)
@settings(max_examples=40)
@given(data=st.data())
def test_the_adjoint_in_the_factor(kind: type, data: st.DataObject) -> None:
    step: Any
    step, shape = data.draw(STEPS[kind])
    x, weight = normal(*shape), normal(5, *step.weight.shape)[2]
    y = with_weight(step, weight).respond(x)
    z = normal(7, *y.shape)[3]
    gradient = weight_gradient(step, x, z)
    assert gradient.shape == weight.shape
    np.testing.assert_allclose(np.vdot(y, z), np.vdot(weight, gradient), rtol=1e-9, atol=1e-9)


def test_another_weight_leaves_the_rest() -> None:
    step = Convolve(normal(2, 3, 1), ConvSpec((2,), (1,), (1, 0)), "core")
    other = with_weight(step, np.zeros((2, 3, 1)))
    assert isinstance(other, Convolve)
    assert (other.spec, other.label) == (step.spec, "core")
    assert step.weight.any()
    assert not other.weight.any()
