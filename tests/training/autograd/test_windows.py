"""Convolutions, pooling and resizing against ONNX Runtime, over their attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.builders.feeds import normal
from tests.training.autograd.one_node import check

AUTO = st.sampled_from(("NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"))


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, dict[str, Any], tuple[int, ...]]:
    """The number of axes, attributes, and kernel sizes."""
    n = draw(st.integers(1, 3))
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)))
    how: dict[str, Any] = {
        "strides": draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)),
        "dilations": draw(st.lists(st.integers(1, 2), min_size=n, max_size=n)),
        "auto_pad": draw(AUTO),
    }
    if how["auto_pad"] == "NOTSET":
        pads = [draw(st.integers(0, k - 1)) for k in kernel * 2]
        how["pads"] = pads
    return n, how, kernel


@settings(max_examples=60, deadline=None)
@given(windows(), st.sampled_from((1, 2)), st.booleans())
def test_conv(window: tuple[int, dict[str, Any], tuple[int, ...]], group: int, biased: bool) -> None:
    n, how, kernel = window
    x, weight = normal(2, 4, *(7, 6, 5)[:n]), normal(6, 4 // group, *kernel)
    assume(how["auto_pad"] in ("NOTSET", "VALID") or max(how["dilations"]) == 1)
    check("Conv", [x, weight, *[normal(6)] * biased], group=group, tolerance=1e-4, **how)


@settings(max_examples=60, deadline=None)
@given(windows(), st.sampled_from((1, 2)), st.integers(0, 1))
def test_conv_transpose(window: tuple[int, dict[str, Any], tuple[int, ...]], group: int, extra: int) -> None:
    n, how, kernel = window
    assume(extra == 0 or min(how["strides"]) > 1)
    if how["auto_pad"] != "NOTSET":
        how, extra = {**how, "dilations": [1] * n}, 0
        assume(all(k >= s for k, s in zip(kernel, how["strides"], strict=True)))
    x, weight = normal(2, 4, *(5, 4, 3)[:n]), normal(4, 6 // group, *kernel)
    check(
        "ConvTranspose",
        [x, weight, normal(6)],
        group=group,
        output_padding=[extra] * n,
        tolerance=1e-4,
        **how,
    )


def test_conv_transpose_of_a_wanted_shape() -> None:
    check("ConvTranspose", [normal(1, 2, 4, 4), normal(2, 3, 3, 3)], strides=[2, 2], output_shape=[8, 9])


def _filled(how: dict[str, Any], kernel: tuple[int, ...]) -> bool:
    """ONNX Runtime refuses a window that is smaller than its stride where it finds the pads itself."""
    return all(k >= s for k, s in zip(kernel, how["strides"], strict=True))


@settings(max_examples=60, deadline=None)
@given(windows(), st.sampled_from((0, 1)))
def test_max_pool(window: tuple[int, dict[str, Any], tuple[int, ...]], ceil: int) -> None:
    n, how, kernel = window
    assume(how["auto_pad"] == "NOTSET" or (max(how["dilations"]) == 1 and not ceil and _filled(how, kernel)))
    check("MaxPool", [normal(2, 3, *(9, 8, 7)[:n])], kernel_shape=kernel, ceil_mode=ceil, opset=22, **how)


@settings(max_examples=60, deadline=None)
@given(windows(), st.sampled_from((0, 1)), st.sampled_from((0, 1)))
def test_average_pool(window: tuple[int, dict[str, Any], tuple[int, ...]], ceil: int, counted: int) -> None:
    n, how, kernel = window
    assume(how["auto_pad"] == "NOTSET" or (not ceil and _filled(how, kernel)))
    del how["dilations"]
    check(
        "AveragePool",
        [normal(2, 3, *(9, 8, 7)[:n])],
        kernel_shape=kernel,
        ceil_mode=ceil,
        count_include_pad=counted,
        opset=22,
        **how,
    )


MODES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(("nearest", "linear", "cubic")),
    st.sampled_from(MODES),
    st.sampled_from(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
    st.sampled_from(((1.0, 1.0, 2.0, 1.5), (1.0, 1.0, 0.6, 2.0), (1.0, 1.0, 3.0, 0.5))),
    st.booleans(),
)
def test_resize(mode: str, coordinates: str, rounding: str, scales: tuple[float, ...], sized: bool) -> None:
    x = normal(1, 2, 6, 5)
    sizes = np.array([1, 2, *(int(s * f) for s, f in zip((6, 5), scales[2:], strict=True))], np.int64)
    given_by = [None, None, sizes] if sized else [None, np.array(scales, np.float32)]
    check(
        "Resize",
        [x, *given_by],
        opset=19,
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode=rounding,
        tolerance=1e-4,
    )


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_what_came_before_resize(mode: str) -> None:
    scales = np.array([1, 1, 2, 3], np.float32)
    check("Upsample", [normal(1, 2, 4, 3), scales], opset=9, mode=mode)
    check("Upsample", [normal(1, 2, 4, 3)], opset=7, mode=mode, scales=scales.tolist())
    check("Resize", [normal(1, 2, 4, 3), scales], opset=10, mode=mode)


def test_resize_of_a_region() -> None:
    region = np.array([0, 0, 0.1, 0.2, 1, 1, 0.9, 1.2], np.float32)
    check(
        "Resize",
        [normal(1, 2, 6, 5), region, None, np.array([1, 2, 7, 4], np.int64)],
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=0.5,
        tolerance=1e-4,
    )
