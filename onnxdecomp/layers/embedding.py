"""Gather from a large constant table as a layer: an embedding.

Row i of the table is what the table's matrix makes of the i-th unit vector, so a table [V, E] is the weight
[E, V] of a linear layer whose inputs are given as indices. Its chain's first product is again a Gather, from
a table [V, r]: indices of any rank and sign and of either integer type mean what they meant. A lookup costs
no multiplications, so what such a layer saves is parameters (see onnxdecomp.search.fixed_ranks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import BlockMatMul, Lookup, MatMul
from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.graph.constants import OVERRIDABLE, Constant
from onnxdecomp.layers.adapter import FeatureAxes, LayerAdapter, LayerMatch, ParameterRoles
from onnxdecomp.layers.dynamic_int8 import DynamicInt8
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.lower import lower_linear
from onnxdecomp.layers.operands import only_reader
from onnxdecomp.layers.scope import Scope, Snapshot, Weight

_ZERO_POINT = 2

SMALLEST = 4096
"""Numbers in a table below which it is no embedding worth a thought."""


@dataclass(frozen=True, eq=False)
class Embedding(LayerAdapter):
    """The adapter of lookups in a table, a Gather along its first axis."""

    operators = (("", "Gather"),)
    optional_weight = True

    weight_at: int = field(default=0, kw_only=True)

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str | None:
        table, indices = node.inputs
        assert table is not None
        assert indices is not None
        shape = dims(table)
        if shape is not None and len(shape) != 2:
            return None
        found = scope.constant(table)
        if isinstance(found, str):
            large = (
                shape is not None
                and all(isinstance(dim, int) for dim in shape)
                and _product(shape) >= SMALLEST
            )
            return found if found == OVERRIDABLE and large else None
        source = scope.weight(table)
        array, after = found.array, tuple[ir.Node, ...]()
        if isinstance(source, str) and (behind := _dequantized(node, found, scope)) is not None:
            array, after = behind
            source = Weight(table, replace(found, dtype="float32"))
        if not isinstance(source, Weight) or array.ndim != 2 or array.size < SMALLEST:
            return None
        if isinstance(scope.constant(indices), Constant):
            return None
        if attribute(node, "axis", 0) not in (0, -2):
            return "it reads columns of its table"
        index_shape = dims(indices)
        return cls().layer_match(
            node,
            scope,
            indices,
            source,
            array.T,
            input_shape=None if index_shape is None else (*index_shape, array.shape[0]),
            output_shape=dims(node.outputs[0]),
            lookup=True,
            after=after,
            storage=DynamicInt8() if after else None,
        )

    def obstacle(self, chain: Chain, layer: Layer) -> str | None:
        first = chain.steps[0]
        if not isinstance(first, MatMul | Lookup) or first.weight.ndim != 2:
            return "its chain does not begin with a product of matrices, which would become a table: use svd"
        if layer.input_shape is None and not chain.any_rank:
            return "the rank of its indices is unknown"
        scalar = layer.input_shape == (layer.inputs,)
        if scalar and any(isinstance(step, BlockMatMul) for step in chain.steps):
            return "its index is a scalar"
        return None

    def lower(self, chain: Chain, match: LayerMatch, emit: Emitter) -> None:
        lower_linear(chain, match.layer, match.x, emit)

    def stored(self, weight: Array, layer: Layer) -> Array:
        return weight.T

    def probe_inputs(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        shape = layer.assumed_input_shape(batch=2)[:-1]
        size = tuple(min(dim, 8) for dim in shape)
        kind = np.int32 if _is_int32(node.inputs[1]) else np.int64
        return {1: np.asarray(rng.integers(-layer.inputs, layer.inputs, size)).astype(kind)}

    def feature_axes(self, node: ir.Node) -> FeatureAxes:
        return FeatureAxes(-1, -1, inputs=None, outputs=1)

    @classmethod
    def parameter_roles(cls, op_type: str) -> ParameterRoles:
        return ParameterRoles(weights=(0,))

    @classmethod
    def fan_in(cls, node: ir.Node, shape: Sequence[int]) -> int:
        return 1


def _dequantized(node: ir.Node, numbers: Constant, scope: Scope) -> tuple[Array, tuple[ir.Node, ...]] | None:
    """An int8 table whose rows become floats once they are read, and the node that makes them; else None."""
    behind = only_reader(node.outputs[0], "DequantizeLinear")
    if behind is None or numbers.dtype not in ("int8", "uint8"):
        return None
    scale, zero_point = scope.constant(behind.inputs[1]), None
    if len(behind.inputs) > _ZERO_POINT and behind.inputs[_ZERO_POINT] is not None:
        zero_point = scope.constant(behind.inputs[_ZERO_POINT])
    if not isinstance(scale, Constant) or isinstance(zero_point, str):
        return None
    if scale.dtype != "float32" or scale.array.size != 1 or (zero_point and zero_point.array.size != 1):
        return None
    table = numbers.array.astype(np.float32)
    if zero_point is not None:
        table -= zero_point.array.astype(np.float32).reshape(())
    return table * scale.array.reshape(()), (behind,)


def _product(shape: tuple[int | str | None, ...]) -> int:
    return int(np.prod([dim for dim in shape if isinstance(dim, int)]))


def _is_int32(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.INT32
