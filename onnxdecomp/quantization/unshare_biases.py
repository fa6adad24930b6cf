"""A bias for each layer: ONNX Runtime's quantizer fails on some that are shared, or no initializers."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.graph.constants import discard, initializer
from onnxdecomp.graph.traversal import unique_name, value_names

_BIASED = ("Conv", "ConvTranspose", "Gemm")


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
        bias = node.inputs[2] if node.op_type in _BIASED and len(node.inputs) > 2 else None
        if bias is None or bias.is_graph_input():
            continue
        tensor = ir.convenience.get_const_tensor(bias)
        if tensor is None or (bias.name in graph.initializers and len(bias.uses()) == 1):
            continue
        name = unique_name(f"{bias.name}/{node.name}", taken)
        node.replace_input_with(2, initializer(graph, tensor, name))
        changed += 1
        discard(bias)
    return changed
