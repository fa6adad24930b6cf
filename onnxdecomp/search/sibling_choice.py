"""Choosing for siblings: those that are decomposed together get the first factor of one rank, all of them.

Beside the variables of the layers each family of siblings has one of its own: which of them are decomposed
together, and at which rank. A table for it and each of the layers says which of the layer's options go with
that. Such a choice is a tree around each family, for which the bounds of `joint_choice` are cheap.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Ranks
from onnxdecomp.search.joint_choice import Table, allocate_jointly
from onnxdecomp.search.knapsack import Allocation, Option, OutOfReach, allocate
from onnxdecomp.search.layer_profiles import LayerProfiles
from onnxdecomp.search.tied_layers import Pick

Mode: TypeAlias = tuple[tuple[int, ...], Ranks]
"""The places of the layers that are decomposed together, and the ranks."""


@dataclass(frozen=True)
class Agreement:
    """Items of which some are chosen together.

    Attributes:
        modes: Of each option of each item, by the item's number, what it goes with; None: with nothing.
        members: By mode, the numbers of the items that are chosen together.
    """

    modes: Mapping[int, Sequence[Mode | None]]
    members: Mapping[Mode, Collection[int]]

    @property
    def count(self) -> int:
        """How many ways there are to choose, none of the modes among them."""
        return 1 + len(self.members)


def agreed(profiles: LayerProfiles, decisions: Sequence[Sequence[Sequence[Pick]]]) -> list[Agreement]:
    """What the decisions about layers must agree on, so that groups of siblings are decomposed as a whole."""
    # Siblings share no weight with others: each is decided about alone.
    item = {own[0][0].place: index for index, own in enumerate(decisions) if len(own[0]) == 1}
    found = []
    for family in profiles.groups:
        modes = {
            item[place]: [_mode(profiles, pick) for (pick,) in decisions[item[place]]] for place in family
        }
        together = {mode for own in modes.values() for mode in own if mode is not None}
        members = {mode: [item[place] for place in mode[0]] for mode in sorted(together)}
        found.append(Agreement(modes, members))
    return found


def _mode(profiles: LayerProfiles, pick: Pick) -> Mode | None:
    if pick.candidate is None:
        return None
    candidate = profiles.layers[pick.place].candidates[pick.candidate]
    return (candidate.group, candidate.outline.ranks) if candidate.group else None


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
    tables += agreement_tables(agreements, len(items), len(limits))
    states = [*(len(own) for own in items), *(agreement.count for agreement in agreements)]
    found = allocate_jointly(states, tables, limits, fixed=fixed)
    if isinstance(found, OutOfReach):
        return found
    return replace(found, choice=found.choice[: len(items)])


def agreement_tables(agreements: Sequence[Agreement], first: int, budgets: int) -> list[Table]:
    """The tables of the groups, whose variables are numbered from `first` on, with so many costs of 0."""
    tables = []
    for number, agreement in enumerate(agreements, first):
        choices: list[Mode | None] = [None, *agreement.members]
        for index, modes in agreement.modes.items():
            wanted = [c if c is not None and index in agreement.members[c] else None for c in choices]
            together = np.array([[mode == own for mode in modes] for own in wanted])
            free = np.zeros((*together.shape, budgets))
            tables.append(Table((number, index), free, np.where(together, 0.0, np.inf)))
    return tables
