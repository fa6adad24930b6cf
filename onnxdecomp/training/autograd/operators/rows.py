"""What a weight multiplies: the rows of the product that an operator is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch.nn import functional

from onnxdecomp.training.autograd.call import Call, Tensor
from onnxdecomp.training.autograd.operators.windows import Window, pad

Rows: TypeAlias = tuple[Tensor, int]
"""The rows [n, inputs], and the axis of the inputs in the weight; of a convolution all axes from there on."""


def _convolution(call: Call, weight: int) -> Rows | None:
    kernel = call[1].shape[2:]
    if weight != 1 or len(kernel) not in (1, 2) or call.attribute("group", 1) != 1:
        return None
    window = Window.of(call, kernel)
    x = pad(call.x, *window.pads(call, call.x.shape[2:]))
    sizes = [list(kernel), list(window.dilations), list(window.strides)]
    if len(kernel) == 1:
        x, sizes = x.unsqueeze(2), [[1, *size] for size in sizes]
    kernels, dilations, strides = sizes
    columns = functional.unfold(x, kernels, dilation=dilations, stride=strides)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1]), 1


def _product(call: Call, weight: int) -> Rows | None:
    if call[weight].ndim != 2:
        return None
    if weight == 1:
        return call.x.reshape(-1, call.x.shape[-1]), 0
    other = call[1].transpose(-1, -2) if call[1].ndim > 1 else call[1]
    return other.reshape(-1, other.shape[-1]), 1


def _gemm(call: Call, weight: int) -> Rows | None:
    if weight != 1:
        return None
    x = call.x.T if call.attribute("transA", 0) else call.x
    return x, 1 if call.attribute("transB", 0) else 0


ROWS: Mapping[str, Callable[[Call, int], Rows | None]] = {
    "Conv": _convolution,
    "Gemm": _gemm,
    "MatMul": _product,
}
"""By operator: the rows that an operand, which is a weight, multiplies; None where it is no such product."""
