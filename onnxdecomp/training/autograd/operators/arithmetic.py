"""Operators on two or more tensors that broadcast."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch

from onnxdecomp.training.autograd.call import Call, Operator, Table, Tensor


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def operator(call: Call) -> Tensor:
        return function(*_aligned(call))

    return operator


def _aligned(call: Call) -> tuple[Tensor, Tensor]:
    """Both operands; before opset 7 the second one's first axis could lie at `axis` of the first."""
    a, b = call[0], call[1]
    axis = call.attribute("axis")
    if call.opset < 7 and axis is not None and b.ndim:
        b = b.reshape(*b.shape, *(1,) * (a.ndim - axis % a.ndim - b.ndim))
    return a, b


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call: reduce(function, call.tensors())


def _divide(a: Tensor, b: Tensor) -> Tensor:
    # C's division: integers are cut off towards zero.
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _modulo(call: Call) -> Tensor:
    a, b = call[0], call[1]
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _mean(call: Call) -> Tensor:
    return reduce(torch.add, call.tensors()) / len(call.tensors())


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _where(call: Call) -> Tensor:
    return torch.where(call[0], call[1], call[2])


TABLE: Table = {
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Div": _binary(_divide),
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Max": _folded(torch.maximum),
    "Mean": _mean,
    "Min": _folded(torch.minimum),
    "Mod": _modulo,
    "Mul": _binary(torch.mul),
    "Or": _binary(torch.logical_or),
    "PRelu": _binary(_prelu),
    "Pow": _binary(_power),
    "Sub": _binary(torch.sub),
    "Sum": _folded(torch.add),
    "Where": _where,
    "Xor": _binary(torch.logical_xor),
}
