"""Attention with one weight for queries, keys and values, in a channel: the rows that make them.

Every head keeps as many values. Its queries and keys meet inside of the operator: they are a channel of their
own that ends there, of rows alone. Where the units of values are whole heads they go with them.
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
    x, y = facts.labels(match.x), facts.labels(node.outputs[0])
    if x is not None:
        facts.bend()
    for at, labels in ((0, x), (-1, y)):
        if labels is not None:
            facts.mix(node, at, range(labels.ndim - 1), "has the same weights for all of it")
    columns = read(match, facts)
    if columns is not None:
        facts.store(node, _WEIGHT, of.along(columns.reshape(-1), 0, 2), "columns")
    values, scores = _values(match, facts), _scores(match, facts)
    if values is None and scores is None:
        return None
    if _cached(node):
        known = [units for units in (values, scores) if units is not None]
        return facts.freeze(np.concatenate(known), f"{describe(node)}: its cache keeps the sizes of heads")
    whole = None if values is None else _whole(values.reshape(_heads(node), -1))
    if whole is not None:
        facts.bend()
        if scores is not None:
            facts.freeze(scores, f"the heads of {describe(node)} can only go whole")
        if len(node.inputs) > _SCORES and node.inputs[_SCORES] is not None:
            why = f"{describe(node)} adds something of its own to the scores of each head"
            return facts.freeze(whole, why)
    elif values is not None:
        facts.align(node, -1, values.reshape(_heads(node), -1))
    if scores is not None:
        facts.align(node, _WEIGHT, scores.reshape(_heads(node), -1))
    rows = _rows(match, whole, values, scores if whole is None else None)
    facts.store(node, _WEIGHT, of.along(rows, 1, 2), "rows")
    return facts.store(node, _BIAS, rows)


def outputs(match: LayerMatch) -> int:
    """The values of all heads, and as many units as there are queries, each of which has a key."""
    return sum(_sizes(match.nodes[0], match.layer.outputs)[1:])


def seed(match: LayerMatch, units: Array, facts: Facts) -> None:
    """Label the values, and behind them the queries and keys, where a search begins."""
    node = match.nodes[0]
    values = _sizes(node, match.layer.outputs)[2]
    facts.give(node, -1, of.along(units[:values], 2, 3))
    if (units[values:] != NONE).any():
        facts.products[node] = units[values:].reshape(_heads(node), -1)
        facts.ask(node)


def labelled(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of the values, and behind them those of queries and keys; None where none has any."""
    values, scores = _values(match, facts), _scores(match, facts)
    if values is None and scores is None:
        return None
    sizes = _sizes(match.nodes[0], match.layer.outputs)[1:]
    own = zip((scores, values), sizes, strict=True)
    of_scores, of_values = (np.full(size, NONE) if units is None else units for units, size in own)
    return np.concatenate([of_values, of_scores])


def made(match: LayerMatch, facts: Facts) -> Array | None:
    """The unit of each row of the weight, int [T]; of queries and keys none where whole heads go."""
    values, scores = _values(match, facts), _scores(match, facts)
    return None if values is None and scores is None else _rows(match, None, values, scores)


def operands(match: LayerMatch) -> Array:
    """Which operand of the scores each row makes, 0 or 1, int [T]; NONE: values."""
    return np.repeat([0, 1, NONE], _sizes(match.nodes[0], match.layer.outputs))


def read(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of the columns, [1, S]; None where they read none."""
    labels = facts.labels(match.x)
    return None if labels is None or of.varies(labels) != (labels.ndim - 1,) else labels.reshape(1, -1)


def resize(match: LayerMatch, cut: Resizing) -> None:
    """Set the heads and the sizes of queries, keys and values; the scale goes by those of queries."""
    node = match.nodes[0]
    rows = next((p.units for p in cut.channel.stored if p.node is node and p.at == _BIAS), None)
    if rows is None:
        return
    sizes, heads = _sizes(node, match.layer.outputs), _heads(node)
    kept = [int(part.sum()) for part in np.split(cut.left[rows], np.cumsum(sizes)[:2])]
    stays = cut.stays(node.outputs[0], 2)
    left = heads if stays is None else int(stays.reshape(heads, -1).any(axis=1).sum())
    node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", kept)
    node.attributes["num_heads"] = ir.AttrInt64("num_heads", left)
    if kept[0] // left < sizes[0] // heads and not attribute(node, "scale", 0.0):
        node.attributes["scale"] = ir.AttrFloat32("scale", (sizes[0] // heads) ** -0.5)


def _values(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of the values; None where they have none."""
    labels = facts.labels(match.nodes[0].outputs[0])
    return None if labels is None or of.varies(labels) != (2,) else labels.reshape(-1)


def _scores(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of the queries, which are those of the keys; None where they have none."""
    labels = facts.products.get(match.nodes[0])
    return None if labels is None else facts.current(labels).reshape(-1)


def _whole(lines: Array) -> Array | None:
    """The unit of each head, where all of it is one; else None."""
    return lines[:, 0] if lines.shape[1] > 1 and (lines == lines[:, :1]).all() else None


def _rows(match: LayerMatch, heads: Array | None, values: Array | None, scores: Array | None) -> Array:
    """The unit of each row; of queries and keys those of their heads, if they go with them."""
    node = match.nodes[0]
    *sizes, last = _sizes(node, match.layer.outputs)
    each = scores
    if each is None:
        each = np.full(sizes[0], NONE) if heads is None else np.repeat(heads, sizes[0] // len(heads))
    return np.concatenate([each, each, np.full(last, NONE) if values is None else values])


def _heads(node: ir.Node) -> int:
    return int(attribute(node, "num_heads", 1))


def _sizes(node: ir.Node, total: int) -> Sequence[int]:
    """The features of queries, keys and values."""
    return [int(size) for size in attribute(node, "qkv_hidden_sizes", ())] or [total // 3] * 3


def _cached(node: ir.Node) -> bool:
    past = len(node.inputs) > _PAST and node.inputs[_PAST] is not None
    return past or any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
