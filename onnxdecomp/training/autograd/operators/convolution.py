"""Convolutions and their transposes."""

from __future__ import annotations

from torch.nn import functional

from onnxdecomp.training.autograd.call import Call, Table, Tensor
from onnxdecomp.training.autograd.operators.windows import Window, pad

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def convolve(call: Call) -> Tensor:
    """Conv, also the part of a FusedConv before its activation."""
    x, weight = call.x, call[1]
    window = Window.of(call, weight.shape[2:])
    before, after = window.pads(call, x.shape[2:])
    padding: list[int] = before
    if before != after:
        x, padding = pad(x, before, after), [0] * len(before)
    return _CONV[len(before)](
        x, weight, call.get(2), window.strides, padding, window.dilations, call.attribute("group", 1)
    )


def transposed(call: Call) -> Tensor:
    """ConvTranspose: computed without pads, then cut to size."""
    x, weight, bias = call.x, call[1], call.get(2)
    window = Window.of(call, weight.shape[2:])
    n = len(window.kernel)
    extra = call.attribute("output_padding", [0] * n)
    full = [
        (size - 1) * stride + extent
        for size, stride, extent in zip(x.shape[2:], window.strides, window.extents, strict=True)
    ]
    wanted = call.attribute("output_shape")
    how = call.attribute("auto_pad", "NOTSET")
    if wanted is None and how in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(x.shape[2:], window.strides, strict=True)]
    if wanted is not None:
        total = [f + e - w for f, e, w in zip(full, extra, wanted[-n:], strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (less, more) if how == "SAME_UPPER" else (more, less)
    else:
        before, after = window.pads(call, x.shape[2:]) if how == "NOTSET" else ([0] * n, [0] * n)
    y = _TRANSPOSED[n](x, weight, None, window.strides, 0, 0, call.attribute("group", 1), window.dilations)
    y = pad(y, [-b for b in before], [e - a for e, a in zip(extra, after, strict=True)])
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * n)


TABLE: Table = {"Conv": convolve, "ConvTranspose": transposed}
