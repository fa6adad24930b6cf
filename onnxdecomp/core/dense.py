"""A layer as a chain: its own operator, the one step that every decomposition is compared with."""

from __future__ import annotations

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.core.steps import Convolve, MatMul


def dense_chain(layer: Layer) -> Chain:
    """The layer itself as a chain of one step."""
    if layer.conv is not None:
        return Chain((Convolve(layer.weight, layer.conv),), layer.bias, layer.inputs, layer.groups)
    return Chain((MatMul(layer.weight.swapaxes(-1, -2)),), layer.bias, layer.inputs)
