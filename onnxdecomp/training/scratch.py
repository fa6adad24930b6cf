"""Weights to begin from, for training without a trained model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir
import torch

from onnxdecomp.layers.registry import adapter_of
from onnxdecomp.training.autograd.network import Network
from onnxdecomp.training.composed import Composed
from onnxdecomp.training.roles import Role

Tensor: TypeAlias = torch.Tensor

_ACTIVATIONS = frozenset(("Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Gelu", "HardSwish"))
_PASSED = frozenset(("Add", "BatchNormalization", "MaxPool", "Reshape", "Flatten", "Dropout"))


def initialise(
    network: Network,
    roles: Sequence[Role],
    layers: Sequence[Composed],
    feed: Mapping[str, Tensor],
    generator: torch.Generator,
) -> None:
    """Put random numbers into all parameters, in place.

    Every layer's composed weight gets the variance that keeps that of its activations (He et al. 2015, or
    half of it where no rectifier follows): the factors are drawn as layers of their own, and all factors of
    a layer are then scaled alike by what white noise shows the layer to do, which holds for any method.
    Biases begin at 0, scales of a normalisation at 1; the stored statistics of a BatchNormalization are
    measured on `feed`.
    """
    readers = {str(value.name): node for node in network.nodes for value in node.inputs if value is not None}
    with torch.no_grad():
        for role in roles:
            tensor, node = network.parameters[role.name], readers.get(role.name)
            if role.kind == "bias":
                tensor.fill_(1.0 if _is_scale(node, role.name) else 0.0)
            else:
                gain = 1.0 if role.kind == "factor" or node is None else _gain(node)
                spread = (gain / _fan_in(node, tensor)) ** 0.5
                tensor.copy_(spread * torch.randn(tensor.shape, generator=generator).to(tensor))
        for layer in layers:
            factors = [r for r in roles if r.layer == layer.name and r.kind == "factor"]
            made = float(layer.variance(network, generator))
            if made > 0 and factors:
                scale = (_gain(layer.nodes[-1]) / made) ** (0.5 / len(factors))
                for role in factors:
                    network.parameters[role.name].mul_(scale)
        for node in network.nodes:
            if node.op_type == "BatchNormalization":
                _measure(network, node, feed)


def _is_scale(node: ir.Node | None, name: str) -> bool:
    if node is None or "Normalization" not in node.op_type:
        return False
    scale = node.inputs[1]
    return scale is not None and scale.name == name


def _gain(node: ir.Node) -> float:
    """2 where a rectifier follows, else 1."""
    at: ir.Node | None = node
    while at is not None:
        readers = [user for value in at.outputs for user, _ in value.uses()]
        at = next((user for user in readers if user.op_type in _ACTIVATIONS | _PASSED), None)
        if at is not None and at.op_type in _ACTIVATIONS:
            return 2.0
    return 1.0


def _fan_in(node: ir.Node | None, weight: Tensor) -> int:
    """How many numbers an output of the node adds up."""
    shape = tuple(int(size) for size in weight.shape)
    if node is None or len(shape) < 2:
        return max(1, math.prod(shape[:1]))
    adapter = adapter_of(node)
    return shape[-2] if adapter is None else adapter.fan_in(node, shape)


def _measure(network: Network, node: ir.Node, feed: Mapping[str, Tensor]) -> None:
    names = [str(value.name) for value in node.inputs if value is not None]
    x = network(feed, [names[0]])[names[0]]
    axes = [axis for axis in range(x.ndim) if axis != 1]
    network.replace(names[3], x.mean(axes))
    network.replace(names[4], x.var(axes, correction=0))
