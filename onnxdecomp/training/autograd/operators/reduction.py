"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from onnxdecomp.training.autograd.call import Call, Operator, Table, Tensor


def _reduction(function: Callable[..., Tensor]) -> Operator:
    """Over the axes in an attribute or, in later opsets, an operand; over all where there are none."""

    def operator(call: Call) -> Tensor:
        axes = call.numbers("axes", 1)
        if not axes:
            if call.attribute("noop_with_empty_axes", 0):
                return call.x
            axes = list(range(call.x.ndim))
        return function(call.x, axes, keepdim=bool(call.attribute("keepdims", 1)))

    return operator


def _product(x: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keepdim)
    return x


def _arg(function: Callable[..., Tensor]) -> Operator:
    def operator(call: Call) -> Tensor:
        axis, keep = call.attribute("axis", 0), bool(call.attribute("keepdims", 1))
        if not call.attribute("select_last_index", 0):
            return function(call.x, axis, keepdim=keep)
        return call.x.shape[axis] - 1 - function(call.x.flip(axis), axis, keepdim=keep)

    return operator


def _cumulative(call: Call) -> Tensor:
    axis = int(call[1])
    x = call.x.flip(axis) if call.attribute("reverse", 0) else call.x
    y = torch.cumsum(x, axis, dtype=x.dtype)
    if call.attribute("exclusive", 0):
        y = y - x
    return y.flip(axis) if call.attribute("reverse", 0) else y


def _sum(x: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keepdim, dtype=x.dtype)


TABLE: Table = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "CumSum": _cumulative,
    "ReduceL1": _reduction(lambda x, axes, keepdim: torch.sum(x.abs(), axes, keepdim=keepdim)),
    "ReduceL2": _reduction(lambda x, axes, keepdim: torch.sqrt(x.square().sum(axes, keepdim=keepdim))),
    "ReduceLogSum": _reduction(lambda x, axes, keepdim: torch.log(x.sum(axes, keepdim=keepdim))),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(_sum),
    "ReduceSumSquare": _reduction(lambda x, axes, keepdim: torch.sum(x.square(), axes, keepdim=keepdim)),
}
