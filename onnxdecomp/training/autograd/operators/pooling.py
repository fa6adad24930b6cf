"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from onnxdecomp.training.autograd.call import Call, Table, Tensor
from onnxdecomp.training.autograd.operators.windows import Window, pad

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _rest(call: Call, window: Window, sizes: Sequence[int], pads: Sequence[int]) -> list[int]:
    """What must follow each padded axis so that its last, incomplete window is computed too."""
    rest = []
    for size, stride, extent, before_and_after in zip(
        sizes, window.strides, window.extents, pads, strict=True
    ):
        over = (size + before_and_after - extent) % stride
        rest.append(stride - over if call.attribute("ceil_mode", 0) and over else 0)
    return rest


def _max_pool(call: Call) -> Tensor:
    if call.used(1):
        raise call.refuse("its second output, the indices, is used")
    x = call.x
    window = Window.of(call, call.attribute("kernel_shape"))
    before, after = window.pads(call, x.shape[2:])
    rest = _rest(call, window, x.shape[2:], [b + a for b, a in zip(before, after, strict=True)])
    x = pad(x, before, [a + r for a, r in zip(after, rest, strict=True)], -torch.inf)
    y = _MAX[len(before)](x, window.kernel, window.strides, 0, window.dilations)
    return _complete(y, window, call.x.shape[2:], before)


def _complete(y: Tensor, window: Window, sizes: Sequence[int], before: Sequence[int]) -> Tensor:
    """Without the last window of an axis where that begins behind the input."""
    for axis, (size, stride, start) in enumerate(zip(sizes, window.strides, before, strict=True), 2):
        while (y.shape[axis] - 1) * stride >= size + start:
            y = y.narrow(axis, 0, y.shape[axis] - 1)
    return y


def _mean_pool(call: Call) -> Tensor:
    x = call.x
    window = Window.of(call, call.attribute("kernel_shape"))
    if any(d > 1 for d in window.dilations):
        raise call.refuse("it has dilations")
    before, after = window.pads(call, x.shape[2:])
    rest = _rest(call, window, x.shape[2:], [b + a for b, a in zip(before, after, strict=True)])
    counted = torch.ones_like(x[:1, :1])
    counted = pad(counted, before, after, 1.0 if call.attribute("count_include_pad", 0) else 0.0)
    counted = pad(counted, [0] * len(rest), rest)
    x = pad(x, before, [a + r for a, r in zip(after, rest, strict=True)])
    pool = _MEAN[len(before)]
    y = pool(x, window.kernel, window.strides) / pool(counted, window.kernel, window.strides)
    return _complete(y, window, call.x.shape[2:], before)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


TABLE: Table = {
    "AveragePool": _mean_pool,
    "GlobalAveragePool": lambda call: call.x.mean(_spatial(call.x), keepdim=True),
    "GlobalMaxPool": lambda call: call.x.amax(_spatial(call.x), keepdim=True),
    "MaxPool": _max_pool,
}
