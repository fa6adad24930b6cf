"""Attention in one node, of queries, keys and values that are computed before it.

Inside a head queries and keys are a channel that ends in the node, their product, and values one that passes.
Every head keeps as many units, of queries and keys others than of values. Where the units are whole heads
those of queries, keys and values go together. What a cache holds is an interface, and stays.
GroupQueryAttention and DecoderMaskedMultiHeadAttention are made for caches, with one size of heads for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.channel import NONE
from onnxdecomp.channels.facts import Facts, describe
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.channels.rules.rule import Operator, OperatorRule
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import attribute
from onnxdecomp.layers.scope import MICROSOFT

_Q, _K, _V, _OUT = 0, 1, 2, -1


@dataclass(frozen=True)
class _Form:
    """How an operator says what attention needs.

    Attributes:
        heads: The attributes with the heads of queries, and of keys and values.
        bias: The position of what is added to queries, keys and values, one behind the other; or none.
        scores: The position of what is added to the scores; its last axis but two has the heads.
        caches: Positions of past keys and values, and what belongs to them.
    """

    heads: tuple[str, str]
    bias: int | None
    scores: int
    caches: tuple[int, ...]


_FORMS = {
    "MultiHeadAttention": _Form(("num_heads", "num_heads"), 3, 5, (6, 7, 8, 9)),
    "Attention": _Form(("q_num_heads", "kv_num_heads"), None, 3, (4, 5, 6)),
}


@dataclass(frozen=True, eq=False)
class _Heads:
    """The heads of a node, and what is known of their units.

    Attributes:
        node, facts: Where.
        count: Heads of queries, and of keys and values.
    """

    node: ir.Node
    facts: Facts
    count: tuple[int, int]

    def of(self, at: int) -> int:
        """The heads of an operand or of the output."""
        return self.count[0] if at in (_Q, _OUT) else self.count[1]

    def size(self, at: int) -> int | None:
        """The size of a head there."""
        shape = self.facts.shape(self.node, at)
        if shape is None or not isinstance(shape[-1], int):
            return None
        return shape[-1] if len(shape) == 4 else shape[-1] // self.of(at)

    def units(self, at: int) -> Array | None:
        """The units there, [heads, size]."""
        facts = self.facts
        shape, size = facts.shape(self.node, at), self.size(at)
        value = self.node.outputs[0] if at < 0 else self.node.inputs[at]
        facts.mix(self.node, at, range(len(shape or ()))[:1], "attends to all of it alike")
        facts.mix(self.node, at, [len(shape or ()) - 2], "attends across it")
        labels = facts.labels(value)
        if labels is None or size is None:
            return None
        own = labels[0, 0].reshape(-1, size) if labels.ndim == 3 else labels[0, :, 0]
        return np.broadcast_to(own, (self.of(at), size))

    def give(self, at: int, units: Array) -> None:
        """Label what is there with [heads, size]."""
        shape = self.facts.shape(self.node, at) or ()
        if len(shape) == 3:
            self.facts.give(self.node, at, of.along(units.reshape(-1), 2, 3))
        else:
            self.facts.give(self.node, at, of.collapsed(units[None, :, None, :]))

    def joined(self, one: int, other: int) -> Array | None:
        """Make units of heads that belong together the same there and there; those of the sets of keys."""
        mine, theirs = self.units(one), self.units(other)
        if mine is None and theirs is None:
            return None
        size = next(found for found in (self.size(one), self.size(other)) if found is not None)
        sets = self.count[1]
        joint = np.full((sets, size), NONE)
        for units in (mine, theirs):
            for part in [] if units is None else np.moveaxis(units.reshape(sets, -1, size), 1, 0):
                joint = np.broadcast_to(self.facts.met(joint, part), joint.shape)
        for at in (one, other):
            self.give(at, np.repeat(joint, self.of(at) // sets, axis=0))
        return joint


def _spread(node: ir.Node, facts: Facts) -> None:
    form = _FORMS[node.op_type]
    heads = _heads(node, facts, form)
    if isinstance(heads, str):
        return facts.freeze_all(node, heads)
    scores, values = heads.joined(_Q, _K), heads.joined(_V, _OUT)
    known = [units for units in (scores, values) if units is not None]
    whole = [units[:, 0] for units in known if units.shape[1] > 1 and (units == units[:, :1]).all()]
    if whole:
        _spread_whole(heads, form, whole)
    else:
        if scores is not None:
            facts.products[node] = scores
        for ats in ((_Q, _K), (_V, _OUT)):
            for at in ats:
                shape, units = facts.shape(node, at), heads.units(at)
                if units is not None and shape is not None and len(shape) == 3:
                    facts.align(node, at, units)
                    facts.runs.add(units.shape[1])
    _store_bias(heads, form)
    return None


def _spread_whole(heads: _Heads, form: _Form, known: Sequence[Array]) -> None:
    """Spread units that are whole heads to all that has heads."""
    node, facts = heads.node, heads.facts
    facts.bend()
    joint = known[0]
    for more in known[1:]:
        joint = facts.met(joint, more)
    added = facts.shape(node, form.scores) if _given(node, form.scores) else None
    if len(set(heads.count)) > 1:
        return facts.freeze(joint, f"{describe(node)} has several heads on each of its keys")
    if _given(node, form.scores) and (added is None or (len(added) > 2 and added[-3] != 1)):
        return facts.freeze(joint, f"{describe(node)} adds something of its own to the scores of each head")
    joint = np.broadcast_to(joint, heads.count[:1])
    for at in (_Q, _K, _V, _OUT):
        size = heads.size(at)
        if size is None:
            return facts.freeze(joint, f"the size of a head of {describe(node)} is not known")
        heads.give(at, np.repeat(joint[:, None], size, axis=1))
    return None


def _store_bias(heads: _Heads, form: _Form) -> None:
    if form.bias is None or not _given(heads.node, form.bias):
        return None
    parts = []
    for at in (_Q, _K, _V):
        size, units = heads.size(at), heads.units(at)
        if size is None:
            return heads.facts.freeze_all(heads.node, "the size of its heads is not known")
        parts.append(np.full(heads.of(at) * size, NONE) if units is None else units.reshape(-1))
    labels = np.concatenate(parts)
    if not of.is_empty(labels):
        heads.facts.store(heads.node, form.bias, labels)
    return None


def _heads(node: ir.Node, facts: Facts, form: _Form) -> _Heads | str:
    """The heads of a node, or why none of its units can be cut."""
    if any(_given(node, at) for at in form.caches) or any(_read(output) for output in node.outputs[1:]):
        return "its cache keeps the sizes of heads"
    shapes = [facts.shape(node, at) for at in (_Q, _K, _V, _OUT)]
    if not all(_given(node, at) for at in (_Q, _K, _V)) or None in shapes:
        return "its queries, keys and values are not known apart"
    ranks = {len(shape) for shape in shapes if shape is not None}
    if ranks == {4}:
        sizes = [shape[1] for shape in shapes[:2] if shape is not None]
    elif ranks == {3}:
        sizes = [int(attribute(node, name, 0)) for name in form.heads]
    else:
        return "its queries, keys and values are not known apart"
    many, few = sizes
    if not isinstance(many, int) or not isinstance(few, int) or few < 1 or many % few:
        return "how many heads it has is not known"
    return _Heads(node, facts, (many, few))


def _resize(node: ir.Node, cut: Resizing) -> None:
    """Set the heads, and the scale to what followed from the size of a head."""
    form, q = _FORMS[node.op_type], node.inputs[_Q]
    shape = cut.shape(q)
    axes = (1, 3) if len(shape) == 4 else (2, 2)
    stays = cut.stays(q, axes[1])
    if stays is None or q is None:
        return
    heads = int(attribute(node, form.heads[0], 1))
    if len(shape) == 3:
        lines = stays.reshape(heads, -1)
        left = int(lines.any(axis=1).sum())
        if left < heads:
            for name in set(form.heads):
                node.attributes[name] = ir.AttrInt64(name, left)
            return
        size = lines.shape[1]
    else:
        size = stays.size
    if not attribute(node, "scale", 0.0):
        node.attributes["scale"] = ir.AttrFloat32("scale", size**-0.5)


def _given(node: ir.Node, at: int) -> bool:
    return at < len(node.inputs) and node.inputs[at] is not None


def _read(output: ir.Value) -> bool:
    return bool(output.uses()) or output.is_graph_output()


def _cached(node: ir.Node, facts: Facts) -> None:
    facts.freeze_all(node, "its cache keeps the sizes of heads")


RULES: dict[Operator, OperatorRule] = {
    (MICROSOFT, "MultiHeadAttention"): OperatorRule(_spread, _resize),
    ("", "Attention"): OperatorRule(_spread, _resize),
    **{
        (MICROSOFT, name): OperatorRule(_cached)
        for name in ("GroupQueryAttention", "DecoderMaskedMultiHeadAttention")
    },
}
