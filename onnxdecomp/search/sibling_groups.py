"""Groups of a plan: the layers that it gives one first factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from onnxdecomp.decompositions.registry import JOINT, get
from onnxdecomp.decompositions.shared import Shared
from onnxdecomp.errors import UsageError
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.siblings import siblings
from onnxdecomp.layers.tied_weights import ties
from onnxdecomp.search.plan import Choice, Plan

GroupKey: TypeAlias = tuple[str, str]
"""The graph that the layers of a group stand in, and the group's name."""


def group_of(choice: Choice) -> GroupKey | None:
    """The group of a layer that is decomposed together with others."""
    return (choice.graph, choice.group) if choice.group and choice.method is not None else None


def weight_of(choice: Choice) -> float:
    """What the loss of a layer counts beside that of its siblings."""
    method = get(choice.method or "", **choice.options)
    return method.weight if isinstance(method, Shared) else 1.0


def members_of(plan: Plan, matched: Sequence[LayerMatch]) -> dict[GroupKey, tuple[LayerMatch, ...]]:
    """The layers of each of the plan's groups, in graph order."""
    by_name = {(choice.graph, choice.layer): choice for choice in plan.decomposed}
    found: dict[GroupKey, tuple[LayerMatch, ...]] = {}
    for match in matched:
        choice = by_name.get((match.layer.graph, match.layer.name))
        if choice is not None and (group := group_of(choice)) is not None:
            found[group] = (*found.get(group, ()), match)
    return found


def check_groups(plan: Plan, matched: Sequence[LayerMatch]) -> None:
    """Refuse groups whose layers cannot have their first factor in common.

    A group that has lost layers, down to one, is as good as before: these were put back.

    Raises:
        UsageError: A method that takes several layers has no group, or another method has one; the layers of
            a group do not read one activation, or are not given the same.
    """
    for choice in plan.decomposed:
        if (choice.method in JOINT) != bool(choice.group):
            whose = f"the plan's layer {choice.layer!r}: {choice.method}"
            if choice.group:
                raise UsageError(f"{whose} takes one layer at a time, and has no group {choice.group!r}")
            raise UsageError(f"{whose} needs a group: the layers that it gives one first factor")
    groups = members_of(plan, matched)
    if not groups:
        return
    found = siblings(matched, ties(matched))
    places = {(match.layer.graph, match.layer.name): place for place, match in enumerate(matched)}
    sets = {place: index for index, members in enumerate(found.groups) for place in members}
    choices = {(choice.graph, choice.layer): choice for choice in plan.decomposed}
    for (_, name), members in groups.items():
        whose = f"the plan's group {name!r}"
        keys = [(match.layer.graph, match.layer.name) for match in members]
        for key in keys:
            if places[key] not in sets:
                raise UsageError(f"{whose} cannot have the layer {key[1]!r}: {found.refusals[places[key]]}")
            if sets[places[key]] != sets[places[keys[0]]]:
                raise UsageError(f"{whose}: {key[1]!r} does not read what {keys[0][1]!r} reads")
            own, first = choices[key], choices[keys[0]]
            if (own.method, own.ranks) != (first.method, first.ranks):
                raise UsageError(f"{whose}: {key[1]!r} is not given what {keys[0][1]!r} is")
