"""Layers that read one weight are decided together: it goes only if all of them let it go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnxdecomp.layers.tied_weights import Tie, share_of
from onnxdecomp.search.layer_profiles import LayerProfile, LayerProfiles


@dataclass(frozen=True)
class Pick:
    """What a plan may do with one layer.

    Attributes:
        place: The layer's place in the profiles.
        candidate: Which of its candidates, or None to keep it.
        stored: The numbers that the model then holds for it.
    """

    place: int
    candidate: int | None
    stored: int


def ways(profiles: LayerProfiles) -> list[list[tuple[Pick, ...]]]:
    """What can be done with every layer, or with layers that share a weight together; first to keep them."""
    found: list[list[tuple[Pick, ...]]] = []
    for tie in profiles.ties:
        if len(tie.members) == 1 or profiles.reader(tie):
            found += [_alone(profiles, tie, place) for place in tie.members]
        else:
            found.append(list(_together(profiles, tie)))
    return found


def _alone(profiles: LayerProfiles, tie: Tie, place: int) -> list[tuple[Pick, ...]]:
    """A layer for itself; its weight stays where anything else reads it."""
    entry = profiles.layers[place]
    stays = tie.numbers[tie.members.index(place)] if profiles.reader(tie) else 0
    costs = [candidate.outline.cost.params for candidate in entry.candidates]
    kept = (Pick(place, None, entry.stored),)
    return [kept, *((Pick(place, index, stays + cost),) for index, cost in enumerate(costs))]


def _together(profiles: LayerProfiles, tie: Tie) -> Iterator[tuple[Pick, ...]]:
    """All kept, one decomposed beside the weight, or all decomposed alike, with factors in common."""
    entries = {place: profiles.layers[place] for place in tie.members}
    kept = {place: Pick(place, None, entry.stored) for place, entry in entries.items()}
    yield tuple(kept.values())
    for numbers, (place, entry) in zip(tie.numbers, entries.items(), strict=True):
        for index, candidate in enumerate(entry.candidates):
            alone = Pick(place, index, numbers + candidate.outline.cost.params)
            yield tuple({**kept, place: alone}.values())
    names = {place: _names(entry) for place, entry in entries.items()}
    for name in names[tie.members[0]]:
        if not all(name in own for own in names.values()):
            continue
        picks, seen = [], set()
        for member, (place, entry) in enumerate(entries.items()):
            outline = entry.candidates[names[place][name]].outline
            share = share_of(tie, member, entry.match, outline.method, outline.ranks)
            bias = entry.dense.params - int(entry.match.layer.weight.size)
            stored = bias if share.key in seen else outline.cost.params
            seen.add(share.key)
            picks.append(Pick(place, names[place][name], stored))
        yield tuple(picks)


def _names(entry: LayerProfile) -> dict[tuple[str, tuple[int, ...]], int]:
    outlines = [candidate.outline for candidate in entry.candidates]
    return {(outline.method.name, outline.ranks): index for index, outline in enumerate(outlines)}
