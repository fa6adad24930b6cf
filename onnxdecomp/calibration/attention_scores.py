"""What queries and keys are where their product is taken, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.channels.channel import Channel
from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.refine_scores import AttentionSample
from onnxdecomp.graph.traversal import upstream
from onnxdecomp.runtime.session import Feed

HELD = 256 << 20
"""Bytes of queries, keys and probabilities that are held."""

LARGEST = 256
"""Numbers per head above which no map is looked for: its time goes with their fourth power."""

_FAR = 8
"""Nodes between the scores and their softmax at most: a scale, a mask, a cast."""


@dataclass(frozen=True, eq=False)
class ScoreProduct:
    """A product of queries and keys, and where its heads lie.

    Attributes:
        query, key: Its operands: numbers of a head on the last axis of the first, on the last but one of the
            second.
        probabilities: What the softmax makes of the scores, or None where there is none.
        heads: Axes of the heads of both, or None where there is one head.
        groups: For each head of the queries its set of keys.
        firsts: For each set of keys the first head of the keys that is one of it.
    """

    query: ir.Value
    key: ir.Value
    probabilities: ir.Value | None
    heads: tuple[int | None, int | None]
    groups: tuple[int, ...]
    firsts: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """The values to observe, in the order that `samples` wants them in."""
        values = (self.query, self.key, self.probabilities)
        return [str(value.name) for value in values if value is not None]

    def samples(self, values: Sequence[Array], real: Array | None) -> Iterator[AttentionSample]:
        """The samples of one batch.

        Args:
            values: Of `names`.
            real: bool [N, n], the queries that are no padding, or None for all.
        """
        query = _arranged(values[0], self.heads[0])
        key = _arranged(values[1].swapaxes(-1, -2), self.heads[1])[:, list(self.firsts)]
        shape = (*query.shape[:3], key.shape[2])
        if self.probabilities is None:
            weights = np.full(shape, 1 / max(1, shape[3]), np.float32)
        else:
            weights = np.broadcast_to(_arranged(values[2], self.heads[0]), shape)
        for index, (q, k, p) in enumerate(zip(query, key, weights, strict=True)):
            rows = None if real is None or real.shape != (len(query), shape[2]) else real[index]
            yield AttentionSample(q, k, p if rows is None else p * rows[None, :, None])


def attention_samples(
    model: ir.Model, products: Sequence[ScoreProduct], calibration: Calibration
) -> list[list[AttentionSample]]:
    """The first samples at each of some products of one and the same model, in a single walk."""
    names = list(dict.fromkeys(name for product in products for name in product.names))
    observer = open_observer(model, names, provider=calibration.provider, threads=calibration.threads)
    found: list[list[AttentionSample]] = [[] for _ in products]
    size = 0
    for feed in calibration.feeds.batches(calibration.batch):
        seen = dict(zip(observer.names, observer.run(feed), strict=True))
        for product, own in zip(products, found, strict=True):
            values = [seen[name] for name in product.names]
            for sample in product.samples(values, real_queries(feed, values[0], calibration)):
                size += sample.nbytes
                own.append(sample)
        if size > HELD:
            break
    return found


def real_queries(feed: Feed, query: Array, calibration: Calibration) -> Array | None:
    """Which queries [N, n] of an operand of a product are no padding, None for all."""
    mask = calibration.mask
    return None if mask is None else mask.rows(feed, (len(query), query.shape[-2]))


def score_product(channel: Channel) -> ScoreProduct | str:
    """The product that a channel of queries and keys ends in, or why none of its form is known."""
    if len(channel.products) != 1 or channel.readers:
        return "it is read otherwise than by one product of queries and keys"
    (node,) = channel.products
    query, key = node.inputs[0], node.inputs[1]
    if query is None or key is None or query is key:
        return "its queries are its keys"
    units = {part.value: part.units for part in channel.shaped}
    sides = [_heads(units[value], at, channel) for value, at in ((query, -1), (key, -2)) if value in units]
    if len(sides) != 2 or None in sides:
        return "its heads do not lie on an axis of their own"
    (q_axis, q_sets), (k_axis, k_sets) = (side for side in sides if side is not None)
    firsts = tuple(k_sets.index(one) for one in range(channel.blocks))
    return ScoreProduct(query, key, _softmax(node), (q_axis, k_axis), tuple(q_sets), firsts)


def head_sets(units: Array, channel: Channel) -> list[int] | None:
    """The block of each head that places of these units are, head after head; None where they are not.

    Places that belong to no unit are left out.
    """
    size = channel.width // channel.blocks
    places = np.flatnonzero(units >= 0)
    if places.size % size:
        return None
    runs, heads = places.reshape(-1, size), units[places].reshape(-1, size)
    blocks = heads[:, 0] // size
    ordered = (np.diff(runs, axis=1) == 1).all() and (heads == blocks[:, None] * size + np.arange(size)).all()
    return blocks.tolist() if ordered else None


def _heads(units: Array, features: int, channel: Channel) -> tuple[int | None, list[int]] | None:
    """The axis of the heads, and the block of each."""
    at = features % units.ndim
    others = [axis for axis, size in enumerate(units.shape) if size > 1 and axis != at]
    if units.shape[at] != channel.width // channel.blocks or len(others) > 1:
        return None
    axis = others[0] if others else None
    found = head_sets(np.moveaxis(units, at, -1).reshape(-1), channel)
    return None if found is None or set(found) != set(range(channel.blocks)) else (axis, found)


def _arranged(x: Array, heads: int | None) -> Array:
    """[N, H, n, d], from [..., n, d] with the heads on one of the axes before."""
    if heads is None:
        return x.reshape(-1, 1, *x.shape[-2:])
    moved = np.moveaxis(x, heads, -3)
    return moved.reshape(-1, *moved.shape[-3:])


def _softmax(product: ir.Node) -> ir.Value | None:
    """What the softmax of a product gives, where it follows with nothing but a few nodes between."""
    value = product.outputs[0]
    for _ in range(_FAR):
        users = [node for node, _ in value.uses()]
        if len(users) != 1 or len(users[0].outputs) != 1:
            return None
        value = users[0].outputs[0]
        if users[0].op_type == "Softmax":
            return value
    return None


def unrotatable(channel: Channel) -> str:
    """Why the units of a block cannot be mixed, a phrase for people, or "" where they can."""
    if not channel.linear:
        return "what stands between is not linear"
    if channel.width // channel.blocks > LARGEST:
        return f"its blocks have more than {LARGEST} units"
    if any(head_sets(producer.units, channel) is None for producer in channel.producers):
        return "the layers that make it do not hold its blocks one after the other"
    if channel.products:
        found = score_product(channel)
        return found if isinstance(found, str) else _one_sided(channel, found)
    if len(channel.readers) != 1:
        return "more than one layer reads it"
    (reader,) = channel.readers
    if len(reader.units) != 1 or head_sets(reader.units[0], channel) is None:
        return "the layer that reads it does not read its blocks one after the other"
    return ""


def _one_sided(channel: Channel, product: ScoreProduct) -> str:
    """Why queries and keys are not made by layers of their own, or ""."""
    both = nodes_before(product.query) & nodes_before(product.key)
    if any(producer.match.nodes[0] in both for producer in channel.producers):
        return "one layer makes queries and keys"
    return ""


def nodes_before(value: ir.Value) -> set[ir.Node]:
    """The nodes that a value comes from."""
    node = value.producer()
    assert node is not None
    assert isinstance(node.graph, ir.Graph)
    return upstream(node.graph, [value])
