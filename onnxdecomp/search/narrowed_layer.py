"""What a layer and its candidates cost where channels around it are cut."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.decompositions.base import outline, refusal_of
from onnxdecomp.search.candidates import Candidate
from onnxdecomp.search.channel_costs import narrowed_by
from onnxdecomp.search.channel_profiles import TIMED, ChannelProfile
from onnxdecomp.search.elimination import Floats
from onnxdecomp.search.held import Held, held
from onnxdecomp.search.layer_profiles import LayerProfile
from onnxdecomp.search.plan import Cost, cost_after_first, cost_of
from onnxdecomp.search.tied_layers import Pick


@dataclass(frozen=True, eq=False)
class NarrowedLayer:
    """A layer at all levels of some channels that it is at.

    Chains have the ranks that the plan says, or full ones where these are fewer.

    Attributes:
        entry: The layer as it is.
        place: Its place among the profiles.
        channels: The channels.
    """

    entry: LayerProfile
    place: int
    channels: tuple[ChannelProfile, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """How many levels each of the channels has."""
        return tuple(len(own.levels) for own in self.channels)

    def held(self, pick: Pick) -> Held:
        """What is held of the layer as it is picked, [levels …] each.

        Dense layers are counted exactly, chains at some levels, and between these as if they were linear.
        """
        whole = held(self.entry, pick)
        params, macs = np.moveaxis(
            self._dense if pick.candidate is None else self._chains[..., pick.candidate, :], -1, 0
        )
        first = (0,) * len(self.channels)
        stored = pick.stored + (params - params[first])
        share = macs / max(float(macs[first]), 1.0)
        part = whole.part * (self._time_left if whole.kept else np.minimum(share, 1.0) ** self._power)
        return Held(self.entry, whole.kept, macs, stored, part)

    def exactly(self, pick: Pick, levels: Sequence[int]) -> Held:
        """What is held at these levels, counted."""
        if not any(levels):
            return held(self.entry, pick)
        found, at = self.held(pick), tuple(levels)
        macs, stored, part = (np.asarray(values)[at] for values in (found.macs, found.stored, found.part))
        if pick.candidate is not None:
            params, left = self._chain_cost(self.entry.candidates[pick.candidate], self._layer(levels))
            macs, stored = left, stored + params - self._chains[(*at, pick.candidate, 0)]
        return Held(self.entry, found.kept, float(macs), float(stored), float(part))

    def dense(self, levels: Sequence[int]) -> Cost:
        """What the layer itself costs at these levels."""
        params, macs = self._dense[tuple(levels)].tolist()
        return Cost(round(params), round(macs))

    def takes(self, candidate: int | None) -> bool:
        """Whether the candidate, or the layer as it is, can be had at every level."""
        return candidate is None or not np.isnan(self._chains[..., candidate, :]).any()

    @cached_property
    def _dense(self) -> Floats:
        """[levels …, (parameters, MACs)] of the layer itself."""
        costs = [
            cost_of(dense_chain(layer), layer)
            for layer in map(self._layer, itertools.product(*map(range, self.shape)))
        ]
        found = np.array([(cost.params, cost.macs) for cost in costs], np.float64)
        return found.reshape(*self.shape, 2)

    @cached_property
    def _chains(self) -> Floats:
        """[levels …, candidates, (parameters, MACs)]; NaN where a method does not take the layer."""
        kept = [np.array([level.kept for level in own.levels]) for own in self.channels]
        nodes = [sorted({0, len(own) // 2, len(own) - 1}) for own in kept]
        layers = map(self._layer, itertools.product(*nodes))
        costs = np.array(
            [[self._chain_cost(own, layer) for own in self.entry.candidates] for layer in layers], np.float64
        ).reshape(*map(len, nodes), len(self.entry.candidates), 2)
        for axis, (own, some) in enumerate(zip(kept, nodes, strict=True)):
            # Widths fall along the levels; np.interp wants them rising.
            weights = np.stack(
                [np.interp(own, own[some][::-1], one[::-1]) for one in np.eye(len(some))], axis=1
            )
            costs = np.moveaxis(np.tensordot(weights, costs, (1, axis)), 0, axis)
        return costs

    @cached_property
    def _time_left(self) -> Floats:
        """[levels …]: the share of its time that the layer itself takes."""
        found = np.ones(self.shape)
        for axis, own in enumerate(self.channels):
            left = [
                _time_left(own.times.get(self.place, ()), level.kept / own.channel.width)
                for level in own.levels
            ]
            found *= np.reshape(left, [-1 if k == axis else 1 for k in range(found.ndim)])
        return found

    @cached_property
    def _power(self) -> Floats:
        """[levels …]: chains gain from fewer MACs as the layer does, by this power of their share."""
        share = self._dense[..., 1] / max(float(self._dense[..., 1].flat[0]), 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            power = np.log(self._time_left) / np.log(share)
        return np.where((share > 0) & (share < 1), np.clip(power, 0.0, 1.0), 0.0)

    def _chain_cost(self, candidate: Candidate, layer: Layer) -> tuple[float, float]:
        option = candidate.outline
        if refusal_of(option.method, layer) is not None:
            return math.nan, math.nan
        full = option.method.full_ranks(layer)
        if len(full) != len(option.ranks):
            return math.nan, math.nan
        chain = outline(option.method, layer, tuple(map(min, option.ranks, full)))
        # Of siblings the first bears the cost of the factor that they have in common.
        after = candidate.group and candidate.group[0] != self.place
        cost = (cost_after_first if after else cost_of)(chain, layer)
        return float(cost.params), float(cost.macs)

    def _layer(self, levels: Sequence[int]) -> Layer:
        return narrowed_by(
            self.entry.match.layer,
            [
                (own.extents[self.place], own.levels[level].kept / own.channel.width)
                for own, level in zip(self.channels, levels, strict=True)
            ],
        )


def _time_left(timed: Sequence[float], width: float) -> float:
    """The share of a layer's time that is left at a share of a channel's units; 1 where nothing was timed."""
    if not timed or width >= 1:
        return 1.0
    shares = np.minimum.accumulate([1.0, *timed])
    least = shares[-1] / 2  # at no units at all
    return float(np.interp(width, [0.0, *TIMED[::-1], 1.0], [least, *shares[::-1]]))
