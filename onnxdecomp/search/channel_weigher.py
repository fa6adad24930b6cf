"""Weighing the channels between layers as soon as all that is needed for one of them is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from onnxdecomp.calibration.attention_scores import attention_samples, score_product
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.channels.channel import Channel
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.search.channel_profiles import (
    ChannelProfile,
    Halves,
    is_of_scores,
    weighed_channel,
    weighed_scores,
)
from onnxdecomp.search.kept_survey import KeptSurvey
from onnxdecomp.search.layer_errors import foreseen, reason_for
from onnxdecomp.search.sensitivity import Outputs

_NEAR = 4
"""Layers that are weighed between a channel's ends, up to which it is measured from where it begins."""


class ChannelWeigher:
    """Weighs channels as soon as all that read them have been observed.

    Attributes:
        readers: The places of the layers that have to be observed.
    """

    def __init__(
        self,
        model: ir.Model,
        matched: Sequence[LayerMatch],
        profiles: Sequence[ChannelProfile],
        kept: KeptSurvey,
    ) -> None:
        self._model, self._kept = model, kept
        place = {match.nodes[0]: place for place, match in enumerate(matched)}
        self._reads = {
            entry.channel: [place[reader.match.nodes[0]] for reader in entry.channel.readers]
            for entry in profiles
            if not entry.reason and entry.channel.readers
        }
        self._profiles = {entry.channel: entry for entry in profiles}
        self.readers = {reader for own in self._reads.values() for reader in own}
        self._seen: dict[int, Halves | None] = {}

    @property
    def profiles(self) -> tuple[ChannelProfile, ...]:
        """One for each of the channels."""
        return tuple(self._profiles.values())

    def take_scores(self, outputs: Outputs, calibration: Calibration) -> None:
        """Weigh the channels that end in products of queries and keys, all in one walk over the inputs."""
        asked = [entry for entry in self._profiles.values() if is_of_scores(entry)]
        if not asked or calibration.synthetic:
            reason = "no calibration inputs show its queries and keys"
            self._profiles |= {e.channel: replace(e, levels=e.levels[:1], reason=reason) for e in asked}
            return
        products = [score_product(entry.channel) for entry in asked]
        known = [product for product in products if not isinstance(product, str)]
        for entry, samples in zip(asked, attention_samples(self._model, known, calibration), strict=True):
            weigh = partial(weighed_scores, self._model, entry, samples, outputs, calibration)
            self._guarded(entry, partial(self._kept.channel, weigh, entry, outputs, ()))

    def give_up(self, reason: str) -> None:
        """Leave the channels whole that were not weighed yet."""
        asked = [self._profiles[channel] for channel in self._reads]
        asked += [entry for entry in self._profiles.values() if is_of_scores(entry)]
        self._profiles |= {e.channel: replace(e, levels=e.levels[:1], reason=reason) for e in asked}
        self._reads, self._seen = {}, {}

    def _guarded(self, entry: ChannelProfile, weigh: Callable[[], ChannelProfile]) -> None:
        """Weigh a channel; an error of ours is a reason to leave it whole."""
        try:
            entry = weigh()
        except Exception as error:
            if foreseen(error):
                raise
            entry = replace(entry, levels=entry.levels[:1], reason=reason_for(error, entry.channel.name))
        self._profiles[entry.channel] = entry

    def pending(self) -> set[ir.Node]:
        """The nodes of channels that are still to be weighed, and soon will be."""
        return {node for channel in self._reads if self._is_near(channel) for node in channel.nodes}

    def take(
        self,
        place: int,
        halves: Halves | None,
        outputs: Outputs,
        calibration: Calibration,
        pending: Collection[ir.Node],
    ) -> None:
        """Weigh the channels of which this layer is the last reader; `pending` as for `effect`."""
        self._seen[place] = halves
        for channel in [channel for channel, own in self._reads.items() if self._seen.keys() >= {*own}]:
            before = {*pending, *self.pending()} if self._is_near(channel) else None
            seen = [self._seen[reader] for reader in self._reads.pop(channel)]
            entry = self._profiles[channel]
            weigh = partial(weighed_channel, self._model, entry, seen, outputs, calibration, before)
            self._guarded(entry, partial(self._kept.channel, weigh, entry, outputs, before or ()))
        waited = {reader for own in self._reads.values() for reader in own}
        self._seen = {reader: own for reader, own in self._seen.items() if reader in waited}

    def _is_near(self, channel: Channel) -> bool:
        """Whether few layers stand between its ends: else no look could move on until it is weighed."""
        inside = channel.producers[0].match.place.path
        return not inside and len(channel.layers) <= _NEAR
