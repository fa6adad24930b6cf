"""Finding the channels of a model."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.blocks import blocks_of, shrinking
from onnxdecomp.channels.channel import NONE, Channel, ChannelSkip, Producer, Reader, Shaped, Stored
from onnxdecomp.channels.facts import Facts, describe
from onnxdecomp.channels.layer_rules import layer_rule, spread_layer
from onnxdecomp.channels.measured import wrong_size
from onnxdecomp.channels.recurrent import units_of_states
from onnxdecomp.channels.rules import RULES
from onnxdecomp.channels.sizes import Sizes
from onnxdecomp.channels.streams import Break, breaking_alike, making_same
from onnxdecomp.channels.units import Broken
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.constants import Memo
from onnxdecomp.graph.traversal import upstream
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.recurrence import recurrences
from onnxdecomp.layers.scope import Scope

BLOCKS = ":blocks"
"""What the name of a channel ends in whose units are whole blocks of another's."""


def find_channels(
    model: ir.Model, matched: Sequence[LayerMatch], *, freeze: bool = False
) -> tuple[tuple[Channel, ...], tuple[ChannelSkip, ...]]:
    """The channels of a model in graph order, and the layers whose outputs cannot be cut.

    Channels may have units in common: one of whole blocks (heads) with those inside of the blocks.

    Args:
        model: Read only; with the shapes of activations (see onnxdecomp.layers.shapes).
        matched: Its layers, as `onnxdecomp.layers.find.find` has them.
        freeze: Treat initializers that are also graph inputs as constants.
    """
    layers = {match.nodes[0]: match for match in matched}
    search = _Search(model, matched, freeze)
    found: list[Channel] = []
    reasons: dict[ir.Node, str] = {}
    alike: dict[ir.Node, str] = {}
    taken = {match.nodes[0]: np.zeros(layer_rule(match).outputs(match), bool) for match in matched}
    for match in matched:
        node = match.nodes[0]
        if taken[node].size and taken[node].all():
            continue
        whole = not taken[node].any()
        if whole and node in alike:
            taken[node][:] = True
            reasons[node] = alike[node]
            continue
        channels, reason, facts = search.of(match, _numbered(~taken[node]))
        taken[node][:] = True
        if not channels:
            reasons[node] = reason
        if facts is None:
            alike |= breaking_alike(match, search.broken) if whole else {}
            continue
        for other in [layers[near] for near in facts.nodes if near in layers]:
            labels = layer_rule(other).labelled(other, facts)
            rows = taken[other.nodes[0]]
            if labels is not None and labels.size == rows.size:
                np.logical_or(rows, labels != NONE, out=rows)
                if not channels and rows.all():
                    reasons.setdefault(other.nodes[0], reason)
        found += channels
        found += search.blocks(channels, facts, found)
    made = {producer.match.nodes[0] for channel in found for producer in channel.producers}
    skips = [
        ChannelSkip(search.name(match), reasons[match.nodes[0]])
        for match in matched
        if match.nodes[0] in reasons and match.nodes[0] not in made
    ]
    return tuple(found), tuple(skips)


def find_channel(
    model: ir.Model, matched: Sequence[LayerMatch], name: str, *, freeze: bool = False
) -> Channel | None:
    """The channel of a name, as `find_channels`; None where there is none any more."""
    channels = _Search(model, matched, freeze).begun_at(name)
    if channels is None:
        channels = find_channels(model, matched, freeze=freeze)[0]
    return next((channel for channel in channels if channel.name == name), None)


@dataclass(eq=False)
class _Search:
    """Searches that begin at one layer each."""

    model: ir.Model
    matched: Sequence[LayerMatch]
    freeze: bool
    _memo: Memo = field(default_factory=dict)
    _known: dict[ir.Graph, tuple[Scope, Sizes]] = field(default_factory=dict)
    _order: dict[ir.Node, int] = field(default_factory=dict)
    _breaks: dict[ir.Node, Break | None] = field(default_factory=dict)
    _layers: Mapping[ir.Node, LayerMatch] = field(init=False)
    _names: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._layers = {match.nodes[0]: match for match in self.matched}
        for match in self.matched:
            if match.nodes[0] not in self._order:
                self._order.update({node: at for at, node in enumerate(match.place.graph)})
        names = Counter(match.layer.name for match in self.matched)
        self._names = {name for name, count in names.items() if count > 1}

    def name(self, match: LayerMatch) -> str:
        """The layer's name, with its graph's where it is not unique in the model."""
        repeated = match.layer.name in self._names and match.layer.graph
        return f"{match.layer.graph}/{match.layer.name}" if repeated else match.layer.name

    def of(self, match: LayerMatch, units: Array) -> tuple[list[Channel], str, Facts | None]:
        """The channels of a layer's outputs, labelled so; why there are none; all facts if they are known."""
        if match.place.function is not None:
            return [], "it is inside a function", None
        if not layer_rule(match).outputs(match):
            return [], "its outputs cannot be cut", None
        width = int(units.max()) + 1
        if width < 2:
            return [], "it has a single output", None
        whole = width == units.size
        known = self._breaks.setdefault(match.nodes[0], None) if whole else None
        if known is not None:
            return [], known.reason, None
        scope, sizes = self._around(match)
        facts = Facts(scope, sizes, width, self._layers, RULES, spread_layer)
        try:
            layer_rule(match).seed(match, units, facts)
            facts.spread()
        except Broken as broken:
            if whole:
                self._breaks[match.nodes[0]] = Break(str(broken), making_same(match, facts, self._order))
            return [], str(broken), None
        channels, reason = self._built(match, facts)
        try:
            # Blocks that cannot be cut each by itself may be cut alike, as halves that are shuffled.
            if not channels and facts.level():
                channels, _ = self._built(match, facts)
        except Broken:
            return [], reason or facts.why, None
        return channels, reason or facts.why, facts

    def broken(self, match: LayerMatch) -> Break | None:
        """How the search from all outputs of a layer breaks, if it does."""
        if match.nodes[0] not in self._breaks:
            self.of(match, np.arange(layer_rule(match).outputs(match)))
        return self._breaks.get(match.nodes[0])

    def begun_at(self, name: str) -> Sequence[Channel] | None:
        """The channels of the layer that a name begins with; None where earlier layers have part in them."""
        own = () if name.endswith(BLOCKS) else (name, name.rpartition(":")[0])
        first = next((match for match in self.matched if self.name(match) in own), None)
        if first is None:
            return None
        channels, _, facts = self.of(first, _numbered(np.ones(layer_rule(first).outputs(first), bool)))
        if facts is None:
            return None
        for match in itertools.takewhile(lambda match: match is not first, self.matched):
            labels = layer_rule(match).labelled(match, facts) if match.nodes[0] in facts.nodes else None
            if labels is not None and (labels != NONE).any():
                return None
        return channels

    def _built(self, match: LayerMatch, facts: Facts) -> tuple[list[Channel], str]:
        """The channels that the facts tell of, and why there is not one more."""
        channels: list[Channel] = []
        reason = ""
        for members in _classes(self._readers(facts), facts):
            name = self.name(match) + (f":{len(channels) + 1}" if channels else "")
            built = self._channel(name, members, facts)
            if isinstance(built, Channel):
                channels.append(built)
            else:
                reason = reason or built
        return channels, reason

    def blocks(self, channels: Sequence[Channel], facts: Facts, known: Sequence[Channel]) -> list[Channel]:
        """The channels whose units are whole blocks of these."""
        wholes = [channel for channel in known if channel.name.endswith(BLOCKS)]
        taken = [_makers(channel) for channel in wholes]
        found: list[Channel] = []
        for channel in channels:
            first = channel.producers[0]
            if first.units.size != layer_rule(first.match).outputs(first.match):
                continue  # rows of several gates are a unit
            for size in sorted(facts.runs) if channel.blocks > 1 or channel.products else ():
                runs = np.where(first.units < 0, NONE, np.arange(first.units.size) // size)
                units = np.unique(runs, return_inverse=True)[1] - int(NONE in runs)
                built, _, _ = self.of(first.match, units)
                if len(built) == 1 and _makers(built[0]) not in taken:
                    found.append(replace(built[0], name=channel.name + BLOCKS))
                    taken.append(_makers(built[0]))
                    break
        return found

    def _readers(self, facts: Facts) -> dict[ir.Node, Array]:
        """The labels of what reads units: columns of layers, and products."""
        found = dict(facts.products)
        for node in facts.nodes:
            match = self._layers.get(node)
            units = None if match is None else layer_rule(match).read(match, facts)
            if units is not None:
                found[node] = units
        return found

    def _channel(self, name: str, members: Array, facts: Facts) -> Channel | str:
        number = np.full(facts.width + 1, NONE)
        number[members] = np.arange(members.size)
        if members.size < 2:
            return facts.why

        def own(labels: Array) -> Array | None:
            found = of.collapsed(number[facts.current(labels)])
            return None if of.is_empty(found) else found

        shaped = [
            Shaped(v, found) for v, labels in facts.values.items() if (found := own(labels)) is not None
        ]
        stored = [
            Stored(node, at, found)
            for (node, at, _), labels in facts.stored.items()
            if (found := own(labels)) is not None
        ]
        tensors = [(part.units, f"the activation {part.value.name}") for part in shaped]
        tensors += [(part.units, f"a weight of {describe(part.node)}") for part in stored]
        rows = [
            (number[facts.units.current(lines)], describe(node)) for (node, _), lines in facts.aligned.items()
        ]
        blocks = blocks_of(tensors, rows, members.size)
        if isinstance(blocks, str):
            return blocks
        if blocks == members.size:
            return f"as many of its {blocks} outputs must stay in each of {blocks} places"
        units_of = {part.value: part.units for part in shaped}
        reason = wrong_size(facts, units_of.get, lambda units: shrinking(units, members.size))
        if reason:
            return reason
        values = {part.value for part in shaped}
        nodes = {part.node for part in stored}
        nodes |= {node for node in facts.nodes if values & {*node.inputs, *node.outputs}}
        ordered = tuple(sorted(nodes, key=self._order.__getitem__))
        layers = {node: self._layers[node] for node in ordered if node in self._layers}
        producers, readers = [], []
        for match in layers.values():
            rule = layer_rule(match)
            made, read = rule.made(match, facts), rule.read(match, facts)
            if made is not None and not of.is_empty(number[made]):
                producers.append(Producer(match, number[made]))
            if read is not None and not of.is_empty(number[read]):
                readers.append(Reader(match, number[read]))
        products = [n for n, labels in facts.products.items() if own(labels) is not None]
        if len(products) == 1:
            producers = [replace(p, operands=self._operands(p, products[0])) for p in producers]
        if not producers:
            return "no layer makes it"
        if not (readers or products):
            return "no layer reads it"
        own_readers = tuple(
            Reader(match, number[units][None])
            for producer in producers
            for match, units in self._recurrences(producer.match, facts)
        )
        ends = {
            node
            for match in (*(p.match for p in producers), *(r.match for r in readers))
            for node in match.nodes
        }
        return Channel(
            name,
            int(members.size),
            blocks,
            tuple(producers),
            tuple(readers),
            own_readers,
            tuple(sorted(products, key=self._order.__getitem__)),
            tuple(stored),
            tuple(shaped),
            layers,
            ordered,
            not facts.nonlinear and all(part.node in ends for part in stored),
        )

    def _operands(self, producer: Producer, product: ir.Node) -> Array:
        """Which operand of a product each output of a layer becomes, as `Producer.operands` has it."""
        node, count = producer.match.nodes[0], producer.units.size
        inside = layer_rule(producer.match).operands
        if node is product and inside is not None:
            return inside(producer.match)
        assert isinstance(node.graph, ir.Graph)
        values = [value for value in product.inputs[:2] if value is not None]
        sides = np.zeros((2, count), bool)
        first = self._order[node]
        between = [upstream(node.graph, [v], passes=lambda n: self._order[n] >= first) for v in values]
        sides[[node in found for found in between]] = True
        if sides.all() and count == layer_rule(producer.match).outputs(producer.match):
            sides = np.stack([self._arrived(producer, value, product) for value in values])
        return np.where(sides[0] == sides[1], NONE, np.where(sides[0], 0, 1))

    def _arrived(self, producer: Producer, value: ir.Value, product: ir.Node) -> Array:
        """Which outputs of a layer, bool [T], are in an operand of a product."""
        scope, sizes = self._around(producer.match)
        labels = _numbered(producer.units >= 0)
        facts = Facts(scope, sizes, labels.size, self._layers, RULES, spread_layer, ends=(product,))
        with contextlib.suppress(Broken):
            layer_rule(producer.match).seed(producer.match, labels, facts)
            facts.spread()
        there = facts.labels(value)
        return np.isin(labels, [] if there is None else there) & (labels >= 0)

    def _recurrences(self, match: LayerMatch, facts: Facts) -> Iterator[tuple[LayerMatch, Array]]:
        """What a layer reads of its own state, and the units of each."""
        if match.adapter.states(match.nodes[0]) is not None:
            units = units_of_states(match, facts)
            assert units is not None  # else it makes none
            yield from zip(recurrences(match, self._around(match)[0]), units, strict=False)

    def _around(self, match: LayerMatch) -> tuple[Scope, Sizes]:
        graph = match.place.graph
        if graph not in self._known:
            opset = int(self.model.opset_imports.get("", 1) or 1)
            scope = Scope(match.place, self.model.ir_version, opset, self.freeze, self._memo)
            self._known[graph] = scope, Sizes(scope)
        return self._known[graph]


def _makers(channel: Channel) -> set[ir.Node]:
    return {producer.match.nodes[0] for producer in channel.producers}


def _numbered(free: Array) -> Array:
    """0, 1, … for the places that are free, NONE for the others."""
    return np.where(free, np.cumsum(free) - 1, NONE)


def _classes(readers: Mapping[ir.Node, Array], facts: Facts) -> Iterator[Array]:
    """The units that can be left out, in groups with the same readers; those that are cut alike together."""
    usable = np.flatnonzero(facts.units.usable())
    if not usable.size:
        return
    seen = np.zeros((len(readers), facts.width + 1), bool)
    for index, labels in enumerate(readers.values()):
        seen[index, facts.current(labels)] = True
    _, group = np.unique(seen[:, usable], axis=1, return_inverse=True)
    group = group.reshape(-1)
    groups = np.full(facts.width + 1, NONE)
    groups[usable] = group
    together = [facts.current(labels) for labels in facts.several()]
    for labels in together:
        found = np.unique(groups[labels])
        found = found[found >= 0]
        if found.size > 1:
            groups[np.isin(groups, found)] = found[0]
    firsts = [int(np.flatnonzero(groups == g)[0]) for g in np.unique(groups[usable])]
    for first in sorted(firsts):
        yield np.flatnonzero(groups[:-1] == groups[first])
