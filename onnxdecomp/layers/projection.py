"""Operators that stay and multiply their input by the last product of a chain: recurrent ones, Attention."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.core.steps import MatMul
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.lower import labels, lower
from onnxdecomp.layers.scope import Snapshot


def ends_in_product(chain: Chain, layer: Layer) -> bool:
    """Whether the chain's last step is a product of matrices that can become the operator's weight."""
    last = chain.steps[-1]
    return isinstance(last, MatMul) and last.weight.ndim == 2 and last.weight.shape[1] == layer.outputs


def emit_projected(
    chain: Chain, match: LayerMatch, emit: Emitter, weight: Callable[[MatMul, str], ir.Value]
) -> None:
    """The steps before the last as nodes, then the operator again with what `weight` makes of the last."""
    x, made, label = before_last(chain, match, emit, weight)
    node = Snapshot.of(match.nodes[-1])
    # An empty list has no type, and says as much as no attribute.
    attributes = {name: value for name, value in node.attributes.items() if value != ()}
    inputs = [x, made, *node.inputs[2:]]
    emit.add(node.op_type, inputs, label, node.domain, len(node.outputs), **attributes)


def before_last(
    chain: Chain, match: LayerMatch, emit: Emitter, weight: Callable[[MatMul, str], ir.Value]
) -> tuple[ir.Value, ir.Value, str]:
    """The steps before the last as nodes: what they give out, the last one's weight and its label."""
    x = match.x
    *before, last = zip(chain.steps, labels(chain), strict=True)
    for step, label in before:
        x = lower(step, x, 3, label, emit)
    step, label = last
    assert isinstance(step, MatMul)
    return x, weight(step, label), label
