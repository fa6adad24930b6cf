"""Branches: what is added to a layer's output before anything else happens to it."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.layers.adapter import LayerMatch


def branch(match: LayerMatch) -> ir.Value | None:
    """The other operand of the sum that the layer's output goes into, and nowhere else; or None."""
    uses = list(match.output.uses())
    if match.layer.conv is None or not match.adapter.is_plain or len(uses) != 1:
        return None
    node = uses[0][0]
    if node.domain not in ("", "ai.onnx") or node.op_type != "Add" or node.graph is not match.nodes[-1].graph:
        return None
    if match.output.is_graph_output():
        return None
    (other,) = [value for value in node.inputs if value is not match.output] or [None]
    if other is None or ir.convenience.get_const_tensor(other) is not None:
        return None
    same = other.shape is not None and match.output.shape is not None and other.shape == match.output.shape
    return other if same else None
