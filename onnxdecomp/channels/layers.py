"""Layers in a channel: they make units by the rows of their weights and read them by the columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.facts import Facts, Term, describe
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.channels.rules.elementwise import aligned_right
from onnxdecomp.core.layer import Array
from onnxdecomp.layers.adapter import FeatureAxes, LayerMatch


def spread_layer(match: LayerMatch, facts: Facts) -> None:
    """Spread labels between the activation, the weight and the output of a layer's node."""
    node = match.nodes[0]
    axes = match.adapter.feature_axes(node)
    if axes is None:
        return facts.freeze_all(node, "its features cannot be cut")
    if match.quantized:
        return facts.freeze_all(node, "its weight is stored quantized")
    x, y = facts.sizes.shape(match.x), facts.sizes.shape(node.outputs[0])
    if x is None or y is None:
        return facts.freeze_all(node, "the shape of its activation is not known")
    if not (match.adapter.is_plain or match.layer.lookup):
        facts.bend()
    if match.layer.lookup:
        return _lookup(match, axes, len(y), facts)
    if match.layer.conv is None:
        return _Ends(match, axes, len(x), len(y), facts).spread()
    spatial = range(2, len(y))
    facts.mix(node, _x_at(match), spatial, "moves its kernel along it")
    facts.mix(node, -1, spatial, "moves its kernel along it")
    if match.layer.groups > 1 and _passes(match, facts):
        return None
    return _Ends(match, axes, len(x), len(y), facts).spread()


def outputs(match: LayerMatch) -> int:
    """How many outputs of the layer may be units, for all that the layer itself says."""
    axes = match.adapter.feature_axes(match.nodes[0])
    return 0 if axes is None or axes.outputs is None else match.layer.outputs


def seed(match: LayerMatch, units: Array, facts: Facts) -> None:
    """Label the outputs of a layer, int [T], where a search begins."""
    y = match.nodes[0].outputs[0]
    axes, shape = match.adapter.feature_axes(match.nodes[0]), facts.sizes.shape(y)
    assert axes is not None
    if shape is None:
        facts.freeze(units, f"the shape of {y.name} is not known")
    else:
        facts.give(match.nodes[0], -1, of.along(units, axes.y, len(shape)))


def read_units(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of the layer's columns as `Reader.units` has them; None where it reads none."""
    found = _along_features(match, facts.labels(match.x), "x")
    if found is None or match.nodes[0] in facts.passed:
        return None
    return np.repeat(found.reshape(match.layer.groups, -1), math.prod(match.layer.kernel), axis=1)


def made_units(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of the layer's rows as `Producer.units` has them; None where it makes none."""
    return None if match.nodes[0] in facts.passed else labelled(match, facts)


def labelled(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of the layer's outputs, whether it makes them or lets them pass."""
    return _along_features(match, facts.labels(match.nodes[0].outputs[0]), "y")


def resize_layer(match: LayerMatch, cut: Resizing) -> None:
    """Set the groups of a convolution of which whole groups go."""
    node, groups = match.nodes[0], match.layer.groups
    stays = cut.stays(node.outputs[0], 1) if groups > 1 else None
    if stays is not None:
        per_group = stays.reshape(groups, -1)
        if (per_group == per_group[:, :1]).all():
            node.attributes["group"] = ir.AttrInt64("group", int(per_group[:, 0].sum()))


def _along_features(match: LayerMatch, labels: Array | None, which: str) -> Array | None:
    axes = match.adapter.feature_axes(match.nodes[0])
    if labels is None or axes is None:
        return None
    axis = (axes.x if which == "x" else axes.y) % labels.ndim
    return labels.reshape(-1) if of.varies(labels) == (axis,) else None


def _x_at(match: LayerMatch) -> int:
    return next(at for at, value in enumerate(match.nodes[0].inputs) if value is match.x)


def _passes(match: LayerMatch, facts: Facts) -> bool:
    """Spread through a convolution whose groups are one unit each, as a depthwise one's; whether it is."""
    node, g, weight = match.nodes[0], match.layer.groups, match.layer.weight
    sizes = {0: weight.shape[1] * g, -1: weight.shape[0]}
    found: Array | None = None
    for at, size in sizes.items():
        labels = facts.labels(node.inputs[0] if at == 0 else node.outputs[0])
        if labels is None or of.varies(labels) != (1,):
            continue
        groups = labels.reshape(g, -1)
        first = np.broadcast_to(groups.max(axis=1, keepdims=True), groups.shape)
        # The multiplied outputs of one channel go together.
        together = (groups == first).all() or size == g or (at == -1 and sizes[0] == g)
        if not together:
            continue
        groups = facts.met(groups, first)[:, :1] if groups.shape[1] > 1 else groups
        found = groups if found is None else facts.met(found, groups)
    if found is None:
        return False
    facts.bend()
    facts.passed.add(node)
    by_group = facts.current(found) if found.size == g else found
    rank = weight.ndim
    for at, size in sizes.items():
        facts.give(node, at, of.along(np.repeat(by_group.reshape(-1), size // g), 1, rank))
    stored = sizes[0] if match.layer.conv is not None and match.layer.conv.transposed else sizes[-1]
    facts.store(node, 1, of.along(np.repeat(by_group.reshape(-1), stored // g), 0, rank))
    facts.tie(node, [(2, (1,)), (-1, tuple(range(rank)))], rank)
    return True


def _lookup(match: LayerMatch, axes: FeatureAxes, rank: int, facts: Facts) -> None:
    """Spread to the columns of a table."""
    node = match.nodes[0]
    labels = facts.labels(node.outputs[0])
    if labels is None:
        return facts.freeze_all(node, "its indices are numbers, not features")
    if of.varies(labels) != (rank - 1,) or axes.outputs is None:
        return facts.freeze(labels, f"{describe(node)} looks it up row by row")
    return facts.store(node, match.adapter.weight_at, of.along(labels.reshape(-1), axes.outputs, 2))


class _Ends:
    """A layer that makes units, reads some, or lets pass what lies along other axes than its features."""

    def __init__(self, match: LayerMatch, axes: FeatureAxes, x_rank: int, y_rank: int, facts: Facts) -> None:
        self.match, self.axes, self.facts = match, axes, facts
        self.node, self.x_at = match.nodes[0], _x_at(match)
        self.x_rank, self.y_rank = x_rank, y_rank
        self.x_axis, self.y_axis = axes.x % x_rank, axes.y % y_rank

    def spread(self) -> None:
        reads = self._only(self.x_at, self.x_axis)
        makes = self._only(-1, self.y_axis)
        if reads is not None:
            self._store(reads, self.axes.inputs, "columns")
        if makes is not None:
            self._store(makes, self.axes.outputs, "rows")
        self._let_pass(reads is None, makes is None)
        self._tie_added()

    def _tie_added(self) -> None:
        """What is added to the output has its units: a bias, a Gemm's C, a residual."""
        node, facts = self.node, self.facts
        added = [at for at in range(len(node.inputs)) if at not in (self.x_at, self.match.adapter.weight_at)]
        if all(
            facts.labels(value) is None for value in (node.outputs[0], *(node.inputs[at] for at in added))
        ):
            return
        terms: list[Term] = [(-1, tuple(range(self.y_rank)))]
        for at in added:
            whole = at != self.axes.bias
            axes = aligned_right(node, at, self.y_rank, facts) if whole else (self.y_axis,)
            if axes is not None:
                terms.append((at, axes))
        facts.tie(node, terms, self.y_rank)

    def _only(self, at: int, axis: int) -> Array | None:
        """The labels along the axis of the features, None where they do not differ there."""
        value = self.node.inputs[at] if at >= 0 else self.node.outputs[0]
        labels = self.facts.labels(value)
        if labels is None or labels.shape[axis] == 1:
            return None
        others = [k for k in of.varies(labels) if k != axis]
        if others:
            self.facts.mix(self.node, at, others, "has the same weights for all of it")
            labels = self.facts.labels(value)
            if labels is None or of.varies(labels) != (axis,):
                return None
        return labels.reshape(-1)

    def _store(self, units: Array, axis: int | None, what: str) -> None:
        facts, match, rank = self.facts, self.match, self._stored_rank()
        if axis is None or (match.layer.is_stack and what == "columns"):
            return facts.freeze(units, f"the {what} of {describe(self.node)} cannot be cut")
        g, at = match.layer.groups, match.adapter.weight_at
        if g == 1:
            return facts.store(self.node, at, of.along(units, axis % rank, rank), what)
        runs = units.reshape(g, -1)
        facts.align(self.node, self.x_at if what == "columns" else -1, runs)
        if axis == 0:
            return facts.store(self.node, at, of.along(units, 0, rank), what)
        first = match.layer.weight.shape[0] if what == "columns" else match.layer.inputs
        labels = np.repeat(runs, first // g, axis=0)
        return facts.store(self.node, at, labels.reshape(*labels.shape, *[1] * (rank - 2)), what)

    def _stored_rank(self) -> int:
        constant = self.facts.constant(self.node.inputs[self.match.adapter.weight_at])
        return self.match.layer.weight.ndim if constant is None else constant.array.ndim

    def _let_pass(self, x: bool, y: bool) -> None:
        own = self._axes_of_x()
        terms: Sequence[Term] = [(self.x_at, own)] * x + [(-1, tuple(range(self.y_rank)))] * y
        if not terms:
            return
        joint = self.facts.tie(self.node, terms, self.y_rank + 1)
        if joint is None:
            return
        lead = [axis for axis in of.varies(joint) if axis < self.y_rank - 2]
        if len(terms) < 2 or (self.match.layer.is_stack and lead):
            self.facts.freeze(joint, f"{describe(self.node)} multiplies it by a matrix of its own")

    def _axes_of_x(self) -> tuple[int, ...]:
        """Where the axes of the activation lie among those of the output, and its features behind them."""
        own = list(range(self.y_rank - self.x_rank, self.y_rank))
        if self.match.layer.conv is None and self.x_rank > 1:
            rows = next(k for k in (self.x_rank - 2, self.x_rank - 1) if k != self.x_axis)
            own[rows] = next(k for k in (self.y_rank - 2, self.y_rank - 1) if k != self.y_axis)
        own[self.x_axis] = self.y_rank
        return tuple(own)
