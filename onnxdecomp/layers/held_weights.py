"""What operators hold that are no layers: their weights are in the file all the same, and cost as much."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.graph.constants import Constant
from onnxdecomp.layers.scope import MICROSOFT, Scope

SMALLEST = 64
"""Numbers in a constant below which it is no weight: shapes, axes, scales of a tensor."""

_USUAL = 32
"""A free size, as for layers; a free batch counts as 1."""

_TABLES: Mapping[str, Collection[str]] = {
    MICROSOFT: (
        *("EmbedLayerNormalization", "GatherBlockQuantized", "QEmbedLayerNormalization", "TorchEmbedding"),
        "WordConvEmbedding",
    ),
}
"""Operators that look their numbers up: no product is computed."""

_SPATIAL = ("ConvInteger", "DeformConv", "NhwcConv", "NhwcFusedConv", "QLinearConv")
"""Operators that multiply by all of their numbers for every place of the output, [N, C, *places]."""

_PACKED = ("MatMulBnb4", "MatMulFpQ4")
"""Operators whose numbers share bytes: K x N of them."""


@dataclass(frozen=True)
class Held:
    """Weights of an operator.

    Attributes:
        weight: The shape of the largest as it is stored.
        params: The numbers of all of them.
        macs: Multiply-accumulates for one input; None where the sizes of activations are not known.
        roots: The values that store them.
    """

    weight: tuple[int, ...]
    params: int
    macs: int | None
    roots: tuple[ir.Value, ...]


def held_weights(node: ir.Node, scope: Scope, counted: Collection[ir.Value] = ()) -> Held | None:
    """What a node holds; None where that is nothing, or nothing that is not counted elsewhere.

    Args:
        node: An operator that is no layer.
        scope: Where it stands.
        counted: Values whose numbers are counted with others.
    """
    found: dict[ir.Value, Constant] = {}
    for value in node.inputs:
        constant = None if value is None else scope.constant(value)
        if isinstance(constant, Constant) and constant.array.ndim > 1 and constant.array.size >= SMALLEST:
            found.setdefault(constant.root, constant)
    own = {root: constant for root, constant in found.items() if root not in counted}
    if not own:
        return None
    largest = max(own.values(), key=lambda constant: constant.array.size)
    params = sum(constant.array.size for constant in own.values())
    if node.op_type in _PACKED:
        params = int(attribute(node, "K", 0)) * int(attribute(node, "N", 0)) or params
    return Held(tuple(largest.array.shape), params, _macs(node, params), tuple(own))


def _macs(node: ir.Node, params: int) -> int | None:
    if node.op_type in _TABLES.get(node.domain, ()):
        return 0
    spatial = node.op_type in _SPATIAL
    seen = node.outputs[0] if spatial else node.inputs[0]
    shape = None if seen is None else dims(seen)
    if shape is None:
        return None
    places = shape[1:-1] if node.op_type.startswith("Nhwc") else shape[2:] if spatial else shape[1:-1]
    batch = shape[0] if len(shape) > 1 and isinstance(shape[0], int) else 1
    return params * batch * math.prod(size if isinstance(size, int) else _USUAL for size in places)
