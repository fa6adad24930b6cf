"""What a run's record holds of a search: what was weighed, and how the plan came about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxdecomp.core.json_values import Json
from onnxdecomp.search.channel_profiles import ChannelProfile
from onnxdecomp.search.fixed_ranks import method_options
from onnxdecomp.search.joint_frontier import joint_frontier
from onnxdecomp.search.joint_options import JointOptions, joint_options
from onnxdecomp.search.layer_profiles import LayerProfile, LayerProfiles
from onnxdecomp.search.pareto import Point, frontier
from onnxdecomp.search.plan import Choice, Cut
from onnxdecomp.search.select import Chosen
from onnxdecomp.search.tied_layers import Pick


@dataclass(frozen=True)
class Expected:
    """What is expected of the plan; see `Chosen`."""

    loss: float
    bound: float
    gap: float
    latency: float | None


@dataclass(frozen=True)
class Measured:
    """What was measured of the plan; its latency is over the original's."""

    latency: float | None


@dataclass(frozen=True)
class CandidateRecord:
    """A candidate of a layer.

    Attributes:
        method, options, ranks: The candidate.
        params, macs: What its chain costs.
        loss: Of the layer's own output, a squared relative error.
        output_loss: The same of the network's output.
        part: Its share of the original's latency; None where nothing was timed.
        group: The names of the layers that it is done to together; None for one alone.
    """

    method: str
    options: Mapping[str, Json]
    ranks: tuple[int, ...]
    params: int
    macs: int
    loss: float
    output_loss: float
    part: float | None
    group: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LayerCandidates:
    """What was weighed for a layer.

    Attributes:
        layer, graph: The layer.
        macs: Its multiply-accumulates.
        part: Its share of the original's latency; None where nothing was timed.
        effect: Points (loss of the layer, of the network's output), both squared relative errors.
        candidates: What could be done to it.
    """

    layer: str
    graph: str
    macs: int
    part: float | None
    effect: tuple[tuple[float, float], ...]
    candidates: tuple[CandidateRecord, ...]


@dataclass(frozen=True)
class LevelRecord:
    """A width of a channel.

    Attributes:
        kept: The units that stay.
        params, macs: What the layers around it cost then, nothing else done to them.
        loss: Of what reads it, squared relative errors added up.
        output_loss: The squared relative error of the network's output.
        part: The layers' share of the original's latency; None where nothing was timed.
    """

    kept: int
    params: int
    macs: int
    loss: float
    output_loss: float
    part: float | None


@dataclass(frozen=True)
class ChannelLevels:
    """What was weighed for a channel.

    Attributes:
        channel: Its name.
        width: Its units.
        effect: Points (loss of the channel, of the network's output).
        levels: Its widths, first the one that it has.
    """

    channel: str
    width: int
    effect: tuple[tuple[float, float], ...]
    levels: tuple[LevelRecord, ...]


@dataclass(frozen=True)
class SearchRecord:
    """A search.

    Attributes:
        expected, measured: Of the plan that was chosen.
        original_ms: Latency of the original in ms; None where nothing was timed.
        weighed: Candidates of all layers.
        tries: Plans that were carried out and measured, with what was expected and found.
        frontier: What speed costs which loss.
        layers: Those that have candidates.
        channels: Those that can be cut; None where none was asked for.
        limited: A time limit ended it; None where none did.
    """

    expected: Expected
    measured: Measured
    original_ms: float | None
    weighed: int
    tries: tuple[Mapping[str, float | None], ...]
    frontier: tuple[Point, ...]
    layers: tuple[LayerCandidates, ...]
    channels: tuple[ChannelLevels, ...] | None = None
    limited: bool | None = None


def chosen_candidate(
    choice: Choice, layer: LayerCandidates, group: tuple[str, ...] | None
) -> CandidateRecord | None:
    """The candidate that a plan has for a layer; `group` are the siblings that it is decomposed with.

    Behind cuts ranks are at most those of what is left: then it is the smallest candidate that comes to them.
    """
    own = [c for c in layer.candidates if (c.method, c.group) == (choice.method, group)]
    exact = next((candidate for candidate in own if candidate.ranks == choice.ranks), None)
    if exact is not None or not choice.narrowed:
        return exact
    enough = [
        candidate
        for candidate in own
        if len(candidate.ranks) == len(choice.ranks)
        and all(rank >= left for rank, left in zip(candidate.ranks, choice.ranks, strict=True))
    ]
    return min(enough, key=lambda candidate: candidate.params, default=None)


def level_of(cut: Cut, channels: Iterable[ChannelLevels]) -> LevelRecord | None:
    """The width that a plan has for a channel."""
    own = next((channel.levels for channel in channels if channel.channel == cut.channel), ())
    return next((level for level in own if level.kept == cut.kept), None)


def search_record(
    weighed: LayerProfiles, chosen: Chosen, tries: Sequence[Mapping[str, float | None]]
) -> SearchRecord:
    """The record of a search that has chosen a plan."""
    names = [entry.match.layer.name for entry in weighed.layers]
    options = joint_options(weighed)
    return SearchRecord(
        Expected(chosen.loss, chosen.bound, chosen.gap, chosen.latency),
        Measured(chosen.measured),
        weighed.original_ms or None,
        sum(len(entry.candidates) for entry in weighed.layers),
        tuple(tries),
        joint_frontier(options) if options.channels else frontier(weighed),
        tuple(_layer(entry, names) for entry in weighed.layers if entry.candidates),
        _channels(options),
    )


def _channels(options: JointOptions) -> tuple[ChannelLevels, ...] | None:
    found = tuple(
        ChannelLevels(
            entry.channel.name,
            entry.channel.width,
            entry.effect.points,
            tuple(_level(options, entry, index) for index in range(len(entry.levels))),
        )
        for entry in options.channels
    )
    return found if options.profiles.channels else None


def _level(options: JointOptions, entry: ChannelProfile, index: int) -> LevelRecord:
    layers = [options.profiles.layers[place] for place in entry.extents]
    around = [
        options.exactly(Pick(place, None, layer.dense.params), {entry: index})
        for place, layer in zip(entry.extents, layers, strict=True)
    ]
    level, timed = entry.levels[index], any(layer.part for layer in layers)
    return LevelRecord(
        level.kept,
        round(sum(float(one.stored) for one in around)),
        round(sum(float(one.macs) for one in around)),
        level.loss,
        entry.losses()[index],
        sum(float(one.part) for one in around) if timed else None,
    )


def _layer(entry: LayerProfile, names: Sequence[str]) -> LayerCandidates:
    parts = entry.parts or (None,) * len(entry.candidates)
    return LayerCandidates(
        entry.match.layer.name,
        entry.match.layer.graph,
        entry.dense.macs,
        entry.part or None,
        entry.effect.points,
        tuple(
            CandidateRecord(
                candidate.outline.method.name,
                method_options(candidate.outline.method),
                candidate.outline.ranks,
                candidate.outline.cost.params,
                candidate.outline.cost.macs,
                candidate.loss,
                loss,
                part,
                tuple(names[place] for place in candidate.group) or None,
            )
            for candidate, loss, part in zip(entry.candidates, entry.losses(), parts, strict=True)
        ),
    )
