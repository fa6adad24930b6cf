"""Operators on each number of one tensor by itself, activations among them."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch
from torch.nn import functional

from onnxdecomp.training.autograd.call import Call, Operator, Table, Tensor

_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    # Rounding to these is left out: what is trained is the model in single precision.
    ir.DataType.FLOAT16: torch.float32,
    ir.DataType.BFLOAT16: torch.float32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call: function(call.x)


def _leaky(call: Call) -> Tensor:
    return functional.leaky_relu(call.x, call.attribute("alpha", 0.01))


def _elu(call: Call) -> Tensor:
    return functional.elu(call.x, call.attribute("alpha", 1.0))


def _celu(call: Call) -> Tensor:
    return functional.celu(call.x, call.attribute("alpha", 1.0))


def _selu(call: Call) -> Tensor:
    alpha = call.attribute("alpha", 1.67326319217681884765625)
    gamma = call.attribute("gamma", 1.05070102214813232421875)
    return gamma * torch.where(call.x > 0, call.x, alpha * torch.expm1(call.x))


def _hard_sigmoid(call: Call) -> Tensor:
    return torch.clamp(call.attribute("alpha", 0.2) * call.x + call.attribute("beta", 0.5), 0, 1)


def _hard_swish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


def _thresholded(call: Call) -> Tensor:
    return torch.where(call.x > call.attribute("alpha", 1.0), call.x, torch.zeros_like(call.x))


def _gelu(call: Call) -> Tensor:
    return functional.gelu(call.x, approximate=call.attribute("approximate", "none"))


def _swish(call: Call) -> Tensor:
    return call.x * torch.sigmoid(call.attribute("alpha", 1.0) * call.x)


def _clip(call: Call) -> Tensor:
    low, high = call.attribute("min"), call.attribute("max")
    low = call.get(1) if low is None else low
    high = call.get(2) if high is None else high
    x = call.x
    if low is not None:
        x = torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
    if high is not None:
        x = torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))
    return x


def _cast(call: Call) -> Tensor:
    wanted = _TYPES.get(ir.DataType(call.attribute("to")))
    if wanted is None:
        raise call.refuse(f"there is no type {ir.DataType(call.attribute('to')).name}")
    return call.x.to(wanted)


def _cast_like(call: Call) -> Tensor:
    return call.x.to(call[1].dtype)


def _dropout(call: Call) -> tuple[Tensor, Tensor]:
    # As in inference: what is trained is the network that is deployed.
    return call.x, torch.ones_like(call.x, dtype=torch.bool)


def _affine(call: Call) -> Tensor:
    return call.attribute("alpha", 1.0) * call.x + call.attribute("beta", 0.0)


def _image_scaler(call: Call) -> Tensor:
    bias = torch.tensor(call.attribute("bias"), dtype=call.x.dtype, device=call.x.device)
    return call.x * call.attribute("scale", 1.0) + bias.reshape(1, -1, 1, 1)


def _softmax(function: Callable[..., Tensor]) -> Operator:
    """Over one axis; before opset 13 over all axes from `axis` on together."""

    def operator(call: Call) -> Tensor:
        x = call.x
        if call.opset >= 13:
            return function(x, dim=call.attribute("axis", -1))
        axis = call.attribute("axis", 1) % max(x.ndim, 1)
        return function(x.flatten(axis), dim=-1).reshape(x.shape)

    return operator


TABLE: Table = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Affine": _affine,
    "Asin": _unary(torch.asin),
    "Atan": _unary(torch.atan),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _unary(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "Dropout": _dropout,
    "Elu": _elu,
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(_hard_swish),
    "Identity": _unary(lambda x: x),
    "ImageScaler": _image_scaler,
    "IsInf": _unary(torch.isinf),
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": _leaky,
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(functional.log_softmax),
    "Mish": _unary(functional.mish),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Selu": _selu,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Softmax": _softmax(functional.softmax),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Swish": _swish,
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": _thresholded,
}
