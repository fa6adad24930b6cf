"""The graph around a rewritten layer, before and after, as values: what Netron would show there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from onnxdecomp.core.json_values import Json
from onnxdecomp.graph.attributes import named_output, node_name
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.record.schema.layers import Node, Surroundings
from onnxdecomp.runtime.jsonio import plain

_SHOWN = (
    "kernel_shape",
    "strides",
    "dilations",
    "group",
    "pads",
    "auto_pad",
    "perm",
    "transA",
    "transB",
    "axis",
)
"""Attributes that say what a linear node does."""

_CONSUMERS = 4


def surroundings(rewritten: Rewritten, weight: tuple[int, ...] | None = None) -> Surroundings:
    """What stands where the layer was; to be asked after the pipeline has run.

    Args:
        rewritten: The layer.
        weight: The shape of its weight as the model came in; cuts may have made it smaller since.
    """
    match, nodes = rewritten.match, rewritten.nodes
    output = next((value for value in nodes[-1].outputs if value.name), nodes[-1].outputs[0])
    reads = _activation(nodes, match.x.name or "")
    above = reads.producer() if reads is not None else None
    users = [user for user in output.consumers() if isinstance(user, ir.Node)]
    return Surroundings(
        above=None if above is None else _node(above),
        input=match.x.name or "",
        output=output.name or "",
        before=_before(rewritten, weight or rewritten.match.layer.weight.shape),
        after=tuple(_node(node) for node in nodes),
        below=tuple(_node(user) for user in users[:_CONSUMERS]),
    )


def _activation(nodes: Sequence[ir.Node], name: str) -> ir.Value | None:
    return next((v for node in nodes for v in node.inputs if v is not None and v.name == name), None)


def _before(rewritten: Rewritten, weight: tuple[int, ...]) -> tuple[Node, ...]:
    """The nodes that were replaced; they stand in no graph any more, so the first is a snapshot."""
    match, snapshot = rewritten.match, rewritten.before
    first, *others = match.nodes
    shapes = {match.weight.name or "": tuple(int(size) for size in weight)}
    if match.bias is not None and match.layer.bias is not None:
        outputs = weight[0 if match.layer.conv is not None else -2]
        shapes[match.bias.name or ""] = (int(outputs),)
    values = [v.name for v in snapshot.inputs if v is not None and v.name and v.name not in shapes]
    head = Node(
        node_name(first),
        first.op_type,
        _attributes(snapshot.attributes.items()),
        shapes,
        tuple(values),
        tuple(name for name in snapshot.outputs if name),
    )
    return head, *(Node(node_name(node), node.op_type, outputs=_names(node.outputs)) for node in others)


def _node(node: ir.Node) -> Node:
    constants, values = {}, []
    for operand in node.inputs:
        if operand is None or not operand.name:
            continue
        shape = _constant_shape(operand)
        if shape is None:
            values.append(operand.name)
        else:
            constants[operand.name] = shape
    attributes = _attributes((key, attr.value) for key, attr in node.attributes.items() if not attr.is_ref())
    return Node(
        node.name or named_output(node).name or "",
        node.op_type,
        attributes,
        constants,
        tuple(values),
        _names(node.outputs),
    )


def _attributes(items: Iterable[tuple[str, object]]) -> Mapping[str, Json]:
    found = dict(items)
    return {key: plain(found[key]) for key in _SHOWN if key in found}


def _names(values: Iterable[ir.Value]) -> tuple[str, ...]:
    return tuple(value.name for value in values if value.name)


def _constant_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of a constant; None where the value is computed."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return None
    return tuple(int(size) for size in tensor.shape.numpy())
