"""Normalisation, as in inference."""

from __future__ import annotations

import torch
from torch.nn import functional

from onnxdecomp.training.autograd.call import Call, Table, Tensor


def _batch(call: Call) -> Tensor:
    if call.attribute("training_mode", 0):
        raise call.refuse("it computes its own statistics (training_mode)")
    return functional.batch_norm(
        call.x, call[3], call[4], call[1], call[2], eps=call.attribute("epsilon", 1e-5)
    )


def _instance(call: Call) -> Tensor:
    return functional.instance_norm(call.x, weight=call[1], bias=call[2], eps=call.attribute("epsilon", 1e-5))


def _layer(call: Call) -> Tensor:
    if call.used(1):
        raise call.refuse("its statistics are outputs")
    axis = call.attribute("axis", -1)
    shape = call.x.shape[axis:]
    scale, bias = call[1].expand(shape), call.get(2)
    return functional.layer_norm(
        call.x,
        shape,
        scale,
        None if bias is None else bias.expand(shape),
        eps=call.attribute("epsilon", 1e-5),
    )


def _group(call: Call) -> Tensor:
    groups, eps = call.attribute("num_groups"), call.attribute("epsilon", 1e-5)
    if call.opset >= 21:
        return functional.group_norm(call.x, groups, call[1], call[2], eps)
    y = functional.group_norm(call.x, groups, eps=eps)
    shape = (1, groups, 1)
    y = y.reshape(y.shape[0], groups, -1) * call[1].reshape(shape) + call[2].reshape(shape)
    return y.reshape(call.x.shape)


def _rms(call: Call) -> Tensor:
    axes = list(range(call.attribute("axis", -1) % call.x.ndim, call.x.ndim))
    power = call.x.square().mean(axes, keepdim=True)
    return call.x * torch.rsqrt(power + call.attribute("epsilon", 1e-5)) * call[1]


def _local(call: Call) -> Tensor:
    return functional.local_response_norm(
        call.x,
        call.attribute("size"),
        call.attribute("alpha", 1e-4),
        call.attribute("beta", 0.75),
        call.attribute("bias", 1.0),
    )


def _lp(call: Call) -> Tensor:
    p, axis = call.attribute("p", 2), call.attribute("axis", -1)
    return call.x / torch.linalg.vector_norm(call.x, p, axis, keepdim=True)


TABLE: Table = {
    "BatchNormalization": _batch,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LRN": _local,
    "LayerNormalization": _layer,
    "LpNormalization": _lp,
    "RMSNormalization": _rms,
}
