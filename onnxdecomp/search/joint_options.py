"""The joint problem of a search: what layers and channels cost and lose together.

Its variables are the decisions about layers (see `tied_layers.ways`) and the widths of channels. What a layer
costs depends on its decision and on the widths that it reads and makes: one table for up to three channels.
Of a layer at more of them (behind a Concat, before a Split) each further one adds what it changes alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxdecomp.search.channel_profiles import ChannelProfile
from onnxdecomp.search.elimination import Floats
from onnxdecomp.search.held import Held, Numbers, held
from onnxdecomp.search.joint_choice import Table
from onnxdecomp.search.layer_profiles import LayerProfiles
from onnxdecomp.search.narrowed_layer import NarrowedLayer
from onnxdecomp.search.neighbourhoods import ROUNDS
from onnxdecomp.search.tied_layers import Pick, ways

Way = Sequence[Pick]
Measure = Callable[[Held], Numbers]
"""How much of something there is in what is held of a layer."""

_TOGETHER = 3
"""Channels of a layer whose widths are combined."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """A table before anything is measured.

    Attributes:
        variables: A decision, and channels.
        ways: For each way of the decision what is held of its layers, [levels …].
        loss: [ways, levels …].
    """

    variables: tuple[int, ...]
    ways: tuple[tuple[Held, ...], ...]
    loss: Floats

    def table(self, measures: Sequence[Measure]) -> Table:
        cost = np.zeros((*self.loss.shape, len(measures)))
        for index, own in enumerate(self.ways):
            for number, measure in enumerate(measures):
                cost[index, ..., number] = sum(measure(one) for one in own)
        return Table(self.variables, cost, self.loss)


@dataclass(frozen=True, eq=False)
class JointOptions:
    """The variables of a search: decisions first, then the channels that can be cut.

    Attributes:
        profiles: What is chosen from.
        decisions: The ways of each; the first keeps its layers.
        channels: Those with more than one level.
        rounds: As for `allocate_jointly`.
    """

    profiles: LayerProfiles
    decisions: tuple[tuple[Way, ...], ...]
    channels: tuple[ChannelProfile, ...]
    rounds: int = ROUNDS

    @property
    def states(self) -> list[int]:
        """How many ways and levels there are."""
        return [len(own) for own in (*self.decisions, *(entry.levels for entry in self.channels))]

    def tables(self, measures: Sequence[Measure]) -> list[Table]:
        """What states cost, measure by measure, and lose."""
        first, count = len(self.decisions), len(measures)
        found = [piece.table(measures) for piece in self._pieces]
        for index, entry in enumerate(self.channels):
            losses = np.array(entry.losses())
            found.append(Table((first + index,), np.zeros((len(losses), count)), losses))
        for one, other in itertools.combinations(range(len(self.channels)), 2):
            # Of channels with units in common only one can be cut.
            if _overlap(self.channels[one], self.channels[other]):
                loss = np.zeros((len(self.channels[one].levels), len(self.channels[other].levels)))
                loss[1:, 1:] = np.inf
                found.append(Table((first + one, first + other), np.zeros((*loss.shape, count)), loss))
        return found

    def as_it_is(self, measure: Measure) -> float:
        """What all layers have where nothing is done to them."""
        return sum(
            float(sum(measure(held(self.profiles.layers[p.place], p)) for p in own[0]))
            for own in self.decisions
        )

    def picked(self, choice: Sequence[int]) -> tuple[list[Pick], dict[ChannelProfile, int]]:
        """What a choice says of layers, and the levels of channels."""
        count = len(self.decisions)
        picks = [p for own, at in zip(self.decisions, choice[:count], strict=True) for p in own[at]]
        return picks, dict(zip(self.channels, choice[count:], strict=False))

    def exactly(self, pick: Pick, levels: Mapping[ChannelProfile, int]) -> Held:
        """What is held of a layer as it is picked, at these levels of channels."""
        layer = self.narrowed(pick.place)
        return layer.exactly(pick, [levels.get(entry, 0) for entry in layer.channels])

    def narrowed(self, place: int) -> NarrowedLayer:
        """A layer at all levels of its channels, the one that has most of its rows first."""
        return self._narrowed[place]

    @cached_property
    def _narrowed(self) -> list[NarrowedLayer]:
        found = []
        for place, entry in enumerate(self.profiles.layers):
            own = [channel for channel in self.channels if place in channel.extents]
            own.sort(key=lambda channel: -channel.extents[place].outputs)
            found.append(NarrowedLayer(entry, place, tuple(own)))
        return found

    @cached_property
    def _pieces(self) -> list[_Piece]:
        return [piece for variable in range(len(self.decisions)) for piece in self._decision(variable)]

    def _decision(self, variable: int) -> list[_Piece]:
        own = self.decisions[variable]
        losses = self._losses(own)
        if len(own[0]) > 1 or not self.narrowed(own[0][0].place).channels:
            # Layers that share a weight are at no channel that can be cut.
            ways = tuple(tuple(held(self.profiles.layers[p.place], p) for p in way) for way in own)
            return [_Piece((variable,), ways, losses)]
        layer = self.narrowed(own[0][0].place)
        picks = [pick for (pick,) in own]
        if len(layer.channels) <= _TOGETHER:
            return [self._together(variable, picks, losses, layer)]
        return self._piecewise(variable, picks, losses, layer)

    def _together(self, variable: int, picks: Sequence[Pick], losses: Floats, layer: NarrowedLayer) -> _Piece:
        loss = np.zeros((len(picks), *layer.shape))
        for index, pick in enumerate(picks):
            loss[index] = np.where(layer.takes(pick.candidate), 0.0, np.inf)
            loss[index].flat[0] = 0.0
        loss += losses.reshape(-1, *(1 for _ in layer.shape))
        variables = (variable, *(len(self.decisions) + self.channels.index(own) for own in layer.channels))
        return _Piece(variables, tuple((_finite(layer.held(pick)),) for pick in picks), loss)

    def _piecewise(
        self, variable: int, picks: Sequence[Pick], losses: Floats, layer: NarrowedLayer
    ) -> list[_Piece]:
        """A piece with the first channel and each of the others; they add up to what is held."""
        made, *others = layer.channels
        extents, whole = [own.extents[layer.place] for own in others], layer.entry.match.layer
        shares = [max(own.inputs / whole.inputs, own.outputs / whole.outputs) for own in extents]
        shares = [share / max(1.0, sum(shares)) for share in shares]
        base = self._together(variable, picks, losses, replace(layer, channels=(made,)))
        left = 1 - sum(shares)
        found = [replace(base, ways=tuple((_combined(one, left),) for (one,) in base.ways))]
        for other, share in zip(others, shares, strict=True):
            both = self._together(variable, picks, 0 * losses, replace(layer, channels=(made, other)))
            ways = tuple(
                (_combined(two, 1.0, one, share - 1),)
                for (two,), (one,) in zip(both.ways, base.ways, strict=True)
            )
            found.append(replace(both, ways=ways))
        return found

    def _losses(self, own: Sequence[Way]) -> Floats:
        picked = [
            [(self.profiles.layers[p.place], p.candidate) for p in way if p.candidate is not None]
            for way in own
        ]
        return np.array([sum(entry.losses()[at] for entry, at in way) for way in picked], np.float64)


def joint_options(profiles: LayerProfiles) -> JointOptions:
    """The variables of all layers, and of the channels that can be cut."""
    channels = tuple(entry for entry in profiles.channels if len(entry.levels) > 1)
    return JointOptions(profiles, tuple(tuple(own) for own in ways(profiles)), channels)


def _finite(found: Held) -> Held:
    """Zeros for what cannot be had anyway."""
    macs, stored, part = (np.nan_to_num(values) for values in (found.macs, found.stored, found.part))
    return replace(found, macs=macs, stored=stored, part=part)


def _combined(one: Held, times: float, other: Held | None = None, weight: float = 0.0) -> Held:
    """The sum of what is held times these numbers, at least 0; `other` has no axis of the last channel."""

    def sums(a: Numbers, b: Numbers) -> Numbers:
        return np.maximum(times * np.asarray(a) + weight * np.asarray(b)[..., None], 0.0)

    if other is None:
        return replace(one, macs=times * one.macs, stored=times * one.stored, part=times * one.part)
    macs, stored = sums(one.macs, other.macs), sums(one.stored, other.stored)
    return replace(one, macs=macs, stored=stored, part=sums(one.part, other.part))


def _overlap(one: ChannelProfile, other: ChannelProfile) -> bool:
    """Whether the channels have units in common."""
    return any(
        a.match.nodes[0] is b.match.nodes[0] and bool(((a.units >= 0) & (b.units >= 0)).any())
        for a, b in itertools.product(one.channel.producers, other.channel.producers)
    )
