"""A plan without some of its layers: they stay as they were, and say why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TypeAlias

from onnxdecomp.search.plan import Choice, Plan

Key: TypeAlias = tuple[str, str]
"""A layer: the graph that it stands in, and its name."""


BETTER_KEPT = "better kept: "
"""How the reason begins of a layer to which others were preferred."""

_NOT_TRIED = "left out of the plan that was put back: "


def key_of(choice: Choice) -> Key:
    """The layer that a choice is about."""
    return choice.graph, choice.layer


def without(plan: Plan, layers: Collection[Key], reason: str) -> Plan:
    """The plan with these layers kept, for this reason."""

    def kept(choice: Choice) -> Choice:
        if choice.method is None or key_of(choice) not in layers:
            return choice
        return replace(choice, method=None, options={}, ranks=(), reason=reason, after=None)

    left = replace(plan, choices=tuple(kept(choice) for choice in plan.choices))
    return left if left.decomposed or not plan.decomposed else _all_kept(left)


def _all_kept(plan: Plan) -> Plan:
    """The plan with reasons that are true where no layer is decomposed, and none did better than another."""

    def told(choice: Choice) -> Choice:
        if not choice.reason.startswith(BETTER_KEPT):
            return choice
        return replace(choice, reason=f"{_NOT_TRIED}{choice.reason.removeprefix(BETTER_KEPT)}")

    return replace(plan, choices=tuple(told(choice) for choice in plan.choices))


def nothing_of(plan: Plan, reason: str = "") -> Plan:
    """The plan with every layer kept."""
    return without(plan, {key_of(choice) for choice in plan.decomposed}, reason)
