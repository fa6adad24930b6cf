"""Every kind of step: what it does to shapes and numbers, its adjoints, and what it costs.

<A x, z> = <x, AT z> in the input, and <A(w) x, z> = <w, gradient> in the factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, shape_inference

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
    RegroupSpatial,
    Reshape,
    Shape,
    Slice,
    Step,
    Transpose,
    WeightedStep,
)
from onnxdecomp.layers.conv_layout import onnx_transposed

SMALL = st.integers(1, 4)
SHAPES = st.lists(SMALL, max_size=2).map(tuple)


def normal(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape)


@st.composite
def convolves(draw: st.DrawFn) -> tuple[Step, Shape]:
    """Along an axis either the kernel so far or this one has size 1; padded so that none of it is cut off."""
    d, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sizes = [draw(st.tuples(st.booleans(), SMALL)) for _ in range(d)]
    kernel = [size if own else 1 for own, size in sizes]
    before = [1 if own else size for own, size in sizes]
    s, t = draw(SMALL), draw(SMALL)
    ones, transposed = (1,) * d, draw(st.booleans())
    pads = (0,) * (2 * d) if transposed else tuple(size - 1 for size in kernel) * 2
    spec = ConvSpec(ones, ones, pads, groups, transposed)
    return Convolve(normal(groups * t, s, *kernel), spec), (draw(SMALL), groups * s, *before)


@st.composite
def batch_regroups(draw: st.DrawFn) -> tuple[Step, Shape]:
    batch, channels, inner = draw(SMALL), draw(SMALL), draw(SMALL)
    shape = (batch, channels * inner, *draw(SHAPES))
    return RegroupBatch(draw(st.sampled_from([inner, channels, batch * channels]))), shape


@st.composite
def spatial_regroups(draw: st.DrawFn) -> tuple[Step, Shape]:
    channels, inner, first = draw(SMALL), draw(SMALL), draw(SMALL)
    shape = (draw(SMALL), channels * inner, first, *draw(SHAPES))
    return RegroupSpatial(draw(st.sampled_from([channels, first, channels * inner * first]))), shape


@st.composite
def channel_permutations(draw: st.DrawFn) -> tuple[Step, Shape]:
    order = draw(st.permutations(range(draw(st.integers(1, 6)))))
    return PermuteChannels(tuple(order)), (draw(SMALL), len(order), *draw(SHAPES))


@st.composite
def products(draw: st.DrawFn, kind: Callable[[Array], Step]) -> tuple[Step, Shape]:
    s, t = draw(SMALL), draw(SMALL)
    return kind(normal(s, t)), (draw(SMALL), *draw(SHAPES), s)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[Step, Shape]:
    b, s, t = draw(SMALL), draw(SMALL), draw(SMALL)
    return MatMul(normal(b, s, t)), (*draw(SHAPES), draw(st.sampled_from([1, b])), draw(SMALL), s)


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
def resizes(draw: st.DrawFn, make: Callable[[int, int], Step]) -> tuple[Step, Shape]:
    axis = draw(st.sampled_from([1, -1]))
    shape = (draw(SMALL), *(draw(st.lists(SMALL, min_size=1, max_size=3))))
    return make(draw(st.integers(1, shape[axis])), axis), shape


STEPS: dict[type[Step], st.SearchStrategy[tuple[Step, Shape]]] = {
    Convolve: convolves(),
    RegroupBatch: batch_regroups(),
    RegroupSpatial: spatial_regroups(),
    PermuteChannels: channel_permutations(),
    MatMul: st.one_of(products(MatMul), stacks()),
    LeftMatMul: left_products(),
    BlockMatMul: block_products(),
    Lookup: products(Lookup),
    Reshape: reshapes(),
    Transpose: transposes(),
    Pad: resizes(Pad),
    Slice: resizes(Slice),
}


def kinds(root: type[Step]) -> Iterator[type[Step]]:
    """All classes of steps of the product that are no base of others."""
    below = [kind for kind in root.__subclasses__() if kind.__module__.startswith("onnxdecomp.")]
    if not below:
        yield root
    for kind in below:
        yield from kinds(kind)


KINDS = sorted(kinds(Step), key=lambda kind: kind.__name__)  # type: ignore[type-abstract]
WEIGHTED = sorted(kinds(WeightedStep), key=lambda kind: kind.__name__)  # type: ignore[type-abstract]
each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_weighted = pytest.mark.parametrize("kind", WEIGHTED, ids=lambda kind: kind.__name__)


def drawn(kind: type[Step], data: st.DataObject) -> tuple[Step, Shape]:
    """A step of that kind and the shape of an activation that it takes."""
    step, shape = data.draw(STEPS[kind])
    assert type(step) is kind
    return step, shape


def drawn_weighted(kind: type[Step], data: st.DataObject) -> tuple[WeightedStep, Shape]:
    step, shape = drawn(kind, data)
    assert isinstance(step, WeightedStep)
    return step, shape


def test_every_kind_has_its_strategy() -> None:
    assert set(STEPS) == set(KINDS)
    assert set(WEIGHTED) < set(KINDS)


@each
@settings(max_examples=25)
@given(data=st.data())
def test_the_adjoint_in_the_input(kind: type[Step], data: st.DataObject) -> None:
    step, shape = drawn(kind, data)
    x = normal(*shape)
    y = step.forward(x)
    z = normal(7, *y.shape)[3]
    back = step.adjoint(z, x.shape)
    assert back.shape == x.shape
    np.testing.assert_allclose(np.vdot(y, z), np.vdot(x, back), rtol=1e-9, atol=1e-9)


@each_weighted
@settings(max_examples=25)
@given(data=st.data())
def test_the_adjoint_in_the_factor(kind: type[Step], data: st.DataObject) -> None:
    step, shape = drawn_weighted(kind, data)
    x, weight = normal(*shape), normal(5, *step.weight.shape)[2]
    y = step.with_weight(weight).forward(x)
    z = normal(7, *y.shape)[3]
    gradient = step.weight_gradient(x, z)
    assert gradient.shape == weight.shape
    np.testing.assert_allclose(np.vdot(y, z), np.vdot(weight, gradient), rtol=1e-9, atol=1e-9)


@each
@settings(max_examples=25)
@given(data=st.data())
def test_the_shape_is_that_of_the_numbers(kind: type[Step], data: st.DataObject) -> None:
    step, shape = drawn(kind, data)
    assert step.forward(normal(*shape)).shape == step.output_shape(shape)


@each
@settings(max_examples=25)
@given(data=st.data())
def test_it_is_linear(kind: type[Step], data: st.DataObject) -> None:
    step, shape = drawn(kind, data)
    a, b = normal(2, *shape)
    expected = 2 * step.forward(a) - step.forward(b)
    np.testing.assert_allclose(step.forward(2 * a - b), expected, rtol=1e-9, atol=1e-9)


@each_weighted
@settings(max_examples=25)
@given(data=st.data())
def test_multiplications_are_counted_out(kind: type[Step], data: st.DataObject) -> None:
    """A response of ones to ones is the number of products that it is the sum of."""
    step, shape = drawn_weighted(kind, data)
    response = step.with_weight(np.ones_like(step.weight)).forward(np.ones(shape))
    products = int(response.sum())
    if step.weight.ndim == 2 or kind is not MatMul:
        assert math.prod(shape) * step.params == products * step.inputs
    if isinstance(step, Lookup):
        products = 0
    elif not isinstance(step, Convolve):
        assert step.fan_in == response.max()
    elif not step.spec.transposed:
        # A kernel is multiplied by all that is in its window, zeros of the padding, too.
        products *= math.prod(step.output_shape(shape)[2:]) // math.prod(shape[2:])
    assert step.macs(shape) == products


@each
@settings(max_examples=25)
@given(data=st.data())
def test_without_numbers_it_costs_nothing(kind: type[Step], data: st.DataObject) -> None:
    step, shape = drawn(kind, data)
    held = [getattr(step, option.name) for option in fields(step)]
    assert step.params == sum(value.size for value in held if isinstance(value, np.ndarray))
    assert isinstance(step, WeightedStep) == (step.params > 0)
    assert isinstance(step, WeightedStep) or step.macs(shape) == 0


@each_weighted
@settings(max_examples=25)
@given(data=st.data())
def test_a_row_makes_one_output(kind: type[Step], data: st.DataObject) -> None:
    step, shape = drawn_weighted(kind, data)
    rows, x = step.rows(), normal(*shape)
    if rows is None:
        assert kind in (BlockMatMul, LeftMatMul, Lookup) or step.weight.ndim > 2
        return
    assert rows.shape[2] == step.fan_in
    np.testing.assert_array_equal(step.with_rows(rows).weight, step.weight)
    other = np.array(rows)
    other[-1, -1] += 1 + np.arange(rows.shape[2])
    change = step.with_rows(other).forward(x) - step.forward(x)
    axis = 1 if kind is Convolve else -1
    assert not change.take(range(change.shape[axis] - 1), axis).any()
    assert change.take(-1, axis).any()


@pytest.mark.parametrize("step", [BlockMatMul(normal(2, 3, 4)), LeftMatMul(normal(2, 3))])
def test_outputs_with_numbers_in_common_have_no_rows(step: WeightedStep) -> None:
    with pytest.raises(NotImplementedError, match=f"{type(step).__name__} have numbers in common"):
        step.with_rows(normal(1, 2, 3))


@each_weighted
@settings(max_examples=25)
@given(data=st.data())
def test_outputs_scale_with_the_weight_along_its_axis(kind: type[Step], data: st.DataObject) -> None:
    step, shape = drawn_weighted(kind, data)
    x, axis = normal(*shape), {Convolve: 1, LeftMatMul: -2}.get(kind, -1)
    scales = 1.0 + np.arange(step.weight.shape[step.output_axis])
    weight = along(step.weight, step.output_axis, scales)
    expected = along(step.forward(x), axis, scales)
    np.testing.assert_allclose(step.with_weight(weight).forward(x), expected, rtol=1e-9, atol=1e-9)


def along(array: Array, axis: int, scales: Array) -> Array:
    """The array times a scale for each place along an axis."""
    return np.moveaxis(np.moveaxis(array, axis, -1) * scales, -1, axis)


@st.composite
def strided_convolves(draw: st.DrawFn) -> tuple[Convolve, Shape]:
    """Over all attributes, on inputs that are large enough."""
    d, transposed = draw(st.integers(1, 2)), draw(st.booleans())

    def each_axis(low: int, high: int, count: int = d) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(count))

    strides, dilations, kernel = each_axis(1, 3), each_axis(1, 3), each_axis(1, 3)
    modes = [None, "SAME_UPPER", "SAME_LOWER", "VALID"]
    pads = draw(st.sampled_from(modes)) or each_axis(0, 1, 2 * d)
    grows = transposed and not isinstance(pads, str)
    extra = tuple(draw(st.integers(0, stride - 1)) for stride in strides) if grows else ()
    spec = ConvSpec(strides, dilations, pads, 1, transposed, extra)
    return Convolve(normal(4, 3, *kernel), spec), (2, 3, *each_axis(8, 11))


@settings(max_examples=80)
@given(strided_convolves())
def test_a_convolution_has_the_size_that_onnx_says(drawn: tuple[Convolve, Shape]) -> None:
    step, shape = drawn
    assert step.output_shape(shape) == inferred(step, shape)


def inferred(step: Convolve, shape: Shape) -> Shape:
    """The output's shape as onnx infers it."""
    spec, weight = step.spec, step.weight
    attributes: dict[str, Any] = {"strides": spec.strides, "dilations": spec.dilations}
    attributes |= {"auto_pad": spec.pads} if isinstance(spec.pads, str) else {"pads": spec.pads}
    if spec.output_padding:
        attributes["output_padding"] = spec.output_padding
    op_type = "ConvTranspose" if spec.transposed else "Conv"
    node = helper.make_node(op_type, ["x", "w"], ["y"], kernel_shape=weight.shape[2:], **attributes)
    sizes = {
        "x": shape,
        "w": onnx_transposed(weight, 1).shape if spec.transposed else weight.shape,
        "y": None,
    }
    x, w, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items())
    model = helper.make_model(helper.make_graph([node], "g", [x, w], [y]))
    found = shape_inference.infer_shapes(model, strict_mode=True).graph.output[0]
    return tuple(dim.dim_value for dim in found.type.tensor_type.shape.dim)


def test_another_weight_leaves_the_rest() -> None:
    step = Convolve(normal(2, 3, 1), ConvSpec((2,), (1,), (1, 0)), "core")
    other = step.with_weight(np.zeros((2, 3, 1)))
    assert (other.spec, other.label) == (step.spec, "core")
    assert step.weight.any()
    assert not other.weight.any()
