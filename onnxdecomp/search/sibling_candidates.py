"""Candidates of siblings: what could be done to layers that read one activation, all of them at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.shared import Shared, sibling_errors
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.quadratic_loss import Problem
from onnxdecomp.fitting.shared_factor import SiblingProblem
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.siblings import Siblings
from onnxdecomp.search.candidates import (
    NOTHING_CHEAPER,
    REDUCTIONS,
    Candidate,
    Outline,
    What,
    beside_weight,
    dense_cost,
    outlined,
    posed_for,
)
from onnxdecomp.search.layer_errors import foreseen, reason_for
from onnxdecomp.search.plan import cost_after_first, cost_of
from onnxdecomp.search.sensitivity import Effect

_FEW = 3
"""Siblings of which all parts are weighed."""


@dataclass(frozen=True, eq=False)
class SiblingOutlines:
    """What could be put in the place of siblings, at ranks of rising cost, all below theirs together.

    Attributes:
        places: The layers, as places in the list of matches.
        ranks: Of their first factor.
        outlines: At each rank those of the layers; the first bears the cost of what they have in common.
    """

    places: tuple[int, ...]
    ranks: tuple[int, ...]
    outlines: tuple[tuple[Outline, ...], ...]

    def paying(
        self, matched: Sequence[LayerMatch], takes: Mapping[int, float], parts: Mapping[int, float]
    ) -> tuple[SiblingOutlines, dict[int, float]]:
        """Those that are faster than the layers, and by `id` what each takes of the latency.

        Args:
            matched: All matches.
            takes: By `id` of a chain, the share of the latency that it takes as a whole.
            parts: By place, the share that the layer takes.
        """
        known: dict[int, float] = {}
        kept = []
        layers = [matched[place].layer for place in self.places]
        for rank, own in zip(self.ranks, self.outlines, strict=True):
            shares = [
                takes[id(one.chain)] * (_beside(one, layer) if index else 1.0)
                for index, (one, layer) in enumerate(zip(own, layers, strict=True))
            ]
            if sum(shares) < sum(parts[place] for place in self.places):
                kept.append((rank, own))
                known |= {id(one): share for one, share in zip(own, shares, strict=True)}
        left = replace(self, ranks=tuple(rank for rank, _ in kept), outlines=tuple(own for _, own in kept))
        return left, known

    def candidates(
        self,
        matched: Sequence[LayerMatch],
        problems: Sequence[Problem | None],
        weights: Sequence[float],
    ) -> list[list[Candidate]]:
        """Of each layer, the outlines with what they lose.

        Args:
            matched: All matches.
            problems: The quadratic of each of the layers; where one is None the weights are approximated.
            weights: What the relative loss of each of the layers counts.
        """
        layers = [matched[place].layer for place in self.places]
        known = [posed for posed in problems if posed is not None]
        if len(known) == len(layers):
            curve = SiblingProblem(tuple(layers), tuple(known), tuple(weights)).curve(self.ranks)
        else:
            curve = sibling_errors(layers, self.ranks, weights)
        return [
            [
                Candidate(own[k], losses[k], group=self.places)
                for own, losses in zip(self.outlines, curve, strict=True)
            ]
            for k in range(len(layers))
        ]


@dataclass(eq=False)
class Relatives:
    """The groups of siblings of a model while its layers are weighed.

    Attributes:
        matched: All layers.
        kin: Which are siblings.
        asked: Whether groups are wanted.
        found: What could be done to each group, and to parts of it.
        problems: Of the layers in them that were seen so far, by place.
        effects: What their loss does to the output, likewise.
    """

    matched: Sequence[LayerMatch]
    kin: Siblings
    asked: bool
    found: list[SiblingOutlines]
    problems: dict[int, Problem | None] = field(default_factory=dict)
    effects: dict[int, Effect] = field(default_factory=dict)

    @staticmethod
    def of(
        matched: Sequence[LayerMatch],
        kin: Siblings,
        reasons: Sequence[str],
        methods: Sequence[str],
        multiple: Callable[[Layer], int],
        what: What,
    ) -> Relatives:
        """The groups of those layers that no reason keeps; the rest as for `sibling_outlines`."""
        free = [not reason for reason in reasons]
        found = sibling_outlines(matched, kin, free, methods, multiple=multiple, what=what)
        return Relatives(matched, kin, Shared.name in methods, found)

    def outlines(self, place: int) -> list[Outline]:
        """What could be done to a layer together with others, each chain once."""
        own = [
            outlines[group.places.index(place)]
            for group in self.found
            if place in group.places
            for outlines in group.outlines
        ]
        return list({id(option.chain): option for option in own}.values())

    def keep_paying(self, takes: Mapping[int, float], parts: Mapping[int, float]) -> dict[int, float]:
        """Leave what is faster than the layers, as `SiblingOutlines.paying` says."""
        shares: dict[int, float] = {}
        left = []
        for group in self.found:
            if not set(group.places) <= set(parts):
                continue
            paying, known = group.paying(self.matched, takes, parts)
            shares |= known
            left += [paying] if paying.ranks else []
        self.found = left
        return shares

    def explain(self, options: Sequence[Sequence[Outline]], reasons: list[str]) -> None:
        """Put right why layers stay that nothing is done to alone."""
        for place, own in enumerate(options):
            if self.outlines(place):
                reasons[place] = ""
            elif self.asked and not own and reasons[place] == NOTHING_CHEAPER:
                reasons[place] = self.kin.refusals.get(place, NOTHING_CHEAPER)

    def see(self, place: int, moments: Moments | None, effect: Effect) -> None:
        """Keep what is needed of a layer that is weighed."""
        if self.outlines(place):
            self.effects[place] = effect
            self.problems[place] = None if moments is None else posed_for(self.matched[place], moments)

    def lose(self, place: int) -> None:
        """A layer that cannot be weighed is in no group, and its group is none."""
        self.found = [group for group in self.found if place not in group.places]

    def unweighed(self) -> dict[int, list[Candidate]]:
        """By place, what could be done to layers together with their siblings, as if it lost nothing."""
        found: dict[int, list[Candidate]] = {}
        for group in self.found:
            for place, own in zip(group.places, zip(*group.outlines, strict=True), strict=True):
                made = (Candidate(option, 0.0, group=group.places) for option in own)
                found.setdefault(place, []).extend(made)
        return found

    def candidates(self) -> dict[int, list[Candidate]]:
        """By place, what could be done to layers together with their siblings, once all were seen."""
        found: dict[int, list[Candidate]] = {}
        for group in tuple(self.found):
            try:
                problems = [self.problems[place] for place in group.places]
                own = group.candidates(self.matched, problems, self.weights(group))
            except Exception as error:
                if foreseen(error):
                    raise
                reason_for(error, self.matched[group.places[0]].layer.name)  # logs it
                self.found.remove(group)
                continue
            for place, candidates in zip(group.places, own, strict=True):
                found.setdefault(place, []).extend(candidates)
        self.problems.clear()
        return found

    def weights(self, group: SiblingOutlines) -> tuple[float, ...]:
        """What the loss of each layer of a group counts: what it does to the output, 1 in the mean."""
        slopes = [_slope(self.effects[place]) for place in group.places]
        if not all(slope > 0 for slope in slopes):
            return (1.0,) * len(slopes)
        mean = math.exp(sum(map(math.log, slopes)) / len(slopes))
        return tuple(float(f"{slope / mean:.3g}") for slope in slopes)

    def weighted(self, place: int, candidate: Candidate) -> Candidate:
        """A candidate of a layer that says what its loss counts."""
        group = next(group for group in self.found if group.places == candidate.group)
        method = Shared(self.weights(group)[group.places.index(place)])
        return replace(candidate, outline=replace(candidate.outline, method=method))

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The places of siblings that something could be done to together."""
        found = {place for group in self.found for place in group.places}
        families = (tuple(place for place in group if place in found) for group in self.kin.groups)
        return tuple(family for family in families if family)


def _slope(effect: Effect) -> float:
    """What the output loses for a loss of the layer, about; 0 where it is not known."""
    ratios = [error / loss for loss, error in effect.points if loss > 0 and error > 0]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0.0


def probing(match: LayerMatch) -> list[Outline]:
    """What tells the effect of a layer that nothing is done to alone."""
    method = Shared()
    ranks = dict.fromkeys(method.fraction_ranks(match.layer, share) for share in (0.25, 0.5, 0.75))
    return [outlined(match, method, own) for own in ranks]


def sibling_outlines(
    matched: Sequence[LayerMatch],
    kin: Siblings,
    open_to: Sequence[bool],
    methods: Sequence[str],
    *,
    multiple: Callable[[Layer], int] = lambda layer: 1,
    what: What = "macs",
) -> list[SiblingOutlines]:
    """What the methods can do to groups of the matches.

    Args:
        matched: The matches.
        kin: Their groups.
        open_to: Of each match, whether it may be decomposed.
        methods: Names, or ("auto",); those that take a single layer do nothing here.
        multiple: What ranks of a layer are multiples of.
        what: The cost along which they are laid out.
    """
    if tuple(methods) != ("auto",) and Shared.name not in methods:
        return []
    found = []
    for group in kin.groups:
        places = tuple(place for place in group if open_to[place])
        if len(places) > 1:
            found += _outlined(matched, places, multiple(matched[places[0]].layer), what)
    return found


def _outlined(
    matched: Sequence[LayerMatch], places: tuple[int, ...], multiple: int, what: What
) -> list[SiblingOutlines]:
    """Of siblings, and of parts of them: some may better stay as they are, or have a chain of their own."""
    layers = {place: matched[place].layer for place in places}
    once, twice = (
        sum(getattr(one.cost, what) for one in _together(layers, rank, _chains(layers, rank)))
        for rank in (1, 2)
    )
    dense = {place: getattr(dense_cost(layer), what) for place, layer in layers.items()}
    beside = sum(getattr(beside_weight(layer), what) for layer in layers.values())
    chains: dict[int, dict[int, Chain]] = {}
    for reduction in reversed(REDUCTIONS):
        # What they cost is linear in the rank.
        wanted = beside + (sum(dense.values()) - beside) / reduction
        rank = int((wanted - once) // max(1, twice - once)) + 1
        rank = min(rank, layers[places[0]].inputs) // multiple * multiple
        if rank >= 1:
            chains[rank] = _chains(layers, rank)
    found = []
    for part in _parts(places):
        own = {place: layers[place] for place in part}
        kept = {}
        for rank, at in chains.items():
            outlines = _together(own, rank, at)
            possible = all(matched[p].adapter.obstacle(at[p], own[p]) is None for p in part)
            if possible and sum(getattr(o.cost, what) for o in outlines) < sum(dense[p] for p in part):
                kept[rank] = outlines
        found += [SiblingOutlines(part, tuple(kept), tuple(kept.values()))] if kept else []
    return found


def _parts(places: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All of them, and all parts of three; of more those without one."""
    sizes = range(len(places), 1 if len(places) <= _FEW else len(places) - 2, -1)
    return [part for size in sizes for part in itertools.combinations(places, size)]


def _chains(layers: Mapping[int, Layer], rank: int) -> dict[int, Chain]:
    return {place: outline(Shared(), layer, (rank,)) for place, layer in layers.items()}


def _together(layers: Mapping[int, Layer], rank: int, chains: Mapping[int, Chain]) -> tuple[Outline, ...]:
    """The chains of siblings, of which the first bears the cost of what they have in common."""
    found: list[Outline] = []
    for place, layer in layers.items():
        cost = (cost_after_first if found else cost_of)(chains[place], layer)
        found.append(Outline(Shared(), (rank,), chains[place], cost))
    return tuple(found)


def _beside(option: Outline, layer: Layer) -> float:
    """The share of a chain's latency that is not that of its first step.

    Between its share of the multiplications and of the nodes: the one is the latency of large chains, the
    other that of small ones. A whole plan is timed in the end.
    """
    return (option.cost.macs / max(1, cost_of(option.chain, layer).macs) + 0.5) / 2
