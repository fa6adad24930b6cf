"""Cutting a channel: the units that its readers can do without go, and the readers make up for them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels.channel_cut import ChannelCut
from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.calibration.channel_moments import moments_of_weights
from onnxdecomp.calibration.statistics import centred, unobservable
from onnxdecomp.channels.channel import Channel, Producer
from onnxdecomp.channels.cut_channel import cut_channel
from onnxdecomp.channels.find_channels import find_channels
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.elimination import ReaderMoments
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.quadratic_loss import as_rows
from onnxdecomp.fitting.select_units import RefittedReader, Selection, select_units
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.replace import Rewriter, Rewritten
from onnxdecomp.search.check_plan import channel_of
from onnxdecomp.search.plan import Cut

CUT = "pkg.onnxdecomp.cut"
"""The metadata of a reader's nodes that holds the channel's name."""


def select(
    channel: Channel, kept: int, fitter: Fitter | None, pending: Collection[ir.Node]
) -> tuple[Selection, str]:
    """The units that stay and the readers' numbers then; and why no rows were looked at, or ""."""
    hidden = _hidden(channel, fitter)
    seen: list[tuple[Moments, Moments | None]] = []
    if fitter is not None and not hidden:
        seen = fitter.observe([reader.match for reader in channel.readers], pending)
        if not all(train.usable for train, _ in seen):
            hidden = "what reads it sees nothing, or nothing finite"
    by_weights = fitter is None or bool(hidden)
    if by_weights:
        seen = [(moments_of_weights(channel, reader), None) for reader in channel.readers]
    readers = [
        ReaderMoments(
            train,
            None if held is None or not held.usable else held,
            as_rows(reader.match.layer.weight, reader.match.layer),
            reader.units,
            reader.match.layer.bias,
            centred(reader.match) and not by_weights,
        )
        for reader, (train, held) in zip(channel.readers, seen, strict=True)
    ]
    return select_units(readers, channel.width, kept, blocks=channel.blocks), hidden


def carry_out_cut(
    model: ir.Model, cut: Cut, fitter: Fitter | None, pending: Collection[ir.Node]
) -> tuple[ChannelCut, tuple[Rewritten, ...]]:
    """Cut a channel of the model, in place; its readers get the numbers that are best for what is left.

    Raises:
        UsageError: The model has no such channel.
    """
    matched = find(model, freeze=True)[0]
    channel = channel_of(cut, find_channels(model, matched)[0])
    found, hidden = select(channel, cut.kept, fitter, pending)
    if fitter is not None:
        fitter.will_cut(channel, _between(channel, matched), found.units)
    names = [(reader.match.layer.graph, reader.match.layer.name) for reader in channel.readers]
    cut_channel(model, channel, found.units)
    by_name = {(match.layer.graph, match.layer.name): match for match in find(model, freeze=True)[0]}
    rewriter = Rewriter(model)
    done = tuple(
        rewriter.replace(match, dense_chain(_refitted(match, numbers)), {CUT: channel.name})
        for match, numbers in _changed([by_name[name] for name in names], found.readers)
    )
    by_weights = fitter is None or bool(hidden)
    loss = None if by_weights else found.loss
    made = tuple(producer.match.layer.name for producer in channel.producers)
    read = tuple(reader.match.layer.name for reader in channel.readers)
    held_out = None if by_weights else found.held_out
    return ChannelCut(channel.name, made, read, found.units, loss, held_out, unfitted=hidden), done


def _between(channel: Channel, matched: Sequence[LayerMatch]) -> list[Producer]:
    """The layers between producers and readers: depthwise convolutions."""
    ends = {producer.match.nodes[0] for producer in channel.producers}
    ends |= {reader.match.nodes[0] for reader in channel.readers}
    weights = {(match.nodes[0], match.adapter.weight_at): match for match in matched}
    found = []
    for stored in channel.stored:
        match = weights.get((stored.node, stored.at))
        if match is not None and stored.node not in ends:
            found.append(Producer(match, stored.units.reshape(-1)))
    return found


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


def _hidden(channel: Channel, fitter: Fitter | None) -> str:
    """Why no rows of a reader can be had although there is calibration, or ""."""
    if fitter is None:
        return ""
    return next((why for reader in channel.readers if (why := unobservable(reader.match))), "")
