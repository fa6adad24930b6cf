"""Rows of a convolution's input: times the weight they are what ONNX Runtime computes, at every position."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxdecomp.calibration.im2col import (
    at_positions,
    conv_rows,
    draw_positions,
    kernel_first,
    output_sizes,
    pad_begins,
)
from onnxdecomp.core.layer import Array, ConvSpec, Layer
from onnxdecomp.fitting.quadratic_loss import as_rows
from onnxdecomp.layers.find import find
from tests.builders.cases import Case, case_of, convolutions
from tests.builders.running import run

MANY = settings(max_examples=120)


def layer_of(case: Case) -> Layer:
    (match,), _ = find(ir.from_proto(case.model))
    return match.layer


def computed(layer: Layer, rows: Array) -> Array:
    """W x + b of every row, [n, T]."""
    weight = as_rows(layer.weight, layer)[:, :, kernel_first(layer)]
    y = rows @ weight.swapaxes(1, 2)
    flat: Array = y.swapaxes(0, 1).reshape(rows.shape[1], -1)
    return flat if layer.bias is None else flat + layer.bias


def check(case: Case, count: int, seed: int = 0) -> None:
    layer = layer_of(case)
    x = case.feeds["x"]
    (y,) = run(case.model, case.feeds)
    sizes = output_sizes(layer, x)
    assert sizes == y.shape[2:]
    at = draw_positions(sizes, count, np.random.default_rng(seed))
    rows = conv_rows(layer, x, at)
    assert rows.dtype == x.dtype
    assert rows.shape == (layer.groups, len(x) * len(at[0]), layer.weight[0].size)
    np.testing.assert_allclose(computed(layer, rows), at_positions(y, at), rtol=1e-4, atol=1e-4)


@MANY
@given(case=convolutions(), count=st.integers(1, 40), seed=st.integers(0, 9))
def test_a_convolution_of_any_attributes(case: Case, count: int, seed: int) -> None:
    check(case, count, seed)


@MANY
@given(case=convolutions(transposed=True), count=st.integers(1, 40), seed=st.integers(0, 9))
def test_a_transposed_convolution_of_any_attributes(case: Case, count: int, seed: int) -> None:
    assume(find(ir.from_proto(case.model))[0])  # not with an output_shape for inputs of any size
    check(case, count, seed)


def conv_case(
    x: tuple[int, ...], weight: tuple[int, ...], transposed: bool = False, **attributes: Any
) -> Case:
    rng = np.random.default_rng(0)
    op = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)
    return case_of([node], {"w": rng.standard_normal(weight)}, {"x": rng.standard_normal(x)}, True)


@pytest.mark.parametrize(
    "case",
    [
        conv_case((2, 6, 9, 7), (4, 3, 3, 2), group=2, strides=[2, 1], dilations=[1, 2], pads=[0, 2, 1, 1]),
        *[
            conv_case((2, 4, 8, 9), (3, 4, 4, 3), strides=[2, 3], auto_pad=mode)
            for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
        ],
        conv_case((2, 4, 15), (6, 2, 5), group=2, pads=[3, 0]),
        conv_case((1, 2, 5, 6, 4), (3, 2, 2, 3, 1), strides=[1, 2, 2], pads=[1, 0, 0, 0, 2, 1]),
        conv_case((2, 6, 4, 5), (6, 2, 3, 3), True, group=3, strides=[2, 3], pads=[1, 0, 2, 1]),
        conv_case((2, 6, 4, 5), (6, 2, 3, 3), True, strides=[3, 2], output_padding=[2, 1], dilations=[2, 1]),
        *[
            conv_case((2, 3, 5, 4), (3, 2, 4, 3), True, strides=[2, 2], auto_pad=mode)
            for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
        ],
        conv_case((2, 3, 6), (3, 2, 1), True, strides=[3]),
        conv_case((2, 3, 6), (3, 2, 1), True, strides=[3], auto_pad="SAME_LOWER"),
        conv_case((1, 2, 3, 4, 2), (2, 3, 2, 2, 3), True, strides=[2, 1, 2], pads=[0, 1, 0, 1, 0, 2]),
    ],
    ids=repr,
)
def test_all_positions(case: Case) -> None:
    """So that every one that reaches over an edge is met."""
    check(case, 10**6)


def test_the_padding_of_an_automatic_mode_depends_on_the_size() -> None:
    spec = ConvSpec((2,), (1,), "SAME_UPPER")
    layer = Layer("layer", "Conv", np.zeros((1, 1, 4), np.float32), None, spec)
    begins = [pad_begins(layer, np.zeros((1, 1, size))) for size in (8, 9)]
    assert begins == [(1,), (1,)]
    lower = Layer("layer", "Conv", np.zeros((1, 1, 4), np.float32), None, ConvSpec((2,), (1,), "SAME_LOWER"))
    assert [pad_begins(lower, np.zeros((1, 1, size))) for size in (8, 9)] == [(1,), (2,)]


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    count=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_positions_are_drawn_once_each(sizes: tuple[int, ...], count: int, seed: int) -> None:
    at = draw_positions(sizes, count, np.random.default_rng(seed))
    total = math.prod(sizes)
    drawn = list(zip(*(axis.tolist() for axis in at), strict=True))
    assert len(drawn) == len(set(drawn)) == min(count, total)
    assert all(0 <= place < size for spot in drawn for place, size in zip(spot, sizes, strict=True))
    again = draw_positions(sizes, count, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(at, again, strict=True))


def test_every_position_has_its_turn() -> None:
    rng = np.random.default_rng(0)
    seen = {spot for _ in range(60) for spot in zip(*draw_positions((3, 4), 2, rng), strict=True)}
    assert len(seen) == 12


def test_a_grid_of_no_axes_has_no_positions() -> None:
    assert draw_positions((), 5, np.random.default_rng(0)) == ()


@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 2)])
def test_an_activation_at_positions(spatial: tuple[int, ...]) -> None:
    y = np.random.default_rng(0).standard_normal((2, 3, *spatial))
    at = draw_positions(spatial, 4, np.random.default_rng(1))
    expected = [y[(n, slice(None), *(axis[p] for axis in at))] for n in range(2) for p in range(4)]
    np.testing.assert_array_equal(at_positions(y, at), expected)
