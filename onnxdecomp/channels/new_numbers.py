"""Cutting a channel with other numbers for the layers around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels.channel import Channel, Producer, rows_left
from onnxdecomp.channels.cut_channel import cut_channel
from onnxdecomp.channels.find_channels import find_channel
from onnxdecomp.channels.recurrent import put_recurrences
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.select_units import RefittedReader, Selection, left_of_rows
from onnxdecomp.graph.constants import discard, initializer
from onnxdecomp.graph.traversal import unique_name, value_names
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.replace import Rewriter, Rewritten
from onnxdecomp.layers.shapes import infer_shapes

CUT = "pkg.onnxdecomp.cut"
"""The metadata of nodes that have other numbers for a cut: the channel's name."""


@dataclass(frozen=True, eq=False)
class NewNumbers:
    """What a cut leaves of a channel.

    Attributes:
        units: Those that stay, sorted.
        readers: Of each reader the numbers that are best for these; none for a channel that no layer reads.
        recurrences: Of each recurrence likewise; none where they stay.
        turned: What the outputs of producers are mapped by before the cut, [T, T], by graph and name.
    """

    units: Array
    readers: tuple[RefittedReader, ...] = ()
    recurrences: tuple[RefittedReader, ...] = ()
    turned: Mapping[tuple[str, str], Array] = field(default_factory=dict)

    @property
    def fitted(self) -> tuple[RefittedReader, ...]:
        """All that was fitted to the units that stay."""
        return (*self.readers, *self.recurrences)


def new_numbers(channel: Channel, found: Selection) -> NewNumbers:
    """What a selection leaves, of what reads a channel and behind that of its recurrences."""
    count = len(channel.readers)
    return NewNumbers(found.units, found.readers[:count], found.readers[count:])


def turn_producers(model: ir.Model, channel: Channel, numbers: NewNumbers) -> Channel:
    """Map the outputs of a channel's producers, in place, which by itself is no cut.

    Returns:
        The channel as it is then.
    """
    if not numbers.turned:
        return channel
    rewriter = Rewriter(model)
    for producer in channel.producers:
        match = producer.match.current()
        maps = numbers.turned[match.layer.graph, match.layer.name]
        done = _renumbered(rewriter, match, mapped(match.layer, maps), channel.name)
        for at in added_at(channel, producer):
            _turn_added(model, done.nodes[-1], at, maps)
    infer_shapes(model)
    found = find_channel(model, find(model, freeze=True)[0], channel.name, freeze=True)
    assert found is not None
    return found


def cut_with(model: ir.Model, channel: Channel, numbers: NewNumbers) -> tuple[Rewritten, ...]:
    """Cut a channel, in place, whose producers are turned, and give its readers their numbers."""
    names = [(reader.match.layer.graph, reader.match.layer.name) for reader in channel.readers]
    cut_channel(model, channel, numbers.units)
    return renumber_readers(model, channel, names, numbers)


def renumber_readers(
    model: ir.Model, channel: Channel, names: Sequence[tuple[str, str]], numbers: NewNumbers
) -> tuple[Rewritten, ...]:
    """Give what reads a channel that was cut its numbers, in place; shapes are still to be inferred.

    Args:
        model: The model.
        channel: As it was before the cut.
        names: The readers' graphs and names.
        numbers: Theirs, with all rows, of which the cut may have left less.
    """
    put_recurrences(model, channel, numbers.units, numbers.recurrences)
    by_name = {(match.layer.graph, match.layer.name): match for match in find(model, freeze=True)[0]}
    # Every layer that a cut has made smaller says that it has, which is what a training goes by.
    own = {(match.layer.graph, match.layer.name) for match in channel.layers.values()}
    for key in own & by_name.keys():
        by_name[key].nodes[0].metadata_props[CUT] = channel.name
    rewriter = Rewriter(model)
    rows = rows_left(channel, numbers.units)
    left = [left_of_rows(one, some) for one, some in zip(numbers.readers, rows, strict=False)]
    return tuple(
        _renumbered(rewriter, match, _refitted(match, one), channel.name)
        for match, one in _changed([by_name[name] for name in names], left)
    )


def added_at(channel: Channel, producer: Producer) -> list[int]:
    """The operands of a producer that its node adds to what the weight makes, and are not the layer's bias.

    Of an operator that is more than a product, such as attention: there the layer is the product alone.
    """
    match = producer.match
    own = {match.adapter.weight_at, match.adapter.bias_at}
    if match.layer.bias is not None or match.adapter.is_plain:
        return []
    return sorted({part.at for part in channel.stored if part.node is match.nodes[0]} - own)


def added(channel: Channel, producer: Producer) -> list[Array | None]:
    """What stands there, [T] each; None where it is computed."""
    values = [producer.match.nodes[0].inputs[at] for at in added_at(channel, producer)]
    found = [None if value is None else ir.convenience.get_const_tensor(value) for value in values]
    return [None if tensor is None else tensor.numpy() for tensor in found]


def _turn_added(model: ir.Model, node: ir.Node, at: int, maps: Array) -> None:
    """Map what a node adds to the outputs of a layer as well, [T]."""
    value = node.inputs[at]
    found = None if value is None else ir.convenience.get_const_tensor(value)
    assert value is not None
    assert found is not None  # a stored part of the channel
    array = found.numpy()
    turned = (maps @ array.astype(np.float64)).astype(array.dtype)
    name = unique_name(f"{value.name}/turned", value_names(model))
    node.replace_input_with(at, initializer(model.graph, ir.Tensor(turned, name=name), name))
    discard(value)


def mapped(layer: Layer, maps: Array) -> Layer:
    """The layer with its outputs, the bias included, mapped by [T, T]."""
    kind, weight = layer.weight.dtype, layer.weight.astype(np.float64)
    rows = (maps @ weight.reshape(layer.outputs, -1)).reshape(weight.shape)
    bias = None if layer.bias is None else (maps @ layer.bias.astype(np.float64)).astype(kind)
    return replace(layer, weight=rows.astype(kind), bias=bias)


def _renumbered(rewriter: Rewriter, match: LayerMatch, layer: Layer, channel: str) -> Rewritten:
    """A layer with other numbers in the place of a match; it keeps its name, by which it is found again."""
    return rewriter.replace(match, dense_chain(layer), {CUT: channel}, named=True)


def _changed(
    matched: Sequence[LayerMatch], numbers: Sequence[RefittedReader]
) -> Iterator[tuple[LayerMatch, RefittedReader]]:
    """The readers whose own numbers do not serve, with those that do."""
    for match, own in zip(matched, numbers, strict=True):
        if np.isfinite(own.shrinkage) or own.bias is not match.layer.bias:
            yield match, own


def _refitted(match: LayerMatch, numbers: RefittedReader) -> Layer:
    """The layer with other numbers."""
    layer, kind = match.layer, match.layer.weight.dtype
    weight = np.ascontiguousarray(numbers.weight.reshape(layer.weight.shape)).astype(kind)
    bias = None if numbers.bias is None else numbers.bias.astype(kind)
    return replace(layer, weight=weight, bias=bias)
