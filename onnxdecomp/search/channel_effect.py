"""What cuts of a channel do to the network's output: some are tried in copies of the original."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.channels.channel import Channel
from onnxdecomp.channels.new_numbers import NewNumbers, cut_with, turn_producers
from onnxdecomp.graph.traversal import places
from onnxdecomp.layers.find import find_again
from onnxdecomp.search.changed_part import errors_of_changes
from onnxdecomp.search.sensitivity import Effect, Outputs, effect_of


def cut_effect(
    model: ir.Model,
    channel: Channel,
    tries: Sequence[tuple[float, NewNumbers]],
    outputs: Outputs,
    calibration: Calibration,
    pending: Collection[ir.Node] | None,
) -> Effect:
    """Measure what cuts of a channel do to the output, each with its loss.

    Args:
        model: The original.
        channel: One of its.
        tries: What they leave, with their losses.
        outputs: What the original gives.
        calibration: Where models are run.
        pending: The nodes of this channel, and of all that will be measured later: only what follows is
            computed. None: everything is.
    """
    if not outputs.names:
        return effect_of([], outputs)
    known = []
    if tries and pending is not None:
        first = channel.producers[0].match
        for _ in outputs.window.advance([first.x.name or ""], pending):
            pass
        known = outputs.window.held()
    copies = [partial(cut_copy, model, channel, found) for _, found in tries]
    ends = [value for reader in channel.readers for value in reader.match.nodes[-1].outputs if value.name]
    errors = errors_of_changes(model, channel.nodes, ends, copies, outputs, calibration, known)
    return effect_of([(loss, error) for (loss, _), error in zip(tries, errors, strict=True)], outputs)


def cut_copy(model: ir.Model, channel: Channel, numbers: NewNumbers) -> ir.Model:
    """A copy of the model with one channel cut, and other numbers for the layers around it."""
    copy = model.clone()
    cut_with(copy, turn_producers(copy, _in_copy(model, channel, copy), numbers), numbers)
    return copy


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
