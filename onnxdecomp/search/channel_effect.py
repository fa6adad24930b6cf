"""What cuts of a channel do to the network's output: some are tried in copies of the original."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.channels.channel import Channel, rows_left
from onnxdecomp.channels.cut_channel import cut_channel
from onnxdecomp.channels.recurrent import put_recurrences
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.fitting.select_units import RefittedReader, Selection, left_of_rows
from onnxdecomp.graph.traversal import places
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find_again
from onnxdecomp.layers.replace import Rewriter
from onnxdecomp.search.sensitivity import Effect, Outputs, effect_of, output_error


def cut_effect(
    model: ir.Model,
    channel: Channel,
    tries: Sequence[tuple[float, Selection]],
    outputs: Outputs,
    calibration: Calibration,
    pending: Collection[ir.Node] | None,
) -> Effect:
    """Measure what selections of a channel's units do to the output, each with its loss.

    Args:
        model: The original.
        channel: One of its.
        tries: Selections with their losses.
        outputs: What the original gives.
        calibration: Where models are run.
        pending: The nodes of this channel, and of all that will be measured later: only what follows is
            computed. None: everything is.
    """
    points: list[tuple[float, float]] = []
    known = []
    if tries and outputs.names and pending is not None:
        first = channel.producers[0].match
        for _ in outputs.window.advance([first.x.name or ""], pending):
            pass
        known = outputs.window.held()
    for loss, found in tries if outputs.names else ():
        tried = cut_copy(model, channel, found)
        points.append((loss, output_error(tried, outputs, calibration, known, consume=True)))
    return effect_of(points, outputs)


def cut_copy(model: ir.Model, channel: Channel, found: Selection) -> ir.Model:
    """A copy of the model with one channel cut, and what reads it fitted to the units that are left."""
    copy = model.clone()
    inside = _in_copy(model, channel, copy)
    cut_channel(copy, inside, found.units)
    count = len(channel.readers)
    put_recurrences(copy, inside, found.units, found.readers[count:])
    readers = [find_again(copy, reader.match) for reader in inside.readers]
    numbers = map(left_of_rows, found.readers, rows_left(channel, found.units))
    rewriter = Rewriter(copy)
    for match, own in zip(readers, numbers, strict=True):
        if np.isfinite(own.shrinkage) or own.bias is not match.layer.bias:
            rewriter.replace(match, dense_chain(_refitted(match, own).layer), {})
    return copy


def _refitted(match: LayerMatch, own: RefittedReader) -> LayerMatch:
    layer, kind = match.layer, match.layer.weight.dtype
    weight = np.ascontiguousarray(own.weight.reshape(layer.weight.shape)).astype(kind)
    bias = None if own.bias is None else own.bias.astype(kind)
    return replace(match, layer=replace(layer, weight=weight, bias=bias))


def _in_copy(model: ir.Model, channel: Channel, copy: ir.Model) -> Channel:
    """The same channel in a clone of its model."""
    where = {place.path: place for place in places(copy)}
    nodes = {
        node: other
        for place in places(model)
        for node, other in zip(place.graph, where[place.path].graph, strict=True)
    }
    values = {
        value: other
        for node, made in nodes.items()
        for value, other in zip(node.outputs, made.outputs, strict=True)
    }
    layers = {nodes[node]: find_again(copy, match) for node, match in channel.layers.items()}
    return replace(
        channel,
        producers=tuple(replace(p, match=layers[nodes[p.match.nodes[0]]]) for p in channel.producers),
        readers=tuple(replace(r, match=layers[nodes[r.match.nodes[0]]]) for r in channel.readers),
        products=tuple(nodes[node] for node in channel.products),
        stored=tuple(replace(part, node=nodes[part.node]) for part in channel.stored),
        shaped=tuple(replace(part, value=values[part.value]) for part in channel.shaped),
        layers=layers,
        nodes=tuple(nodes[node] for node in channel.nodes),
    )
