"""Attention (com.microsoft) as a layer: its packed projection of the input to queries, keys and values.

The operator computes X W + b before it does anything else, and X stands nowhere else: with W = U V, it does
the same on X U with V, whose rows are as many as the rank. Heads, masks, past states and rotary positions are
the operator's own still, as a recurrent operator's gates are (see onnxdecomp.layers.recurrent).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.graph.stand_ins import as_product
from onnxdecomp.layers.adapter import FeatureAxes, LayerAdapter, LayerMatch
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.projection import emit_projected, ends_in_product
from onnxdecomp.layers.scope import MICROSOFT, Scope, Snapshot

_BIAS, _MASK, _PAST, _ATTENTION_BIAS, _PAST_LENGTH = 2, 3, 4, 5, 6
_BATCH, _TOKENS, _PAST_TOKENS = 2, 4, 3
"""Sizes that the operator is checked with."""


@dataclass(frozen=True, eq=False)
class Attention(LayerAdapter):
    """The adapter of Attention: a chain's last product becomes its weights [rank, Q + K + V].

    Attributes:
        heads: How many.
        values: Features of the output, V.
    """

    operators = ((MICROSOFT, "Attention"),)
    has_rows = True

    heads: int
    values: int
    follow: tuple[int, ...] = field(default=(_MASK, _PAST, _ATTENTION_BIAS, _PAST_LENGTH), kw_only=True)

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str:
        x, value = node.inputs[:2]
        if x is None or value is None:
            return "it has no weights of its own"
        if len(node.inputs) <= _BIAS or node.inputs[_BIAS] is None:
            # The kernel reads it all the same, and with it the check of what is put in its place would crash.
            return "it has no bias, which ONNX Runtime's CPU provider cannot do without"
        source = scope.weight(value)
        if isinstance(source, str):
            return source
        if source.array.ndim != 2:
            return f"its weights have {source.array.ndim} dimensions, not 2"
        features, outputs = source.array.shape
        sizes = _sizes(node, outputs)
        heads = int(attribute(node, "num_heads", 0))
        if len(sizes) != 3 or sum(sizes) != outputs or heads < 1 or any(size % heads for size in sizes):
            return "its weights do not have the sizes that its attributes say"
        return cls(heads, sizes[2]).layer_match(
            node, scope, x, source, source.array.T, input_shape=dims(x) or (None, None, features)
        )

    def obstacle(self, chain: Chain, layer: Layer) -> str | None:
        if ends_in_product(chain, layer):
            return None
        return "its chain does not end in a product of matrices, which would become its weights: use svd"

    def lower(self, chain: Chain, match: LayerMatch, emit: Emitter) -> None:
        emit_projected(chain, match, emit, lambda step, label: emit.weight(step.weight, label, axis=1))

    @property
    def reads_as_stored(self) -> bool:
        return True

    def stored(self, weight: Array, layer: Layer) -> Array:
        return weight.T

    def probe_inputs(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        past = _PAST_TOKENS if len(node.inputs) > _PAST and node.inputs[_PAST] is not None else 0
        total = past + _TOKENS
        state = (2, _BATCH, self.heads, past, self.values // self.heads)
        return {
            0: rng.standard_normal((_BATCH, _TOKENS, layer.inputs)),
            _BIAS: rng.standard_normal(layer.outputs),
            _MASK: self._mask(node, total),
            _PAST: rng.standard_normal(state),
            _ATTENTION_BIAS: rng.standard_normal((_BATCH, self.heads, _TOKENS, total)),
            _PAST_LENGTH: np.array(past, np.int32),
        }

    def _mask(self, node: Snapshot, total: int) -> Array:
        """A mask of as many axes as the node's has: its second sequence is a token shorter."""
        value = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        shape = None if value is None else dims(value)
        if shape is not None and len(shape) == 1:
            ends = np.array([total, total - 1], np.int32)
            return ends if shape[0] != 2 * _BATCH else np.concatenate([ends, np.zeros(_BATCH, np.int32)])
        mask = np.ones((_BATCH, total), np.int32)
        mask[1, -1] = 0
        if shape is None or len(shape) == 2:
            return mask
        rows = np.broadcast_to(mask[:, None], (_BATCH, _TOKENS if len(shape) == 3 else total, total))
        return rows.copy() if len(shape) == 3 else rows[:, None].copy()

    def feature_axes(self, node: ir.Node) -> FeatureAxes:
        return FeatureAxes(-1, -1, inputs=0, outputs=None)

    @classmethod
    def stand_in(cls, node: ir.Node) -> None:
        weights = node.inputs[1]
        shape = None if weights is None else dims(weights)
        if shape is not None and len(shape) == 2:
            features, outputs = shape
            if isinstance(features, int) and isinstance(outputs, int):
                as_product(node, features, _sizes(node, outputs)[-1])


def _sizes(node: ir.Node, outputs: int) -> list[int]:
    """The features of queries, keys and values."""
    return [int(size) for size in attribute(node, "qkv_hidden_sizes", ())] or [outputs // 3] * 3
