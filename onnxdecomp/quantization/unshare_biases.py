"""A bias for each layer: ONNX Runtime's quantizer fails on some that are shared, or no initializers."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.graph.constants import discard, initializer
from onnxdecomp.graph.inherit import copied
from onnxdecomp.graph.traversal import unique_name, value_names
from onnxdecomp.layers.registry import adapter_of


def own_biases(model: ir.Model) -> int:
    """Make constant biases of the main graph's layers initializers that nothing else reads, in place.

    The quantizer copies shared ones under names that other values may have, and rounds those in Constant
    nodes by operators that older opsets lack.

    Returns:
        How many layers have a new bias.
    """
    graph = model.graph
    taken = value_names(model)
    changed = 0
    for node in graph:
        at = _bias_at(node)
        bias = node.inputs[at] if at is not None and len(node.inputs) > at else None
        if at is None or bias is None or bias.is_graph_input():
            continue
        tensor = ir.convenience.get_const_tensor(bias)
        if tensor is None or (bias.name in graph.initializers and len(bias.uses()) == 1):
            continue
        name = unique_name(f"{bias.name}/{node.name}", taken)
        own = initializer(graph, tensor, name)
        copied(own, bias)
        node.replace_input_with(at, own)
        changed += 1
        discard(bias)
    return changed


def _bias_at(node: ir.Node) -> int | None:
    """The position of the bias of an operator that the quantizer takes."""
    adapter = adapter_of(node)
    if adapter is None or node.op_type not in adapter.per_channel:
        return None
    return next(iter(adapter.parameter_roles(node.op_type).biases), None)
