"""Attention with one weight for queries, keys and values, in a channel: the rows that make values.

Every head keeps as many values. Its queries and keys meet inside of the operator and stay, but where the
units are whole heads: then they go with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.channel import NONE
from onnxdecomp.channels.facts import Facts, describe
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import attribute
from onnxdecomp.layers.adapter import LayerMatch

_WEIGHT, _BIAS, _PAST, _SCORES = 1, 2, 4, 5


def spread(match: LayerMatch, facts: Facts) -> None:
    """Spread labels between the output, the rows of values, and the columns of the input."""
    node = match.nodes[0]
    if match.quantized:
        return facts.freeze_all(node, "its weight is stored quantized")
    facts.bend()
    x, y = facts.labels(match.x), facts.labels(node.outputs[0])
    for at, labels in ((0, x), (-1, y)):
        if labels is not None:
            facts.mix(node, at, range(labels.ndim - 1), "has the same weights for all of it")
    columns = read(match, facts)
    if columns is not None:
        facts.store(node, _WEIGHT, of.along(columns.reshape(-1), 0, 2), "columns")
    units = labelled(match, facts)
    if units is None:
        return None
    lines = units.reshape(_heads(node), -1)
    whole = bool((lines == lines[:, :1]).all()) and lines.shape[1] > 1
    if _cached(node):
        return facts.freeze(units, f"{describe(node)}: its cache keeps the sizes of heads")
    if whole and len(node.inputs) > _SCORES and node.inputs[_SCORES] is not None:
        return facts.freeze(units, f"{describe(node)} adds something of its own to the scores of each head")
    if not whole:
        facts.align(node, -1, lines)
    rows = _rows(match, lines[:, 0] if whole else None, units)
    facts.store(node, _WEIGHT, of.along(rows, 1, 2), "rows")
    return facts.store(node, _BIAS, rows)


def outputs(match: LayerMatch) -> int:
    """The values of all heads."""
    return _sizes(match.nodes[0], match.layer.outputs)[2]


def seed(match: LayerMatch, units: Array, facts: Facts) -> None:
    """Label the values, a vector, where a search begins."""
    facts.give(match.nodes[0], -1, of.along(units, 2, 3))


def labelled(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of the values; None where they have none."""
    labels = facts.labels(match.nodes[0].outputs[0])
    return None if labels is None or of.varies(labels) != (2,) else labels.reshape(-1)


def made(match: LayerMatch, facts: Facts) -> Array | None:
    """The unit of each row of the weight, int [T]; those of queries and keys are none."""
    units = labelled(match, facts)
    return None if units is None else _rows(match, None, units)


def read(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of the columns, [1, S]; None where they read none."""
    labels = facts.labels(match.x)
    return None if labels is None or of.varies(labels) != (labels.ndim - 1,) else labels.reshape(1, -1)


def resize(match: LayerMatch, cut: Resizing) -> None:
    """Set the heads and the sizes of queries, keys and values; the scale goes by those of queries."""
    node = match.nodes[0]
    stays = cut.stays(node.outputs[0], 2)
    if stays is None:
        return
    sizes, heads = _sizes(node, match.layer.outputs), _heads(node)
    left = int(stays.reshape(heads, -1).any(axis=1).sum())
    kept = [size * left // heads for size in sizes[:2]]
    node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", [*kept, int(stays.sum())])
    node.attributes["num_heads"] = ir.AttrInt64("num_heads", left)


def _rows(match: LayerMatch, heads: Array | None, values: Array) -> Array:
    """The unit of each row; of queries and keys those of their heads, if they go with them."""
    node = match.nodes[0]
    sizes = _sizes(node, match.layer.outputs)[:2]
    each = np.full(_heads(node), NONE) if heads is None else heads
    return np.concatenate([*(np.repeat(each, size // len(each)) for size in sizes), values])


def _heads(node: ir.Node) -> int:
    return int(attribute(node, "num_heads", 1))


def _sizes(node: ir.Node, total: int) -> Sequence[int]:
    """The features of queries, keys and values."""
    return [int(size) for size in attribute(node, "qkv_hidden_sizes", ())] or [total // 3] * 3


def _cached(node: ir.Node) -> bool:
    past = len(node.inputs) > _PAST and node.inputs[_PAST] is not None
    return past or any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
