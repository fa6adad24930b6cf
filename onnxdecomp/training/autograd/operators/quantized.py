"""Rounding to integers and back; the gradient passes through the rounding (Bengio et al. 2013)."""

from __future__ import annotations

import torch

from onnxdecomp.training.autograd.call import Call, Table, Tensor

_RANGES = {torch.int8: (-128, 127), torch.uint8: (0, 255), torch.int32: (-(2**31), 2**31 - 1)}


def _quantize(call: Call) -> Tensor:
    """Whole numbers as floats, so that a gradient can reach what was rounded."""
    zero = call.get(2)
    low, high = _RANGES.get(torch.uint8 if zero is None else zero.dtype, (0, 255))
    shift = 0 if zero is None else _along(call, zero).to(call.x.dtype)
    exact = call.x / _along(call, call[1])
    return torch.clamp(exact + (exact.round() - exact).detach() + shift, low, high)


def _dequantize(call: Call) -> Tensor:
    scale, zero = _along(call, call[1]), call.get(2)
    x = call.x.to(scale.dtype)
    return (x if zero is None else x - _along(call, zero).to(scale.dtype)) * scale


def _along(call: Call, values: Tensor) -> Tensor:
    """A number per tensor, or one for each slice along `axis`."""
    if values.ndim == 0 or values.numel() == 1:
        return values.reshape(())
    if values.ndim > 1 or call.attribute("block_size", 0):
        raise call.refuse("it is quantized in blocks")
    axis = call.attribute("axis", 1) % call.x.ndim
    return values.reshape(-1, *(1,) * (call.x.ndim - axis - 1))


TABLE: Table = {"DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
