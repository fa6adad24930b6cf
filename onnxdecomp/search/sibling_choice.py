"""Choosing for siblings: all of them get the first factor of one rank, or none has one in common.

Beside the variables of the layers each group has one of its own: at which rank it is decomposed, if it is. A
table for it and each of its layers says which of the layer's options go with that. Such a choice is a tree
around each group, for which the bounds of `joint_choice` are cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxdecomp.core.layer import Ranks
from onnxdecomp.decompositions.registry import JOINT
from onnxdecomp.search.joint_choice import Table, allocate_jointly
from onnxdecomp.search.knapsack import Allocation, Option, OutOfReach, allocate
from onnxdecomp.search.layer_profiles import LayerProfiles
from onnxdecomp.search.tied_layers import Pick


@dataclass(frozen=True)
class Agreement:
    """Items of which the same must be chosen.

    Attributes:
        items: Their numbers.
        modes: Of each option of each item what it goes with: 0, or how all of them are chosen.
        count: How many modes there are.
    """

    items: tuple[int, ...]
    modes: tuple[tuple[int, ...], ...]
    count: int


def agreed(profiles: LayerProfiles, decisions: Sequence[Sequence[Sequence[Pick]]]) -> list[Agreement]:
    """What the decisions about layers must agree on, so that groups of siblings are decomposed as a whole."""
    # Siblings share no weight with others: each is decided about alone.
    item = {own[0][0].place: index for index, own in enumerate(decisions) if len(own[0]) == 1}
    found = []
    for group in profiles.groups:
        ranks: dict[Ranks, int] = {}
        modes = []
        for place in group:
            own = []
            for (pick,) in decisions[item[place]]:
                shared = None if pick.candidate is None else _shared(profiles, place, pick.candidate)
                own.append(0 if shared is None else ranks.setdefault(shared, len(ranks) + 1))
            modes.append(tuple(own))
        found.append(Agreement(tuple(item[place] for place in group), tuple(modes), len(ranks) + 1))
    return found


def _shared(profiles: LayerProfiles, place: int, candidate: int) -> Ranks | None:
    """The ranks of a candidate that is one of all siblings."""
    outline = profiles.layers[place].candidates[candidate].outline
    return outline.ranks if outline.method.name in JOINT else None


def allocate_agreeing(
    items: Sequence[Sequence[Option]],
    agreements: Sequence[Agreement],
    limits: Sequence[float],
    *,
    fixed: Sequence[float],
) -> Allocation | OutOfReach:
    """One option per item, as `knapsack.allocate` chooses; items that must agree do."""
    if not agreements:
        return allocate(items, limits, fixed=fixed)
    tables = [
        Table(
            (index,),
            np.array([np.atleast_1d(option.cost) for option in own]).reshape(len(own), len(limits)),
            np.array([option.loss for option in own]),
        )
        for index, own in enumerate(items)
    ]
    for number, agreement in enumerate(agreements, len(items)):
        for index, modes in zip(agreement.items, agreement.modes, strict=True):
            together = np.arange(agreement.count)[:, None] == np.array(modes)
            free = np.zeros((*together.shape, len(limits)))
            tables.append(Table((number, index), free, np.where(together, 0.0, np.inf)))
    states = [*(len(own) for own in items), *(agreement.count for agreement in agreements)]
    found = allocate_jointly(states, tables, limits, fixed=fixed)
    if isinstance(found, OutOfReach):
        return found
    return replace(found, choice=found.choice[: len(items)])
