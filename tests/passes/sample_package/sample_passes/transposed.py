"""TransposeMatMul of ONNX Runtime, the older name of FusedMatMul, as a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.graph.stand_ins import as_product
from onnxdecomp.layers.adapter import LayerAdapter, LayerMatch
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.lower import lower_linear
from onnxdecomp.layers.scope import Scope, Snapshot, working


@dataclass(frozen=True, eq=False)
class TransposeMatMul(LayerAdapter):
    """y = alpha x W, or alpha x WT, of a constant matrix W.

    Attributes:
        transposed: W is stored as [T, S].
        alpha: The factor, which the layer's weight has in it.
    """

    operators = (("com.microsoft", "TransposeMatMul"),)
    has_rows = True
    is_plain = True

    transposed: bool = False
    alpha: float = 1.0

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str:
        x, source = node.inputs[0], scope.weight(node.inputs[1])
        if isinstance(source, str):
            return source
        transposed, alpha = bool(attribute(node, "transB", 0)), float(attribute(node, "alpha", 1.0))
        if x is None or source.array.ndim != 2 or attribute(node, "transA", 0) or alpha == 0:
            return "it is no product of rows and a matrix"
        weight = working(source.array if transposed else source.array.T)
        return cls(transposed, alpha).layer_match(
            node,
            scope,
            x,
            source,
            weight * weight.dtype.type(alpha),
            input_shape=dims(x),
            output_shape=dims(node.outputs[0]),
        )

    def obstacle(self, chain: Chain, layer: Layer) -> str | None:
        known = layer.input_shape is not None or chain.any_rank
        return None if known else "the rank of its activation is unknown"

    def lower(self, chain: Chain, match: LayerMatch, emit: Emitter) -> None:
        lower_linear(chain, match.layer, match.x, emit)

    def stored(self, weight: Array, layer: Layer) -> Array:
        own: Array = (weight if self.transposed else weight.T) / weight.dtype.type(self.alpha)
        return own

    def probe_inputs(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        shape = layer.assumed_input_shape(batch=2)
        return {0: rng.standard_normal((*(min(size, 8) for size in shape[:-1]), shape[-1]))}

    @classmethod
    def timed(cls, layer: Layer) -> TransposeMatMul:
        return cls()

    @classmethod
    def stand_in(cls, node: ir.Node) -> None:
        weight = node.inputs[1]
        match None if weight is None else dims(weight):
            case (int(first), int(second)) if not attribute(node, "transA", 0):
                sizes = (second, first) if attribute(node, "transB", 0) else (first, second)
                as_product(node, *sizes)
