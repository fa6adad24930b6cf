"""What a layer and its candidates cost where channels around it are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer, Ranks, narrowed
from onnxdecomp.decompositions.base import refusal_of
from onnxdecomp.search.candidates import Candidate
from onnxdecomp.search.chain_costs import Form, chain_cost
from onnxdecomp.search.channel_costs import narrowed_by
from onnxdecomp.search.channel_profiles import TIMED, ChannelProfile
from onnxdecomp.search.elimination import Floats, Ints
from onnxdecomp.search.held import Held, Numbers, held
from onnxdecomp.search.layer_profiles import LayerProfile
from onnxdecomp.search.plan import Cost, cost_of
from onnxdecomp.search.tied_layers import Pick

Bools: TypeAlias = NDArray[np.bool_]

_EACH, _ALONG = 3, 5
"""Sizes that are counted: outputs and inputs, and where both go together."""


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

        Costs are counted at a few sizes of the layer, and linear along outputs and inputs between these, as
        those of the layer itself are, and those of chains until their ranks are full.
        """
        index = 0 if pick.candidate is None else 1 + pick.candidate
        params, macs = np.moveaxis(self._costs[..., index, :], -1, 0)
        dense = self._costs[..., 0, 1]
        first = (0,) * len(self.channels)
        return _held(
            *(self.entry, pick, params - params[first], macs),
            macs / max(float(macs[first]), 1.0),
            dense / max(float(dense[first]), 1.0),
            self._time_left,
        )

    def exactly(self, pick: Pick, levels: Sequence[int]) -> Held:
        """What is held at these levels, counted."""
        if not any(levels):
            return held(self.entry, pick)
        whole, layer = self.entry.match.layer, self.layer(levels)
        params, macs = self._counted(pick.candidate, layer)
        before, full = self._counted(pick.candidate, whole)
        dense = self._counted(None, layer)[1] / max(self._counted(None, whole)[1], 1.0)
        time = math.prod(self._times(own)[level] for own, level in zip(self.channels, levels, strict=True))
        return _held(self.entry, pick, params - before, macs, macs / max(full, 1.0), dense, time)

    def layer(self, levels: Sequence[int]) -> Layer:
        """The layer at these levels, without its numbers."""
        shares = (
            own.levels[level].kept / own.channel.width
            for own, level in zip(self.channels, levels, strict=True)
        )
        extents = (own.extents[self.place] for own in self.channels)
        return narrowed_by(self.entry.match.layer, zip(extents, shares, strict=True))

    def takes(self, candidate: int | None) -> Bools:
        """[levels …]: where the candidate, or the layer as it is, can be had."""
        if candidate is None:
            return np.ones(self.shape, bool)
        return np.asarray(~np.isnan(self._costs[..., 1 + candidate, :]).any(axis=-1))

    @cached_property
    def _costs(self) -> Floats:
        """[levels …, the layer and candidates, (parameters, MACs)]; NaN where a method does not take it."""
        layer = self.entry.match.layer
        outputs, inputs = (self._sizes(side) for side in ("outputs", "inputs"))
        if (outputs * layer.inputs == inputs * layer.outputs).all():
            # As of a depthwise convolution: there are no other pairs of sizes.
            some = _nodes(inputs, _ALONG)
            along = np.array([self._count(one * layer.outputs // layer.inputs, one) for one in some])
            return _interpolated("...a,akn->...kn", [_weights(inputs, some)], along)
        rows, columns = _nodes(outputs, _EACH), _nodes(inputs, _EACH)
        counted = np.array([[self._count(one, other) for other in columns] for one in rows])
        weights = _weights(outputs, rows), _weights(inputs, columns)
        return _interpolated("...a,...b,abkn->...kn", weights, counted)

    def _sizes(self, side: Literal["outputs", "inputs"]) -> Ints:
        """[levels …]: the layer's outputs or inputs."""
        found = np.full(self.shape, getattr(self.entry.match.layer, side))
        for axis, own in enumerate(self.channels):
            whole = getattr(own.extents[self.place], side)
            gone = [whole - round(whole * level.kept / own.channel.width) for level in own.levels]
            found -= _along(gone, axis, len(self.shape)).astype(np.intp)
        return np.asarray(np.maximum(found, 1))

    def _count(self, outputs: int, inputs: int) -> list[tuple[float, float]]:
        """Parameters and MACs of the layer and its candidates at these sizes."""
        layer = narrowed(self.entry.match.layer, int(outputs), int(inputs))
        # Of one method's candidates all have the same full ranks.
        methods = {id(own.outline.method): own.outline.method for own in self.entry.candidates}
        full = {
            key: None if refusal_of(method, layer) else method.full_ranks(layer)
            for key, method in methods.items()
        }
        form = Form.of(layer)
        chains = [self._chain_cost(own, form, full[id(own.outline.method)]) for own in self.entry.candidates]
        return [_numbers(cost_of(dense_chain(layer), layer)), *chains]

    def _counted(self, candidate: int | None, layer: Layer) -> tuple[float, float]:
        """Parameters and MACs of a candidate, or of the layer itself, where it has become this layer."""
        if candidate is None:
            return _numbers(cost_of(dense_chain(layer), layer))
        method = (own := self.entry.candidates[candidate]).outline.method
        full = None if refusal_of(method, layer) else method.full_ranks(layer)
        return self._chain_cost(own, Form.of(layer), full)

    def _chain_cost(self, candidate: Candidate, form: Form, full: Ranks | None) -> tuple[float, float]:
        option = candidate.outline
        if full is not None and candidate.group:
            # What siblings have in common has more ranks than one of them may have.
            full = (form.layer.inputs,)
        if full is None or len(full) != len(option.ranks):
            return math.nan, math.nan
        # Of siblings the first bears the cost of the factor that they have in common.
        after = bool(candidate.group) and candidate.group[0] != self.place
        ranks = tuple(map(min, option.ranks, full))
        return _numbers(chain_cost(option.method, form, ranks, after_first=after))

    @cached_property
    def _time_left(self) -> Floats:
        """[levels …]: the share of its time that the layer itself takes."""
        found = np.ones(self.shape)
        for axis, own in enumerate(self.channels):
            found *= _along(self._times(own), axis, found.ndim)
        return found

    def _times(self, channel: ChannelProfile) -> list[float]:
        """The share of the layer's time that is left at each level of a channel."""
        timed, width = channel.times.get(self.place, ()), channel.channel.width
        if not timed:
            return [1.0] * len(channel.levels)
        shares = np.minimum.accumulate([1.0, *timed])[::-1]
        sizes, left = [0.0, *TIMED[::-1], 1.0], [shares[0] / 2, *shares]  # some time at no units at all
        return [float(np.interp(level.kept / width, sizes, left)) for level in channel.levels]


def _held(
    entry: LayerProfile,
    pick: Pick,
    more: Numbers,
    macs: Numbers,
    share: Numbers,
    dense: Numbers,
    time: Numbers,
) -> Held:
    """What is held of a narrower layer.

    Args:
        entry: The layer as it is.
        pick: What is done to it.
        more: Parameters, beside those that the pick has.
        macs, share: Multiply-accumulates, and over those at full size.
        dense, time: Of the layer itself, the shares of its MACs and of its time that are left. A chain gains
            by fewer MACs as the layer does.
    """
    whole = held(entry, pick)
    if whole.kept:
        return Held(entry, True, macs, pick.stored + more, whole.part * time)
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.nan_to_num(np.log(time) / np.log(dense), nan=0.0, posinf=1.0, neginf=0.0)
    gained = np.minimum(share, 1.0) ** np.clip(power, 0.0, 1.0)
    return Held(entry, False, macs, pick.stored + more, whole.part * gained)


def _numbers(cost: Cost) -> tuple[float, float]:
    return float(cost.params), float(cost.macs)


def _along(values: Sequence[float], axis: int, axes: int) -> Floats:
    return np.reshape(np.asarray(values, np.float64), [-1 if k == axis else 1 for k in range(axes)])


def _nodes(sizes: Ints, most: int) -> Ints:
    """Some of the sizes, the least and the largest among them, rising."""
    found = np.unique(sizes)
    return np.asarray(found[np.unique(np.linspace(0, len(found) - 1, most).round().astype(int))])


def _interpolated(equation: str, weights: Sequence[Floats], counted: Floats) -> Floats:
    """The weighted sums of what was counted; NaN where something without a number has a part in them."""
    unknown = np.isnan(counted)
    values = np.einsum(equation, *weights, np.where(unknown, 0.0, counted), optimize=True)
    missing = np.einsum(equation, *weights, unknown.astype(np.float64), optimize=True)
    return np.where(missing > 0, np.nan, values)


def _weights(sizes: Ints, nodes: Ints) -> Floats:
    """[sizes …, nodes]: how much of each node there is in what is interpolated at the sizes."""
    return np.stack([np.interp(sizes, nodes, one) for one in np.eye(len(nodes))], axis=-1)
