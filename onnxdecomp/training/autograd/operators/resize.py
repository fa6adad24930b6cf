"""Resize and Upsample: along one axis after the other, each a few weighted neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from onnxdecomp.core.layer import Array
from onnxdecomp.training.autograd.call import Call, Table, Tensor


def _resize(call: Call) -> Tensor:
    if call.attribute("antialias", 0) or call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refuse("it has antialias or keep_aspect_ratio_policy")
    x = call.x
    scales, sizes = _numbers(call.get(2)), _numbers(call.get(3))
    if call.opset < 11:
        scales, sizes = _numbers(call[1]), None
    axes = [axis % x.ndim for axis in call.attribute("axes", list(range(x.ndim)))]
    coordinates = call.attribute("coordinate_transformation_mode", "half_pixel")
    coordinates = "asymmetric" if call.opset < 11 else coordinates
    rounding = "floor" if call.opset < 11 else call.attribute("nearest_mode", "round_prefer_floor")
    mode = call.attribute("mode", "nearest")
    regions = _numbers(call.get(1)) if coordinates == "tf_crop_and_resize" else None
    for position, axis in enumerate(axes):
        before = x.shape[axis]
        if sizes:
            after, scale = int(sizes[position]), sizes[position] / before
        else:
            assert scales is not None
            scale = scales[position]
            after = int(np.floor(before * scale))
        if after == before and scale == 1 and regions is None:
            continue
        region = None if regions is None else (regions[position], regions[position + len(axes)])
        points = _points(coordinates, before, after, scale, region)
        x = _along(call, x, axis, points, mode, rounding, regions is not None)
    return x


def _upsample(call: Call) -> Tensor:
    scales = call.attribute("scales") or _numbers(call.get(1))
    assert scales is not None
    x = call.x
    for axis, scale in enumerate(scales):
        if scale != 1:
            points = np.arange(int(np.floor(x.shape[axis] * scale))) / scale
            x = _along(call, x, axis, points, call.attribute("mode", "nearest"), "floor", False)
    return x


def _numbers(value: Tensor | None) -> list[float] | None:
    if value is None or value.numel() == 0:
        return None
    return [float(v) for v in value.tolist()]


def _points(mode: str, before: int, after: int, scale: float, region: tuple[float, float] | None) -> Array:
    """Where the numbers of an axis lie on the axis before."""
    at = np.arange(after, dtype=np.float64)
    match mode:
        case "asymmetric":
            return at / scale
        case "align_corners":
            return at * (before - 1) / (after - 1) if after > 1 else at * 0
        case "tf_half_pixel_for_nn":
            return (at + 0.5) / scale
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if after > 1 else at * 0
        case "half_pixel_symmetric":
            exact = before * scale
            return (before / 2) * (1 - after / exact) + (at + 0.5) / scale - 0.5
        case "tf_crop_and_resize":
            assert region is not None
            start, end = region
            if after == 1:
                return at + 0.5 * (start + end) * (before - 1)
            return start * (before - 1) + at * (end - start) * (before - 1) / (after - 1)
    return (at + 0.5) / scale - 0.5


def _along(
    call: Call, x: Tensor, axis: int, points: Array, mode: str, rounding: str, outside: bool
) -> Tensor:
    size = x.shape[axis]
    if mode == "nearest":
        return x.index_select(axis, _index(_nearest(points, rounding), size, x))
    base = np.floor(points)
    part = points - base
    if mode == "cubic":
        observer = _cubic(call, part)
        shifts: Sequence[int] = (-1, 0, 1, 2)
    else:
        # Beyond the border a point is as the border is.
        inside = np.clip(points, 0, size - 1)
        base, part = np.floor(inside), inside - np.floor(inside)
        observer, shifts = [1 - part, part], (0, 1)
    if mode == "cubic" and call.attribute("exclude_outside", 0):
        masks = [(base + s >= 0) & (base + s < size) for s in shifts]
        observer = [tap * mask for tap, mask in zip(observer, masks, strict=True)]
        total = np.sum(observer, axis=0)
        observer = [tap / total for tap in observer]
    shape = (-1, *(1,) * (x.ndim - axis - 1))
    picked = [x.index_select(axis, _index(base + shift, size, x)) for shift in shifts]
    weights = [torch.from_numpy(tap).to(x).reshape(shape) for tap in observer]
    y = sum((p * w for p, w in zip(picked, weights, strict=True)), start=torch.zeros_like(picked[0]))
    if outside:
        beyond = torch.from_numpy((points < 0) | (points > size - 1)).to(x.device).reshape(shape)
        y = torch.where(beyond, torch.full_like(y, call.attribute("extrapolation_value", 0.0)), y)
    return y


def _cubic(call: Call, part: Array) -> list[Array]:
    """Weights of four neighbours (Keys 1981)."""
    a = call.attribute("cubic_coeff_a", -0.75)
    far, near = part + 1, part
    return [
        ((a * far - 5 * a) * far + 8 * a) * far - 4 * a,
        ((a + 2) * near - (a + 3)) * near**2 + 1,
        ((a + 2) * (1 - near) - (a + 3)) * (1 - near) ** 2 + 1,
        ((a * (2 - near) - 5 * a) * (2 - near) + 8 * a) * (2 - near) - 4 * a,
    ]


def _nearest(points: Array, rounding: str) -> Array:
    match rounding:
        case "floor":
            return np.floor(points)
        case "ceil":
            return np.ceil(points)
        case "round_prefer_ceil":
            return np.floor(points + 0.5)
    return np.ceil(points - 0.5)


def _index(positions: Array, size: int, like: Tensor) -> Tensor:
    return torch.from_numpy(np.clip(positions, 0, size - 1).astype(np.int64)).to(like.device)


TABLE: Table = {"Resize": _resize, "Upsample": _upsample}
