"""What ONNX Runtime's optimizer makes of several operators (domain com.microsoft)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from onnxdecomp.training.autograd.call import Call, Table, Tensor
from onnxdecomp.training.autograd.operators.convolution import convolve
from onnxdecomp.training.autograd.operators.products import gemm

_ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "LeakyRelu": functional.leaky_relu,
    "Clip": torch.clamp,
    "HardSigmoid": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
}


def _activated(call: Call, y: Tensor, parameters: list[float]) -> Tensor:
    name = call.attribute("activation", "")
    if not name:
        return y
    if name not in _ACTIVATIONS:
        raise call.refuse(f"its activation is {name}")
    return _ACTIVATIONS[name](y, *parameters)


def _conv(call: Call) -> Tensor:
    y = convolve(call)
    residual = call.get(3)
    return _activated(call, y if residual is None else y + residual, call.attribute("activation_params", []))


def _gemm(call: Call) -> Tensor:
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    found = [call.attribute(name) for name in names]
    return _activated(call, gemm(call), [value for value in found if value is not None])


def _mat_mul(call: Call) -> Tensor:
    a = _turned(call[0], call.attribute("transBatchA", 0), call.attribute("transA", 0))
    b = _turned(call[1], call.attribute("transBatchB", 0), call.attribute("transB", 0))
    return call.attribute("alpha", 1.0) * (a @ b)


def _turned(x: Tensor, batch: int, last: int) -> Tensor:
    if batch:
        x = x.movedim(0, -2)
    return x.mT if last else x


TABLE: Table = {
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _mat_mul,
    "Gelu": lambda call: functional.gelu(call.x),
    "QuickGelu": lambda call: call.x * torch.sigmoid(call.attribute("alpha", 1.702) * call.x),
}
