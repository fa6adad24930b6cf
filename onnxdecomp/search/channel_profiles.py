"""Channel profiles: what is weighed of the channels between layers, width by width."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.attention_scores import attention_samples, score_product
from onnxdecomp.calibration.channel_moments import moments_of_weights, reader_moments, says_something
from onnxdecomp.calibration.head_maps import (
    both_cut,
    head_groups,
    score_losses_at,
    score_maps,
    score_moments_of_weights,
    scores_cut,
    values_cut,
)
from onnxdecomp.calibration.statistics import Calibration, observe_unchanged, unobservable
from onnxdecomp.channels.channel import Channel
from onnxdecomp.channels.new_numbers import NewNumbers, new_numbers
from onnxdecomp.channels.parts import scores_and_values
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.elimination import ReaderMoments
from onnxdecomp.fitting.moments import Moments, needed
from onnxdecomp.fitting.refine_scores import AttentionSample
from onnxdecomp.fitting.rotate_heads import HeadBases, head_bases
from onnxdecomp.fitting.rotate_scores import score_losses
from onnxdecomp.fitting.select_units import select_units
from onnxdecomp.fitting.strengths import SHRINKAGES
from onnxdecomp.fitting.unit_order import UnitOrder, unit_order
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.recurrence import states_given
from onnxdecomp.ranks.rounding import round_to_multiple
from onnxdecomp.runtime.memory_budget import budget, gibibytes
from onnxdecomp.search.channel_costs import Extent, extents, narrowed_by
from onnxdecomp.search.channel_effect import cut_effect
from onnxdecomp.search.fixed_widths import methods_of, width_multiple
from onnxdecomp.search.sensitivity import Effect, Outputs

FRACTIONS = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""Of a channel's units, how many stay."""

TIMED = (0.5, 0.25)
"""Of a channel's units, with how many the layers around it are timed."""

_POINTS = 3
"""Widths per channel whose effect on the output is measured."""

_STRENGTHS = SHRINKAGES[1:-1]
"""Those that a reader is fitted with there."""

Halves = tuple[Moments, Moments | None]
"""Moments of rows that are fitted to and of held-out ones."""


@dataclass(frozen=True)
class Level:
    """A width of a channel.

    Attributes:
        kept: The units that stay.
        loss: E|y - V x|² over E|y|² of what reads it, the sum over the readers.
    """

    kept: int
    loss: float


@dataclass(frozen=True, eq=False)
class ChannelProfile:
    """One channel, weighed.

    Attributes:
        channel: The channel.
        method: What would cut it.
        extents: What part it has in layers, by their places in the list of matches.
        levels: Its widths, first the one that it has.
        effect: What its loss does to the output.
        reason: Why nothing can be done to it.
        times: Of layers, by place, the share of their time that is left at each of TIMED; not there where
            nothing was timed.
    """

    channel: Channel
    method: str
    extents: Mapping[int, Extent]
    levels: tuple[Level, ...]
    effect: Effect = field(default_factory=lambda: Effect(()))
    reason: str = ""
    times: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    def losses(self) -> list[float]:
        """Of each level, the squared relative error that it makes in the output."""
        return [self.effect.at(level.loss) for level in self.levels]


def widths(channel: Channel, multiple: int, quantum: int = 1) -> list[int]:
    """How many units may stay: all, and some fractions in multiples, equally many of each block.

    Args:
        channel: The channel.
        multiple, quantum: See `width_multiple`.
    """
    size = channel.width // channel.blocks
    multiple = width_multiple(channel, multiple, quantum)
    each = [
        round_to_multiple(max(channel.fewest, round(share * size)), multiple, size) for share in FRACTIONS
    ]
    return [one * channel.blocks for one in dict.fromkeys((size, *each))]


def unweighed(
    channel: Channel,
    matched: Sequence[LayerMatch],
    methods: Collection[str],
    multiple: int,
    barred: Mapping[int, str],
    quantum: int = 1,
) -> ChannelProfile:
    """The channel with its widths.

    Args:
        channel: The channel.
        matched: The layers.
        methods: That may cut it.
        multiple, quantum: See `width_multiple`.
        barred: Layers that no cut may change, with the reason.
    """
    method = next((name for name in methods_of(channel) if name in methods), "")
    place = {(match.layer.graph, match.layer.name): place for place, match in enumerate(matched)}
    own = {place[key]: extent for key, extent in extents(channel, matched).items()}
    reason = next((barred[place] for place in own if place in barred), "") or _refusal(channel, method)
    kept = [channel.width] if reason else widths(channel, multiple, quantum)
    if len(kept) == 1 and not reason:
        reason = f"fewer units are no multiple of {multiple}"
    return ChannelProfile(channel, method, own, tuple(Level(width, 0.0) for width in kept), reason=reason)


def narrower(profiles: Sequence[ChannelProfile], matched: Sequence[LayerMatch]) -> list[tuple[int, Layer]]:
    """The layers around channels that can be cut, by place, as they are at each of TIMED."""
    return [
        (place, narrowed_by(matched[place].layer, [(extent, share)]))
        for entry in profiles
        if not entry.reason
        for place, extent in entry.extents.items()
        for share in TIMED
    ]


def with_times(profiles: Sequence[ChannelProfile], ratios: Sequence[float]) -> list[ChannelProfile]:
    """The profiles with the times of `narrower` layers, each over that of the whole layer."""
    left = iter(ratios)
    return [
        entry
        if entry.reason
        else replace(
            entry, times={place: tuple(itertools.islice(left, len(TIMED))) for place in entry.extents}
        )
        for entry in profiles
    ]


def weighed_channel(
    model: ir.Model,
    entry: ChannelProfile,
    seen: Sequence[Halves | None],
    outputs: Outputs,
    calibration: Calibration,
    pending: Collection[ir.Node] | None,
) -> ChannelProfile:
    """A channel that layers read."""
    channel = entry.channel
    readers = _readers(channel, seen, _own(model, channel, calibration))
    if entry.method == "attention" and channel.products:
        losses, numbers = _of_both(
            model, channel, readers[0], calibration, [level.kept for level in entry.levels]
        )
    elif entry.method == "attention":
        losses, numbers = _of_values(channel, readers[0])
    else:
        order = unit_order(readers, channel.width, blocks=channel.blocks)
        losses = _honest(order)
        numbers = _selecting(channel, readers, order)
    levels = [Level(level.kept, float(losses[level.kept])) for level in entry.levels[1:]]
    return _measured(model, entry, levels, numbers, outputs, calibration, pending)


def is_of_scores(entry: ChannelProfile) -> bool:
    """Whether it can be cut, and ends in a product of queries and keys alone."""
    return not entry.reason and bool(entry.channel.products) and not entry.channel.readers


def _of_values(channel: Channel, reader: ReaderMoments) -> tuple[Array, Callable[[int], NewNumbers]]:
    """What each number of units of values loses, and what is left then."""
    bases = head_bases(reader, head_groups(channel, reader))
    losses = np.repeat(_honest(bases), channel.blocks)[channel.blocks - 1 :]
    return losses, partial(values_cut, channel, reader, bases=bases)


def _of_both(
    model: ir.Model,
    channel: Channel,
    reader: ReaderMoments,
    calibration: Calibration,
    widths: Sequence[int],
) -> tuple[Array, Callable[[int], NewNumbers]]:
    """The same of queries, keys and values in heads of one size."""
    parts = scores_and_values(channel)
    assert parts is not None  # see `unrotatable`
    scores, values = parts
    product = score_product(scores)
    assert not isinstance(product, str)
    (samples,) = attention_samples(model, [product], calibration) if not calibration.synthetic else [[]]
    if samples:
        of_scores = score_losses_at(product, samples, [own // channel.blocks for own in widths])
    else:
        of_scores = score_losses(score_moments_of_weights(scores, product))
    of_values, left = _of_values(values, replace(reader, units=values.readers[0].units))

    def numbers(kept: int) -> NewNumbers:
        each = kept // channel.blocks
        own = each * scores.blocks
        maps = score_maps(scores, product, own, samples)
        cut = scores_cut(scores, product, own, maps)
        return both_cut(channel, kept, cut, left(each * values.blocks))

    sizes = np.arange(channel.width + 1) // channel.blocks
    return of_scores[sizes] + of_values[sizes * values.blocks], numbers


def _honest(curve: UnitOrder | HeadBases) -> Array:
    """The losses on held-out rows where there are such."""
    return curve.losses if curve.held_out is None else curve.held_out


def _selecting(
    channel: Channel, readers: Sequence[ReaderMoments], order: UnitOrder
) -> Callable[[int], NewNumbers]:
    """What is left at so many units; the strengths that held-out rows chose first are those of the others."""
    strengths: list[float] = []

    def selected(kept: int) -> NewNumbers:
        among = [one for one in _STRENGTHS if one in strengths] or _STRENGTHS
        found = select_units(
            readers, channel.width, kept, blocks=channel.blocks, order=order, shrinkages=among
        )
        strengths.extend(reader.shrinkage for reader in found.readers)
        return new_numbers(channel, found)

    return selected


def _measured(
    model: ir.Model,
    entry: ChannelProfile,
    levels: Sequence[Level],
    numbers: Callable[[int], NewNumbers],
    outputs: Outputs,
    calibration: Calibration,
    pending: Collection[ir.Node] | None,
) -> ChannelProfile:
    """The channel with its levels below the whole, and what some of them do to the output."""
    picks = sorted({round(k * (len(levels) - 1) / (_POINTS - 1)) for k in range(_POINTS)})
    tries = [(levels[pick].loss, numbers(levels[pick].kept)) for pick in picks]
    effect = cut_effect(model, entry.channel, tries, outputs, calibration, pending)
    return replace(entry, levels=(entry.levels[0], *levels), effect=effect)


def weighed_scores(
    model: ir.Model,
    entry: ChannelProfile,
    samples: Sequence[AttentionSample],
    outputs: Outputs,
    calibration: Calibration,
) -> ChannelProfile:
    """A channel that ends in a product of queries and keys."""
    channel = entry.channel
    product = score_product(channel)
    assert not isinstance(product, str)  # else it is not weighed
    sizes = [level.kept // channel.blocks for level in entry.levels]
    losses = score_losses_at(product, samples, sizes)

    def numbers(kept: int) -> NewNumbers:
        return scores_cut(channel, product, kept, score_maps(channel, product, kept, samples))

    levels = [Level(level.kept, float(losses[level.kept // channel.blocks])) for level in entry.levels[1:]]
    return _measured(model, entry, levels, numbers, outputs, calibration, None)


def _own(model: ir.Model, channel: Channel, calibration: Calibration) -> list[Halves]:
    """What the recurrences of a channel see; nothing where that says nothing."""
    matched = [reader.match for reader in channel.recurrences]
    if calibration.synthetic or not matched or any(unobservable(match) for match in matched):
        return []
    with states_given(model, matched):
        found = observe_unchanged(model, matched, calibration)
    return found if all(says_something(train) for train, _ in found) else []


def _readers(channel: Channel, seen: Sequence[Halves | None], own: Sequence[Halves]) -> list[ReaderMoments]:
    """What reads the channel as it was observed; by the weights alone where one of them was not."""
    known = [halves for halves in seen if halves is not None and halves[0].usable]
    if len(known) == len(seen):
        return reader_moments(channel, [*known, *own], centre=True)
    every = (*channel.readers, *channel.recurrences)
    alone = [(moments_of_weights(channel, reader), None) for reader in every]
    return reader_moments(channel, alone, centre=False)


def _refusal(channel: Channel, method: str) -> str:
    """Why no width of the channel can be weighed, a phrase for people; "" where it can."""
    if not method:
        return "no method that is named cuts it"
    size = sum(needed(reader.match.layer) for reader in channel.readers)
    if size > budget():
        return f"a fit of what reads it would take {gibibytes(size)} of memory"
    return ""
