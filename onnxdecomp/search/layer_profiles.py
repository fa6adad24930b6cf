"""Layer profiles: everything that is weighed before a plan is made, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import onnx_ir as ir

from onnxdecomp.calibration.reachability import unreached
from onnxdecomp.calibration.statistics import (
    Calibration,
    hasty,
    observe_unchanged,
    packs,
    parted,
    surveyed,
    unobservable,
)
from onnxdecomp.channels.channel import Channel
from onnxdecomp.errors import DefectError, ModelError
from onnxdecomp.fitting.moments import Moments, merged
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.siblings import siblings
from onnxdecomp.layers.tied_weights import Tie, ties
from onnxdecomp.runtime.deadline import SURVEY, Deadline, passed
from onnxdecomp.search.candidates import (
    Candidate,
    Outline,
    candidates,
    dense_cost,
    probes,
)
from onnxdecomp.search.channel_profiles import (
    ChannelProfile,
    Halves,
    narrower,
    unweighed,
    with_times,
)
from onnxdecomp.search.channel_weigher import ChannelWeigher
from onnxdecomp.search.kept_survey import KeptSurvey
from onnxdecomp.search.latency_model import Stopwatch, Timed
from onnxdecomp.search.layer_effect import effect
from onnxdecomp.search.layer_outlines import cost_kind, joined, layer_outlines, reason_of_error, weight_reader
from onnxdecomp.search.plan import Cost
from onnxdecomp.search.sample_work import SampleWork, sample_work
from onnxdecomp.search.scope import Scope, reasons_to_stay, untouchable
from onnxdecomp.search.sensitivity import Effect, Outputs, for_looks, original_outputs
from onnxdecomp.search.sibling_candidates import Relatives, probing
from onnxdecomp.search.stored_parameters import numbers_stored
from onnxdecomp.search.table_candidates import TableCandidates
from onnxdecomp.search.timed_outlines import time_outlines
from onnxdecomp.tasks.journal import Journal

Progress = Callable[[str, int, int], None]

_POINTS = 3
"""Candidates per layer whose effect on the output is measured."""

LATE = "the time limit came before it was weighed"
"""Why nothing is done to a layer or a channel that there was no time for."""


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """One layer, weighed.

    Attributes:
        match: The layer.
        dense: What it costs.
        candidates: What could be done to it; empty where nothing can.
        effect: What its loss does to the output.
        part: Its share of the model's latency, 0 where not measured.
        parts: Of each candidate, the share of the original model's latency that it would take.
        reason: Why nothing can be done to it.
        fixed: It was asked to stay as it is.
        stored: The numbers that the model holds for it, as `Tie` counts them.
    """

    match: LayerMatch
    dense: Cost
    candidates: tuple[Candidate, ...] = ()
    effect: Effect = field(default_factory=lambda: Effect(()))
    part: float = 0.0
    parts: tuple[float, ...] = ()
    reason: str = ""
    fixed: bool = False
    stored: int = 0

    def losses(self) -> list[float]:
        """Of each candidate, the squared relative error that it makes in the output."""
        return [self.effect.at(candidate.loss) for candidate in self.candidates]


@dataclass(frozen=True, eq=False)
class LayerProfiles:
    """All that was weighed.

    Attributes:
        layers: One entry per match.
        outputs: The original's outputs, for comparisons.
        work: What a calibration sample costs, and how many are enough.
        whole_ms: The latency of the original, simplified; 0 where it was not measured. Shares are of it.
        original_ms: The latency of the original as it came in, likewise.
        ties: Who reads which weight.
        groups: Siblings, as places in `layers`, that have candidates in common (see `Candidate.group`).
        notes: What a user should know of it.
        channels: The channels between layers that were asked for.
        beyond: What operators cost that are no layers.
        deadline: The run's, with shares of the time that was left when layers had been timed.
    """

    layers: tuple[LayerProfile, ...]
    outputs: Outputs
    work: SampleWork
    whole_ms: float = 0.0
    original_ms: float = 0.0
    ties: tuple[Tie, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()
    channels: tuple[ChannelProfile, ...] = ()
    beyond: Cost = field(default_factory=lambda: Cost(0, 0))
    deadline: Deadline | None = None

    @property
    def late(self) -> bool:
        """Whether the deadline came before all were weighed."""
        return LATE in {*(e.reason for e in self.layers), *(e.reason for e in self.channels)}

    def reader(self, tie: Tie) -> str:
        """Who keeps the weight in the model, whatever is done to its other readers; "" where nobody does."""
        return weight_reader(tie, {i: (self.layers[i].match, self.layers[i].candidates) for i in tie.members})


def profile_layers(
    model: ir.Model,
    matched: Sequence[LayerMatch],
    scope: Scope,
    calibration: Calibration,
    *,
    channels: Sequence[Channel] = (),
    stopwatch: Stopwatch | None = None,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
    journal: Journal | None = None,
    require: Callable[[LayerProfiles], object] = lambda known: None,
) -> LayerProfiles:
    """Weigh every layer of the model, which stays as it is.

    Args:
        model: Simplified and normalised, with activation shapes.
        matched: Its layers.
        scope: Which of them, and how.
        calibration: Inputs. Synthetic ones show what an error does to the output, but nothing is fitted
            to them.
        channels: Those whose widths are weighed, too.
        stopwatch: Measures the latency of outlines; those that take as long as the layer are dropped.
        progress: Called as the work goes on.
        deadline: What was not weighed by its share of the time that timing leaves stays as it is.
        journal: Keeps what is found out, for a survey of just this model, scope and calibration.
        require: Is told what could be done, with no loss known yet, and raises where that is not enough.
    """
    scope = scope.of_layers([match.layer for match in matched])
    report, dense = progress or (lambda what, done, total: None), [dense_cost(own.layer) for own in matched]
    idle = unreached(model, matched, calibration.feeds, batch=calibration.batch)
    reasons = reasons_to_stay(matched, dense, idle, scope)
    found_ties = ties(matched)
    related = Relatives.of(
        matched, siblings(matched, found_ties), reasons, scope.methods, scope.multiple_of, scope.what
    )
    options = layer_outlines(matched, reasons, scope)
    joint = joined(found_ties, matched, options, reasons, scope)
    barred = untouchable(matched, idle, found_ties, scope)
    asked = [
        unweighed(channel, matched, scope.cuts, _multiple(channel, scope), barred, scope.quantum)
        for channel in channels
    ]
    timed, takes, asked = _timed(stopwatch, model, matched, options, related, reasons, asked, report)
    related.explain(options, reasons)
    work, deadline = sample_work(model, matched, calibration), deadline and deadline.shared_anew()
    outputs, seen, fitting = _original(model, calibration, work, [*filter(None, options), *asked])
    stored, own_parts = numbers_stored(found_ties, matched, dense), {} if timed is None else timed.own
    found = [
        LayerProfile(s, c, reason=r, part=own_parts.get(at, 0.0), fixed=not scope.holds(s.layer), stored=n)
        for at, (s, c, r, n) in enumerate(zip(matched, dense, reasons, stored, strict=True))
    ]
    whole = LayerProfiles(
        (),
        outputs,
        work,
        *((0.0, 0.0) if timed is None else (timed.whole_ms, timed.original_ms)),
        found_ties,
        related.groups(),
        () if timed is None else timed.notes,
        tuple(asked),
        deadline=deadline,
    )
    require(replace(whole, layers=_unweighed(found, options, related, timed, takes)))
    todo = [index for index, own in enumerate(options) if own or related.outlines(index)]
    kept = KeptSurvey(journal)
    weigher = ChannelWeigher(model, matched, asked, kept)
    tables = TableCandidates.of(model, matched, found_ties, options, fitting)
    fitting = hasty(fitting, work.samples)  # what is weighed is only compared
    for index, halves in _moments(model, matched, sorted({*todo, *weigher.readers}), fitting, joint, kept):
        ahead = [later for later in todo if later >= index]
        if passed(deadline, SURVEY):
            _give_up(ahead, found, related, weigher)
            break
        pending = {node for later in ahead for node in matched[later].nodes}
        if index in ahead:
            match, alone = matched[index], options[index]
            report(f"weigh {match.layer.name}", len(todo) - len(ahead), len(todo))
            shares = None if timed is None else timed.parts.get(index)
            price = None if not alone or shares is None else (lambda o, own=shares[0]: takes[id(o)] / own)
            near = pending | weigher.pending()
            own, moments = alone or probing(match), _usable(halves)
            found_by = partial(_weighed, match, own, moments, scope, price, partial(tables.fitted, index))
            weigh = partial(_looked_at, found_by, model, match, seen, calibration, near)
            try:
                weighed, measured = kept.layer(weigh, own, seen, near)
                related.see(index, moments, measured)
            except Exception as error:
                found[index] = replace(found[index], reason=reason_of_error(error, match))
                related.lose(index)
            else:
                found[index] = _entry(found[index], weighed if alone else (), measured, shares, takes)
        weigher.take(index, halves, seen, fitting, pending)
    else:
        weigher.take_scores(seen, fitting)
        kept.end()
    _add_joint(found, related, takes)
    return replace(whole, layers=tuple(found), groups=related.groups(), channels=weigher.profiles)


def _multiple(channel: Channel, scope: Scope) -> int:
    """What the units of a channel are a multiple of, by the layers that make and read them."""
    ends = [*(own.match for own in channel.producers), *(own.match for own in channel.readers)]
    return scope.multiple_of(*(match.layer for match in ends)) if ends else scope.multiple


def _timed(
    stopwatch: Stopwatch | None,
    model: ir.Model,
    matched: Sequence[LayerMatch],
    options: list[list[Outline]],
    related: Relatives,
    reasons: list[str],
    asked: list[ChannelProfile],
    report: Progress,
) -> tuple[Timed | None, dict[int, float], list[ChannelProfile]]:
    """As `time_outlines`, and the channels with what narrower layers take; None where nothing is timed."""
    if stopwatch is None:
        return None, {}, asked
    report("time layers", 0, 0)
    smaller = narrower(asked, matched)
    timed, takes = time_outlines(stopwatch, model, matched, options, related, reasons, smaller)
    return timed, takes, with_times(asked, timed.narrower)


def _give_up(
    places: Sequence[int], found: list[LayerProfile], related: Relatives, weigher: ChannelWeigher
) -> None:
    """Leave what was not weighed by now as it is."""
    for place in places:
        found[place] = replace(found[place], reason=LATE)
        related.lose(place)
    weigher.give_up(LATE)


def _original(
    model: ir.Model, calibration: Calibration, work: SampleWork, weighed: Sequence[object]
) -> tuple[Outputs, Outputs, Calibration]:
    """The original's outputs to judge plans by, those to see what changes of each of these do, other inputs.

    To these others candidates are fitted: with as many features as rows a layer shows no loss at all on the
    inputs that it was fitted to, and in the output neither.
    """
    fitting, judging = parted(calibration)
    outputs = original_outputs(model, judging, work.macs)
    looks = for_looks(outputs, model, judging, work.macs, _POINTS * len(weighed), work.samples)
    return outputs, looks, surveyed(fitting, work.macs, work.samples)


def _add_joint(found: list[LayerProfile], related: Relatives, takes: Mapping[int, float]) -> None:
    """Add what could be done to layers together with their siblings."""
    for index, joint in related.candidates().items():
        # By the outlines as they were timed.
        parts = tuple(takes[id(candidate.outline)] for candidate in joint) if takes else ()
        weighted = (related.weighted(index, candidate) for candidate in joint)
        candidates = (*found[index].candidates, *weighted)
        found[index] = replace(found[index], candidates=candidates, parts=(*found[index].parts, *parts))


def _usable(halves: Halves | None) -> Moments | None:
    """The moments of all rows, where there are any that say something."""
    moments = None if halves is None else merged(*halves)
    return moments if moments is not None and moments.usable else None


def _unweighed(
    found: Sequence[LayerProfile],
    options: Sequence[Sequence[Outline]],
    related: Relatives,
    timed: Timed | None,
    takes: Mapping[int, float],
) -> tuple[LayerProfile, ...]:
    """The layers with all that could be done to them, as if nothing was lost by it."""
    joint = related.unweighed()
    return tuple(
        _entry(
            *(entry, [*(Candidate(option, 0.0) for option in own), *joint.get(place, ())], Effect(())),
            None if timed is None else timed.parts.get(place),
            takes,
        )
        for place, (entry, own) in enumerate(zip(found, options, strict=True))
    )


def _entry(
    entry: LayerProfile,
    weighed: Sequence[Candidate],
    measured: Effect,
    shares: tuple[float, tuple[float, ...]] | None,
    takes: Mapping[int, float],
) -> LayerProfile:
    """The layer with what was weighed of it."""
    if shares is not None:
        parts = tuple(takes[id(candidate.outline)] for candidate in weighed)
        entry = replace(entry, part=shares[0], parts=parts)
    return replace(entry, candidates=tuple(weighed), effect=measured)


def _weighed(
    match: LayerMatch,
    options: Sequence[Outline],
    moments: Moments | None,
    scope: Scope,
    price: Callable[[Outline], float] | None,
    fitted: Callable[[Outline], Candidate | None],
) -> list[Candidate]:
    found = candidates(
        *(match, options, moments),
        what=cost_kind(match, scope),
        worse=scope.worse,
        seed=scope.seed,
        price=price,
        fitted=fitted,
    )
    return list(found)


def _looked_at(
    weigh: Callable[[], list[Candidate]],
    model: ir.Model,
    match: LayerMatch,
    outputs: Outputs,
    calibration: Calibration,
    pending: set[ir.Node],
) -> tuple[list[Candidate], Effect]:
    """A layer's candidates, and what they do to the output."""
    weighed = weigh()
    return weighed, _measured(model, match, weighed, outputs, calibration, pending)


def _measured(
    model: ir.Model,
    match: LayerMatch,
    weighed: Sequence[Candidate],
    outputs: Outputs,
    calibration: Calibration,
    pending: set[ir.Node],
) -> Effect:
    """What the layer's candidates do to the output. The original runs on these inputs, so they must, too."""
    try:
        return effect(model, match, probes(weighed, _POINTS), outputs, calibration, pending)
    except ModelError as error:
        raise DefectError(f"the model does not run with its chain: {error}") from error


def _moments(
    model: ir.Model,
    matched: Sequence[LayerMatch],
    todo: Sequence[int],
    calibration: Calibration,
    joint: Collection[int],
    kept: KeptSurvey,
) -> Iterator[tuple[int, Halves | None]]:
    """The moments of layers in their order, a pack at a time; None for those that cannot be observed."""

    def hidden(index: int) -> bool:
        return calibration.synthetic or index in joint or unobservable(matched[index]) is not None

    def observed() -> Iterator[Halves]:
        for pack in packs([matched[index] for index in todo if not hidden(index)]):
            yield from kept.moments(partial(observe_unchanged, model, pack, calibration))

    moments = observed()
    for index in todo:
        yield index, None if hidden(index) else next(moments)
