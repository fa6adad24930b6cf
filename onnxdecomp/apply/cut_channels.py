"""Cutting a channel: the units that its readers can do without go, and the readers make up for them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.apply.rotate_channel import (
    first_of_blocks,
    mapped,
    maps_of_scores,
    maps_of_values,
    score_maps,
)
from onnxdecomp.calibration.attention_scores import head_sets, unrotatable
from onnxdecomp.calibration.channel_moments import moments_of_weights, says_something
from onnxdecomp.calibration.statistics import centred, unobservable
from onnxdecomp.channels.channel import Channel, Producer, rows_left
from onnxdecomp.channels.channel_cut import ChannelCut
from onnxdecomp.channels.cut_channel import cut_channel
from onnxdecomp.channels.cut_check import CutCheck, check_cut, without_columns
from onnxdecomp.channels.find_channels import find_channel
from onnxdecomp.channels.recurrent import put_recurrences
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.errors import DefectError, UsageError
from onnxdecomp.fitting.elimination import ReaderMoments
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.quadratic_loss import as_rows
from onnxdecomp.fitting.rotate_heads import rotate_values
from onnxdecomp.fitting.select_units import RefittedReader, left_of_rows, select_units
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.replace import Rewriter, Rewritten
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.runtime.session import Feed
from onnxdecomp.search.keep_layers import Key
from onnxdecomp.search.plan import Cut

CUT = "pkg.onnxdecomp.cut"
"""The metadata of a reader's nodes that holds the channel's name."""


@dataclass(frozen=True, eq=False)
class Selected:
    """The units of a channel that stay.

    Attributes:
        channel: As it stands in the model.
        units: They, sorted.
        readers, recurrences: The readers' numbers then, and those of recurrences; none where these stay.
        fitted: These are chosen by what the calibration inputs show.
        unfitted: Why they are not although there was calibration, a phrase for people.
        turned: Producers whose outputs are mapped before the cut, by graph and name, and by what, [T, T].
    """

    channel: Channel
    units: Array
    readers: tuple[RefittedReader, ...] = ()
    recurrences: tuple[RefittedReader, ...] = ()
    fitted: bool = False
    unfitted: str = ""
    loss: float | None = None
    held_out: float | None = None
    turned: Mapping[Key, Array] = field(default_factory=dict)


def select(model: ir.Model, cut: Cut, fitter: Fitter | None, pending: Collection[ir.Node]) -> Selected:
    """Choose the units of a channel that stay; nothing is changed yet.

    Raises:
        UsageError: The model has no such channel, or the method does not take it.
    """
    channel = find_channel(model, find(model, freeze=True)[0], cut.channel)
    if channel is None:
        raise UsageError(f"the channel {cut.channel!r} is gone with others that were cut before it")
    # Whole blocks of it may be gone.
    kept = cut.kept * channel.width // cut.width
    if channel.products:
        return _of_scores(channel, kept, fitter, pending)
    seen, hidden = _seen(channel, fitter, pending)
    fitted, count = fitter is not None and not hidden, len(channel.readers)
    readers = [
        ReaderMoments(
            train,
            None if held is None or not held.usable else held,
            as_rows(reader.match.layer.weight, reader.match.layer),
            reader.units,
            reader.match.layer.bias,
            fitted and centred(reader.match),
        )
        for reader, (train, held) in zip((*channel.readers, *channel.recurrences), seen, strict=False)
    ]
    if cut.method == "attention":
        if why := unrotatable(channel):
            raise UsageError(f"attention does not take the channel {channel.name!r}: {why}")
        heads = head_sets(readers[0].units[0], channel) or []
        turned = rotate_values(readers[0], heads, kept // channel.blocks)
        units = first_of_blocks(channel, kept)
        numbers: tuple[RefittedReader, ...] = (turned.output,)
        maps = maps_of_values(channel, turned.maps)
    else:
        found = select_units(readers, channel.width, kept, blocks=channel.blocks)
        units, numbers, maps = found.units, found.readers, {}
    losses = [own.held_out for own in numbers]
    return Selected(
        channel,
        units,
        numbers[:count],
        numbers[count:],
        fitted,
        hidden,
        sum(own.loss for own in numbers) if fitted else None,
        sum(own for own in losses if own is not None) if fitted and None not in losses else None,
        maps,
    )


def _seen(
    channel: Channel, fitter: Fitter | None, pending: Collection[ir.Node]
) -> tuple[list[tuple[Moments, Moments | None]], str]:
    """What readers see, or what weights say of it, and why only that although there was calibration.

    Behind them what recurrences see; nothing where that says nothing.
    """
    hidden, count = _hidden(channel, fitter), len(channel.readers)
    if fitter is not None and not hidden:
        own = [reader.match for reader in channel.recurrences]
        own = [] if any(map(unobservable, own)) else own
        seen = fitter.observe([*(reader.match for reader in channel.readers), *own], pending)
        if all(train.usable for train, _ in seen[:count]):
            says = all(says_something(train) for train, _ in seen[count:])
            return seen if says else seen[:count], ""
        hidden = "what reads it sees nothing, or nothing finite"
    every = (*channel.readers, *channel.recurrences)
    return [(moments_of_weights(channel, reader), None) for reader in every], hidden


def _of_scores(channel: Channel, kept: int, fitter: Fitter | None, pending: Collection[ir.Node]) -> Selected:
    """Queries and keys mapped so that their first units change the attention least."""
    product, maps = score_maps(channel, kept, fitter, pending)
    return Selected(
        channel,
        first_of_blocks(channel, kept),
        fitted=fitter is not None,
        loss=None if fitter is None else maps.loss,
        turned=maps_of_scores(channel, product, maps),
    )


def put_in(
    model: ir.Model, selected: Selected, fitter: Fitter | None, probe: Feed | None
) -> tuple[ChannelCut, tuple[Rewritten, ...]]:
    """Cut the channel, in place, and give its readers the numbers that are best for what is left.

    With a `probe`, inputs of the model, the cut is checked on it.

    Raises:
        DefectError: The check fails.
    """
    channel, units = selected.channel, selected.units
    if selected.turned:
        channel = _turned(model, selected, fitter)
    if fitter is not None:
        fitter.will_cut(channel, _between(channel, find(model, freeze=True)[0]), units)
    names = [(reader.match.layer.graph, reader.match.layer.name) for reader in channel.readers]
    dense = None if probe is None else without_columns(model, channel, units)
    cut_channel(model, channel, units)
    check = CutCheck(channel.name, None, 0.0)
    if dense is not None and probe is not None:
        check = check_cut(dense, model, channel, units, probe)
    if not check.passed:
        raise DefectError(f"cut, it differs by {check.rel_error:.3g} from what it was without the units")
    put_recurrences(model, channel, units, selected.recurrences)
    by_name = {(match.layer.graph, match.layer.name): match for match in find(model, freeze=True)[0]}
    rewriter = Rewriter(model)
    rows = rows_left(channel, units)
    numbers = [left_of_rows(own, left) for own, left in zip(selected.readers, rows, strict=False)]
    done = tuple(
        renumbered(rewriter, match, _refitted(match, own), {CUT: channel.name})
        for match, own in _changed([by_name[name] for name in names], numbers)
    )
    infer_shapes(model)  # channels that are still to be cut are found by them
    return (
        ChannelCut(
            channel.name,
            tuple(producer.match.layer.name for producer in channel.producers),
            tuple(reader.match.layer.name for reader in channel.readers),
            units,
            selected.loss,
            selected.held_out,
            check.rel_error,
            unfitted=selected.unfitted,
        ),
        done,
    )


def _turned(model: ir.Model, selected: Selected, fitter: Fitter | None) -> Channel:
    """The channel once the outputs of its producers are mapped, in place: nothing is lost by that alone."""
    rewriter = Rewriter(model)
    for producer in selected.channel.producers:
        match = producer.match.current()
        maps = selected.turned[match.layer.graph, match.layer.name]
        if fitter is not None:
            fitter.will_turn(match, maps)
        renumbered(rewriter, match, mapped(match.layer, maps), {CUT: selected.channel.name})
    infer_shapes(model)
    found = find_channel(model, find(model, freeze=True)[0], selected.channel.name)
    assert found is not None
    return found


def renumbered(rewriter: Rewriter, match: LayerMatch, layer: Layer, metadata: Mapping[str, str]) -> Rewritten:
    """A layer with other numbers in the place of a match; it keeps its name, by which it is found again."""
    done = rewriter.replace(match, dense_chain(layer), metadata)
    done.nodes[0].name = match.layer.name
    return done


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
