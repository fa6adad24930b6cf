"""What queries and keys are where their product is taken, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.channels.channel import NONE, Channel, Producer
from onnxdecomp.channels.new_numbers import added
from onnxdecomp.channels.parts import scores_and_values
from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.refine_scores import AttentionSample
from onnxdecomp.graph.attributes import attribute
from onnxdecomp.runtime.session import Feed

HELD = 256 << 20
"""Bytes of queries, keys and probabilities that are held."""

LARGEST = 256
"""Numbers per head above which no map is looked for: its time goes with their fourth power."""

QUERY, KEY = 0, 1
"""Operands of the product."""

_NEVER = np.float32(-1e30)
"""The score of what is not looked at."""

_FAR = 8
"""Nodes between the scores and their softmax at most: a scale, a mask, a cast."""


@dataclass(frozen=True, eq=False)
class Real:
    """What is no padding: bool [N, n] of the queries and [N, m] of the keys, None for all."""

    queries: Array | None = None
    keys: Array | None = None


@dataclass(frozen=True, eq=False)
class ScoreProduct:
    """A product of queries and keys, and where its heads lie.

    Attributes:
        query, key: Its operands.
        probabilities: What the softmax makes of the scores, or None where there is none to see.
        size: Numbers of a head.
        features: Axes of what is in a head of both.
        heads: Axes of the heads of both and of the probabilities; None where there is one head; that of the
            features where these are head after head.
        groups: For each head of the queries its set of keys.
        firsts: For each set of keys the first head of the keys that is one of it.
        scale: Of the scores, where the softmax is in the product's own node; else None.
        causal: There every query meets no later keys than its own.
        made: Where the node makes queries and keys itself, of what both operands then are: the rows and
            biases of its weight for the ones and the others, [H d, S + 1].
    """

    query: ir.Value
    key: ir.Value
    probabilities: ir.Value | None
    size: int
    features: tuple[int, int]
    heads: tuple[int | None, int | None, int | None]
    groups: tuple[int, ...]
    firsts: tuple[int, ...]
    scale: float | None = None
    causal: bool = False
    made: tuple[Array, Array] | None = None

    @property
    def names(self) -> list[str]:
        """The values to observe, in the order that `samples` wants them in."""
        values = (self.query, None if self.made else self.key, self.probabilities)
        return [str(value.name) for value in values if value is not None]

    def samples(
        self, values: Sequence[Array], real: Real, meant: Sequence[Array] | None = None
    ) -> Iterator[AttentionSample]:
        """The samples of one batch.

        Args:
            values: Of `names`.
            real: The queries and keys that are no padding.
            meant: Of `names` in the original, whose scores are wanted; None: those of `values` are.
        """
        query, key = self._sides(values)
        wanted = None if meant is None else self._sides(meant)
        keys = _fitting(real.keys, key)
        weights = self._weights(values if meant is None else meant, *(wanted or (query, key)), keys)
        rows = _fitting(real.queries, query)
        for index, (q, k, p) in enumerate(zip(query, key, weights, strict=True)):
            aim = None if wanted is None else (wanted[0][index], wanted[1][index])
            seen = p if rows is None else np.asarray(p * rows[index][None, :, None])
            yield AttentionSample(q, k, seen, aim)

    def _sides(self, values: Sequence[Array]) -> tuple[Array, Array]:
        """The queries [N, H, n, d], and the keys [N, S, m, d]."""
        if self.made is not None:
            values = [values[0] @ rows[:, :-1].T + rows[:, -1] for rows in self.made]
        query = self._arranged(values[0], self.features[0], self.heads[0])
        return query, self._arranged(values[1], self.features[1], self.heads[1])[:, list(self.firsts)]

    def _weights(self, values: Sequence[Array], query: Array, key: Array, keys: Array | None) -> Array:
        """The probabilities [N, H, n, m]; of those that are computed here without keys that are padding."""
        shape = (*query.shape[:3], key.shape[2])
        if self.probabilities is not None:
            seen = self._arranged(values[2], values[2].ndim - 1, self.heads[2])
            return np.broadcast_to(seen, shape)
        if self.scale is None:
            return np.full(shape, 1 / max(1, shape[3]), np.float32)
        return self._computed(query, key, keys)

    def _arranged(self, x: Array, features: int, heads: int | None) -> Array:
        """[N, H, n, d], where d and H lie along these axes, n along the last other one."""
        packed = heads == features
        if heads is not None and not packed and heads > features:
            heads -= 1
        x = np.moveaxis(x, features, -1)
        if packed:
            x = x.reshape(*x.shape[:-1], -1, self.size)
            heads = x.ndim - 2
        if heads is None:
            return x.reshape(-1, 1, *x.shape[-2:])
        moved = np.moveaxis(x, heads, -3)
        return moved.reshape(-1, *moved.shape[-3:])

    def _computed(self, query: Array, key: Array, keys: Array | None) -> Array:
        """The probabilities [N, H, n, m] as queries and keys tell them: a mask in the node is not known."""
        assert self.scale is not None
        scores = self.scale * (query @ key[:, list(self.groups)].swapaxes(-1, -2))
        if self.causal:
            scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf)
        if keys is not None:
            scores = np.where(keys[:, None, None], scores, _NEVER)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _fitting(real: Array | None, x: Array) -> Array | None:
    """What is real [N, n] of x [N, H, n, d]; None for all, and where the two do not belong together."""
    return real if real is not None and real.shape == (len(x), x.shape[2]) else None


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
            for sample in product.samples(values, real_positions(product, feed, values, calibration)):
                size += sample.nbytes
                own.append(sample)
        if size > HELD:
            break
    return found


def real_positions(
    product: ScoreProduct, feed: Feed, values: Sequence[Array], calibration: Calibration
) -> Real:
    """Which queries and keys of a product are no padding, by what `product.names` are."""
    mask = calibration.mask
    if mask is None:
        return Real()
    sides = [mask.rows(feed, (len(x), x.shape[-2])) for x in values[: 1 if product.made else 2]]
    return Real(sides[0], sides[-1])


def score_product(channel: Channel) -> ScoreProduct | str:
    """The product that a channel of queries and keys ends in, or why none of its form is known."""
    if len(channel.products) != 1 or channel.readers:
        return "it is read otherwise than by one product of queries and keys"
    (node,) = channel.products
    if makes_its_own(channel):
        return _packed(channel)
    query, key = node.inputs[0], node.inputs[1]
    if query is None or key is None or query is key:
        return "its queries are its keys"
    units = {part.value: part.units for part in channel.shaped}
    known = [units[value] for value in (query, key) if value in units]
    sides = [found for own in known for found in [_heads(own, channel)] if found is not None]
    if len(sides) != 2:
        return "its heads do not lie on an axis of their own"
    (q_at, q_axis, q_sets), (k_at, k_axis, k_sets) = sides
    asking = sum((head_operands(producer, channel) or []).count(QUERY) for producer in channel.producers)
    if q_axis is None and asking > 1:  # heads that all have the same units lie where they usually do
        q_axis, q_sets = max(0, known[0].ndim - 3), q_sets * asking
    softmax, of_heads = _softmax(node), _axis_after(node, q_axis, known[0].ndim)
    if softmax is not None and of_heads is None and q_axis is not None:
        return "its scores do not have the heads on an axis of their own"
    firsts = tuple(k_sets.index(one) for one in range(channel.blocks))
    axes = (q_at, k_at), (q_axis, k_axis, of_heads)
    size = channel.width // channel.blocks
    found = ScoreProduct(query, key, softmax, size, *axes, tuple(q_sets), firsts)
    if not _is_whole(node):
        return found
    causal = attribute(node, "is_causal", 0) or attribute(node, "unidirectional", 0)
    return replace(found, scale=attribute(node, "scale", 0.0) or size**-0.5, causal=bool(causal))


def makes_its_own(channel: Channel) -> bool:
    """Whether the node that multiplies queries and keys also makes them."""
    return any(producer.match.nodes[0] in channel.products for producer in channel.producers)


def _packed(channel: Channel) -> ScoreProduct | str:
    """The product of queries and keys that one node makes and multiplies."""
    (node,) = channel.products
    producer = channel.producers[0]
    operands, layer = producer.operands, producer.match.layer
    if len(channel.producers) > 1 or operands is None:
        return "several layers make its queries and keys"
    rows = layer.weight.reshape(layer.outputs, -1)
    bias = np.zeros(layer.outputs, rows.dtype)
    for numbers in added(channel, producer):
        bias = bias if numbers is None else bias + numbers
    rows = np.hstack([rows, bias[:, None]])
    query, key = (rows[(producer.units != NONE) & (operands == side)] for side in (QUERY, KEY))
    size, sets = channel.width // channel.blocks, tuple(range(channel.blocks))
    scale = attribute(node, "scale", 0.0) or size**-0.5
    causal = bool(attribute(node, "unidirectional", 0))
    x = producer.match.x
    return ScoreProduct(x, x, None, size, (2, 2), (2, 2, None), sets, sets, scale, causal, (query, key))


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


def _heads(units: Array, channel: Channel) -> tuple[int, int | None, list[int]] | None:
    """The axes of what is in a head, and of the heads (see ScoreProduct), and the block of each head."""
    axes = [axis for axis, size in enumerate(units.shape) if size > 1]
    for at in axes if len(axes) <= 2 else ():
        found = head_sets(np.moveaxis(units, at, -1).reshape(-1), channel)
        alone = units.shape[at] == channel.width // channel.blocks
        if (alone or len(axes) == 1) and found is not None and set(found) == set(range(channel.blocks)):
            return at, next((axis for axis in axes if axis != at), None if alone else at), found
    return None


def _is_whole(product: ir.Node) -> bool:
    """Whether a product's node is all of attention, and not the product alone."""
    return len(product.inputs) > 2


def _axis_after(product: ir.Node, axis: int | None, rank: int) -> int | None:
    """The axis of the scores that an axis of the queries becomes; queries and keys are the last two there."""
    if axis is None:
        return None
    equation = str(attribute(product, "equation", "")).replace(" ", "")
    if not equation:
        return axis if axis < rank - 2 else None
    terms, _, scores = equation.partition("->")
    query, _, key = terms.partition(",")
    letter, summed = query[axis], set(query) - set(scores)
    ends = set(query) - set(key), set(key) - set(query)
    right = scores[-2:-1] in ends[0] and scores[-1:] in ends[1] and len(summed) == 1
    return scores.index(letter) if right and letter in scores[:-2] else None


def _softmax(product: ir.Node) -> ir.Value | None:
    """What the softmax of a product gives, where it follows with nothing but a few nodes between."""
    if _is_whole(product):
        return None
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
    if channel.products and channel.readers:
        parts = scores_and_values(channel)
        if parts is None:
            return "what it ends in is a product and a layer of the same units"
        return unrotatable(parts[0]) or unrotatable(parts[1])
    if not channel.linear:
        return "what stands between is not linear"
    if channel.width // channel.blocks > LARGEST:
        return f"its blocks have more than {LARGEST} units"
    if any(head_sets(producer.units, channel) is None for producer in channel.producers):
        return "the layers that make it do not hold its blocks one after the other"
    if any(part is None for producer in channel.producers for part in added(channel, producer)):
        return "what is added to it is computed"
    if channel.products:
        found = score_product(channel)
        return found if isinstance(found, str) else _one_sided(channel, found)
    if len(channel.readers) != 1:
        return "more than one layer reads it"
    (reader,) = channel.readers
    if len(reader.units) != 1 or head_sets(reader.units[0], channel) is None:
        return "the layer that reads it does not read its blocks one after the other"
    return "the layer that reads it reads others, too" if (reader.units == NONE).any() else ""


def _one_sided(channel: Channel, product: ScoreProduct) -> str:
    """Why queries and keys cannot be told apart in the layers that make them, or ""."""
    heads = [head_operands(producer, channel) for producer in channel.producers]
    if None in heads:
        return "which outputs are queries and which are keys is not known"
    asking = [operands.count(QUERY) for operands in heads if operands is not None and QUERY in operands]
    if asking != [len(product.groups)]:
        return "several layers make its queries"
    return ""


def head_operands(producer: Producer, channel: Channel) -> list[int] | None:
    """Of each head that a layer makes whether it is one of the queries or of the keys; None: not known."""
    size = channel.width // channel.blocks
    operands = producer.operands
    own = None if operands is None else operands[producer.units != NONE].reshape(-1, size)
    if own is None or (own == NONE).any() or (own != own[:, :1]).any():
        return None
    return [int(operand) for operand in own[:, 0]]
