"""Cutting a channel: the units that its readers can do without go, and the readers make up for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.calibration.attention_scores import makes_its_own, score_product, unrotatable
from onnxdecomp.calibration.channel_moments import moments_of_weights, reader_moments, says_something
from onnxdecomp.calibration.head_maps import both_cut, score_maps, scores_cut, values_cut
from onnxdecomp.calibration.statistics import unobservable
from onnxdecomp.channels.channel import Channel, Producer
from onnxdecomp.channels.channel_cut import ChannelCut
from onnxdecomp.channels.cut_channel import cut_channel
from onnxdecomp.channels.cut_check import check_cut, without_columns
from onnxdecomp.channels.find_channels import find_channel
from onnxdecomp.channels.new_numbers import NewNumbers, new_numbers, renumber_readers, turn_producers
from onnxdecomp.channels.parts import scores_and_values
from onnxdecomp.errors import DefectError, UsageError
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.select_units import select_units
from onnxdecomp.fitting.strengths import SHRINKAGES
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.runtime.session import Feed
from onnxdecomp.search.plan import Cut


@dataclass(frozen=True, eq=False)
class Selected:
    """What a cut leaves of a channel, and how that was found.

    Attributes:
        channel: As it stands in the model.
        numbers: What is left, with the numbers of the layers around it.
        fitted: These are chosen by what the calibration inputs show.
        unfitted: Why they are not although there was calibration, a phrase for people.
        loss, held_out: See ChannelCut.
    """

    channel: Channel
    numbers: NewNumbers
    fitted: bool = False
    unfitted: str = ""
    loss: float | None = None
    held_out: float | None = None


def select(
    model: ir.Model,
    cut: Cut,
    fitter: Fitter | None,
    pending: Collection[ir.Node],
    later: Collection[ir.Node] = (),
) -> Selected:
    """Choose the units of a channel that stay; nothing is changed yet.

    Args:
        model: As it is by now.
        cut: What the plan says.
        fitter: Fits to the calibration inputs, where there are any.
        pending: As for `Window.advance`.
        later: The nodes of layers that are still to be fitted.

    Raises:
        UsageError: The model has no such channel, or the method does not take it.
    """
    channel = channel_to_cut(model, cut)
    # Whole blocks of it may be gone.
    kept = cut.kept * channel.width // cut.width
    return _selected(channel, kept, cut.method, fitter, pending, later)


def channel_to_cut(model: ir.Model, cut: Cut) -> Channel:
    """The channel as it stands in the model by now.

    Raises:
        UsageError: There is none, or the method does not take it.
    """
    channel = find_channel(model, find(model, freeze=True)[0], cut.channel, freeze=True)
    if channel is None:
        raise UsageError(f"the channel {cut.channel!r} is gone with others that were cut before it")
    if cut.method == "attention" and (why := unrotatable(channel)):
        raise UsageError(f"attention does not take the channel {channel.name!r}: {why}")
    return channel


def _selected(
    channel: Channel,
    kept: int,
    method: str | None,
    fitter: Fitter | None,
    pending: Collection[ir.Node],
    later: Collection[ir.Node],
) -> Selected:
    """The units of a channel that stay by a method."""
    if channel.products and channel.readers:
        return _of_both(channel, kept, fitter, pending, later)
    if channel.products:
        return _of_scores(channel, kept, fitter, pending, later)
    seen, hidden = _seen(channel, fitter, pending)
    fitted = fitter is not None and not hidden
    readers = reader_moments(channel, seen, centre=fitted)
    if method == "attention":
        numbers = values_cut(channel, readers[0], kept)
    else:
        strengths = SHRINKAGES if fitter is None else fitter.calibration.shrinkages
        found = select_units(readers, channel.width, kept, blocks=channel.blocks, shrinkages=strengths)
        numbers = new_numbers(channel, found)
    losses = [own.held_out for own in numbers.fitted]
    return Selected(
        channel,
        numbers,
        fitted,
        hidden,
        sum(own.loss for own in numbers.fitted) if fitted else None,
        sum(own for own in losses if own is not None) if fitted and None not in losses else None,
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


def _of_scores(
    channel: Channel,
    kept: int,
    fitter: Fitter | None,
    pending: Collection[ir.Node],
    later: Collection[ir.Node],
) -> Selected:
    """Queries and keys mapped so that their first units change the attention least."""
    product = score_product(channel)
    assert not isinstance(product, str)  # see `unrotatable`
    # What makes its own queries and keys is not repaired yet: see `fit_stages`.
    again = makes_its_own(channel) or any(own.match.nodes[0] in later for own in channel.producers)
    samples = [] if fitter is None else fitter.attention(product, pending, again=again)
    maps = score_maps(channel, product, kept, samples)
    numbers = scores_cut(channel, product, kept, maps)
    return Selected(
        channel, numbers, bool(samples), loss=maps.loss if samples else None, held_out=maps.held_out
    )


def _of_both(
    channel: Channel,
    kept: int,
    fitter: Fitter | None,
    pending: Collection[ir.Node],
    later: Collection[ir.Node],
) -> Selected:
    """Queries and keys, and values, mapped each by themselves."""
    parts = scores_and_values(channel)
    assert parts is not None  # see `unrotatable`
    size = kept // channel.blocks
    scores, values = (
        _selected(part, size * part.blocks, "attention", fitter, pending, later) for part in parts
    )
    numbers = both_cut(channel, kept, scores.numbers, values.numbers)
    losses = [part.loss for part in (scores, values) if part.loss is not None]
    held = [part.held_out for part in (scores, values) if part.held_out is not None]
    return Selected(
        channel,
        numbers,
        values.fitted,
        values.unfitted,
        sum(losses) if losses else None,
        sum(held) if len(held) == len(losses) > 0 else None,
    )


def put_in(
    model: ir.Model, selected: Selected, fitter: Fitter | None, probe: Feed | None
) -> tuple[ChannelCut, tuple[Rewritten, ...]]:
    """Cut the channel, in place, and give its readers the numbers that are best for what is left.

    With a `probe`, inputs of the model, the cut is checked on it.

    Raises:
        DefectError: The check fails.
    """
    numbers, units = selected.numbers, selected.numbers.units
    if fitter is not None:
        for producer in selected.channel.producers if numbers.turned else ():
            match = producer.match
            fitter.will_turn(match, numbers.turned[match.layer.graph, match.layer.name])
    channel = turn_producers(model, selected.channel, numbers)
    if fitter is not None:
        fitter.will_cut(channel, _between(channel, find(model, freeze=True)[0]), units)
    names = [(reader.match.layer.graph, reader.match.layer.name) for reader in channel.readers]
    dense = None if probe is None else without_columns(model, channel, units)
    cut_channel(model, channel, units)
    check = None
    if dense is not None and probe is not None:
        check = check_cut(dense, model, channel, units, probe)
    if check is not None and not check.passed:
        raise DefectError(f"cut, it differs by {check.rel_error:.3g} from what it was without the units")
    done = renumber_readers(model, channel, names, numbers)
    infer_shapes(model)  # channels that are still to be cut are found by them
    biased = {
        one.match.layer.name: int(one.chain.bias.size)
        for one in done
        if one.match.layer.bias is None and one.chain.bias is not None
    }
    return (
        ChannelCut(
            channel.name,
            tuple(producer.match.layer.name for producer in channel.producers),
            tuple(reader.match.layer.name for reader in channel.readers),
            units,
            selected.loss,
            selected.held_out,
            None if check is None else check.rel_error,
            biased,
            selected.unfitted,
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


def _hidden(channel: Channel, fitter: Fitter | None) -> str:
    """Why no rows of a reader can be had although there is calibration, or ""."""
    if fitter is None:
        return ""
    return next((why for reader in channel.readers if (why := unobservable(reader.match))), "")
