"""Cutting a channel: the units that its readers can do without go, and the readers make up for them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.calibration.channel_moments import moments_of_weights
from onnxdecomp.calibration.statistics import centred, unobservable
from onnxdecomp.channels.channel import Channel, Producer
from onnxdecomp.channels.channel_cut import ChannelCut
from onnxdecomp.channels.cut_channel import cut_channel
from onnxdecomp.channels.cut_check import CutCheck, check_cut, without_columns
from onnxdecomp.channels.find_channels import find_channels
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.errors import DefectError
from onnxdecomp.fitting.elimination import ReaderMoments
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.quadratic_loss import as_rows
from onnxdecomp.fitting.select_units import RefittedReader, Selection, select_units
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.replace import Rewriter, Rewritten
from onnxdecomp.runtime.session import Feed
from onnxdecomp.search.check_plan import channel_of
from onnxdecomp.search.plan import Cut

CUT = "pkg.onnxdecomp.cut"
"""The metadata of a reader's nodes that holds the channel's name."""


@dataclass(frozen=True, eq=False)
class Selected:
    """The units of a channel that stay.

    Attributes:
        channel: As it stands in the model.
        found: The units, and the readers' numbers then.
        fitted: The readers were fitted to what they see.
        unfitted: Why they were not although there was calibration, a phrase for people.
    """

    channel: Channel
    found: Selection
    fitted: bool
    unfitted: str


def select(model: ir.Model, cut: Cut, fitter: Fitter | None, pending: Collection[ir.Node]) -> Selected:
    """Choose the units of a channel that stay; nothing is changed yet.

    Raises:
        UsageError: The model has no such channel.
    """
    channel = channel_of(cut, find_channels(model, find(model, freeze=True)[0])[0])
    hidden = _hidden(channel, fitter)
    seen: list[tuple[Moments, Moments | None]] = []
    if fitter is not None and not hidden:
        seen = fitter.observe([reader.match for reader in channel.readers], pending)
        if not all(train.usable for train, _ in seen):
            hidden = "what reads it sees nothing, or nothing finite"
    fitted = fitter is not None and not hidden
    if not fitted:
        seen = [(moments_of_weights(channel, reader), None) for reader in channel.readers]
    readers = [
        ReaderMoments(
            train,
            None if held is None or not held.usable else held,
            as_rows(reader.match.layer.weight, reader.match.layer),
            reader.units,
            reader.match.layer.bias,
            fitted and centred(reader.match),
        )
        for reader, (train, held) in zip(channel.readers, seen, strict=True)
    ]
    found = select_units(readers, channel.width, cut.kept, blocks=channel.blocks)
    return Selected(channel, found, fitted, hidden)


def put_in(
    model: ir.Model, selected: Selected, fitter: Fitter | None, probe: Feed | None
) -> tuple[ChannelCut, tuple[Rewritten, ...]]:
    """Cut the channel, in place, and give its readers the numbers that are best for what is left.

    With a `probe`, inputs of the model, the cut is checked on it.

    Raises:
        DefectError: The check fails.
    """
    channel, found = selected.channel, selected.found
    if fitter is not None:
        fitter.will_cut(channel, _between(channel, find(model, freeze=True)[0]), found.units)
    names = [(reader.match.layer.graph, reader.match.layer.name) for reader in channel.readers]
    dense = None if probe is None else without_columns(model, channel, found.units)
    cut_channel(model, channel, found.units)
    check = CutCheck(channel.name, None, 0.0)
    if dense is not None and probe is not None:
        check = check_cut(dense, model, channel, found.units, probe)
    if not check.passed:
        raise DefectError(f"cut, it differs by {check.rel_error:.3g} from what it was without the units")
    by_name = {(match.layer.graph, match.layer.name): match for match in find(model, freeze=True)[0]}
    rewriter = Rewriter(model)
    done = tuple(
        rewriter.replace(match, dense_chain(_refitted(match, numbers)), {CUT: channel.name})
        for match, numbers in _changed([by_name[name] for name in names], found.readers)
    )
    return (
        ChannelCut(
            channel.name,
            tuple(producer.match.layer.name for producer in channel.producers),
            tuple(reader.match.layer.name for reader in channel.readers),
            found.units,
            found.loss if selected.fitted else None,
            found.held_out if selected.fitted else None,
            check.rel_error,
            unfitted=selected.unfitted,
        ),
        done,
    )


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
