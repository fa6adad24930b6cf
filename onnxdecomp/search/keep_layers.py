"""A plan without some of its layers and cuts: they stay as they were, and say why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TypeAlias

from onnxdecomp.search.plan import Choice, Cut, Plan

Key: TypeAlias = tuple[str, str]
"""A layer: the graph that it stands in, and its name; or a channel: CHANNEL and its name."""

CHANNEL = "<channel>"
"""In place of a graph in the key of a channel."""

BETTER_KEPT = "better kept: "
"""How the reason begins of a layer to which others were preferred."""

_NOT_TRIED = "left out of the plan that was put back: "


def key_of(choice: Choice | Cut) -> Key:
    """The layer or channel that a choice is about."""
    return (CHANNEL, choice.channel) if isinstance(choice, Cut) else (choice.graph, choice.layer)


def changes_of(plan: Plan) -> tuple[Choice | Cut, ...]:
    """All that a plan does: chains and cuts."""
    return (*plan.decomposed, *plan.cuts)


def without(plan: Plan, layers: Collection[Key], reason: str) -> Plan:
    """The plan with these layers and channels kept, for this reason."""

    def kept(choice: Choice) -> Choice:
        if choice.method is None or key_of(choice) not in layers:
            return choice
        return replace(choice, method=None, options={}, ranks=(), group="", reason=reason, after=None)

    def whole(cut: Cut) -> Cut:
        return uncut(cut, reason) if cut.method is not None and key_of(cut) in layers else cut

    choices, channels = tuple(map(kept, plan.choices)), tuple(map(whole, plan.channels))
    left = replace(plan, choices=choices, channels=channels)
    return left if left.changes or not plan.changes else _all_kept(left)


def uncut(cut: Cut, reason: str) -> Cut:
    """The channel as it is, for this reason."""
    return replace(cut, method=None, kept=cut.width, reason=reason, after=None)


def _all_kept(plan: Plan) -> Plan:
    """The plan with reasons that are true where no layer is decomposed, and none did better than another."""

    def told(choice: Choice) -> Choice:
        if not choice.reason.startswith(BETTER_KEPT):
            return choice
        return replace(choice, reason=f"{_NOT_TRIED}{choice.reason.removeprefix(BETTER_KEPT)}")

    return replace(plan, choices=tuple(told(choice) for choice in plan.choices))


def nothing_of(plan: Plan, reason: str = "") -> Plan:
    """The plan with every layer and channel kept."""
    return without(plan, {key_of(choice) for choice in changes_of(plan)}, reason)
