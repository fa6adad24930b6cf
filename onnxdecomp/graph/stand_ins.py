"""What stands in, while shapes are inferred, for operators that ONNX's inference does not know."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.graph.external_data import reference

_log = logging.getLogger(__name__)

SHAPE_KEEPING = frozenset(
    [
        ("", "Affine"),
        ("", "ImageScaler"),
        ("", "ParametricSoftplus"),
        ("", "ScaledTanh"),
        ("com.microsoft", "BiasGelu"),
        ("com.microsoft", "FastGelu"),
        ("com.microsoft", "Gelu"),
        ("com.microsoft", "QuickGelu"),
        ("com.microsoft", "SkipLayerNormalization"),
        ("com.microsoft", "SkipSimplifiedLayerNormalization"),
    ]
)
"""Operators that ONNX Runtime has and ONNX's inference does not: the output is as the first input."""

EMBEDDINGS = frozenset([("com.microsoft", "EmbedLayerNormalization")])
"""Operators of token indices and a table, their third input: the output has a row of it for each index."""

ATTENTION = ("com.microsoft", "MultiHeadAttention")

StandIns: TypeAlias = Mapping[tuple[str, str], Callable[[ir.Node], None]]
"""By domain and type: what makes a node of an operator that the inference does not know one with the same
shapes, in place. `unfuse` and `as_product` help."""

UNKNOWN = "onnxdecomp.unknown"
"""The domain of operators that inference is kept from understanding."""


def put_stand_in(node: ir.Node, stand_ins: StandIns, model: ir.Model) -> None:
    """Make a node that the inference does not know one that it does, in place.

    Args:
        node: The node.
        stand_ins: For operators of layers.
        model: It is the node's; where a stand-in fails, it knows the domain `UNKNOWN`.
    """
    if (node.domain, node.op_type) in SHAPE_KEEPING:
        _as_identity(node)
    elif (node.domain, node.op_type) in EMBEDDINGS:
        _as_lookup(node)
    elif stand_in := stand_ins.get((node.domain, node.op_type)):
        _stand_in(node, stand_in, model)
    elif (node.domain, node.op_type) == ATTENTION:
        _as_weighted_sum(node)
    elif node.domain == "" and node.op_type == "Crop" and "border" in node.attributes:
        _uncrop(node)


def _stand_in(node: ir.Node, make: Callable[[ir.Node], None], model: ir.Model) -> None:
    """Let another node stand in; where that fails, which may be another package's fault, none does."""
    try:
        make(node)
    except Exception as error:
        _log.info("no shapes behind the node %r", node.name, exc_info=error)
        node.domain, model.opset_imports[UNKNOWN] = UNKNOWN, 1


def unfuse(node: ir.Node, op_type: str, *, attributes: bool = True) -> None:
    """Make a node that is an operator of ONNX and more, which changes no shape, that operator.

    Args:
        node: The node.
        op_type: The operator.
        attributes: Whether it has the node's attributes, but for those of an activation.
    """
    node.domain, node.op_type = "", op_type
    for name in tuple(node.attributes):
        if not attributes or name.startswith("activation"):
            del node.attributes[name]
    node.resize_inputs(min(len(node.inputs), 3))


def _as_identity(node: ir.Node) -> None:
    """Make a node an Identity for each of its outputs, but for those that hold means and deviations."""
    _further(node, dict.fromkeys(range(3, len(node.outputs)), node.inputs[0]))
    node.domain, node.op_type = "", "Identity"
    node.attributes.clear()
    node.resize_inputs(1)


def _as_lookup(node: ir.Node) -> None:
    """Make a node that looks rows of a table up a Gather; its third output is the sum before it is scaled."""
    table = node.inputs[2]
    _further(node, {2: node.outputs[0]})
    node.domain, node.op_type = "", "Gather"
    node.attributes.clear()
    node.replace_input_with(1, node.inputs[0])
    node.replace_input_with(0, table)
    node.resize_inputs(2)


def _further(node: ir.Node, same: Mapping[int, ir.Value | None]) -> None:
    """Leave a node its first output; those at `same` become copies of a value, others unknown."""
    if len(node.outputs) == 1:
        return
    assert node.graph is not None
    for at, output in enumerate(node.outputs[1:], 1):
        if not output.name:
            continue
        source = same.get(at)
        domain = "" if source is not None else UNKNOWN
        other = ir.node("Identity", [node.inputs[0] if source is None else source], domain=domain)
        node.graph.insert_after(node, other)
        output.replace_all_uses_with(other.outputs[0], replace_graph_outputs=True)
        other.outputs[0].name, output.name = output.name, f"{output.name}/before"
    node.resize_outputs(1)


def _as_weighted_sum(node: ir.Node) -> None:
    """Make attention a sum that has its shapes: as many rows as queries, as many columns as values."""
    if len(node.inputs) < 3 or None in node.inputs[:3] or any(output.name for output in node.outputs[1:]):
        return
    node.domain, node.op_type = "", "Einsum"
    node.attributes.clear()
    node.attributes["equation"] = ir.AttrString("equation", "bnd,bme->bne")
    node.replace_input_with(1, node.inputs[2])
    node.resize_inputs(2)


def as_product(node: ir.Node, features: int, outputs: int) -> None:
    """Make a node whose output has its first input's shape, but for the features, a product by a matrix."""
    if node.graph is None or any(output.name for output in node.outputs[1:]):
        return
    stand_in = ir.Tensor(np.broadcast_to(np.float32(0), (features, outputs)), name="matrix")
    matrix = ir.node("Constant", [], attributes={"value": reference(stand_in, "left-out")})
    node.graph.insert_before(node, matrix)
    node.domain, node.op_type = "", "MatMul"
    node.attributes.clear()
    node.resize_inputs(2)
    node.resize_outputs(1)
    node.replace_input_with(1, matrix.outputs[0])


def _uncrop(node: ir.Node) -> None:
    """Make a Crop of [N, C, H, W], which ONNX has no longer, a Pad by less than nothing (before opset 11)."""
    left, top, right, bottom = node.attributes["border"].as_ints()
    if "scale" in node.attributes:
        return
    node.op_type = "Pad"
    node.attributes.clear()
    node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, -top, -left, 0, 0, -bottom, -right])
