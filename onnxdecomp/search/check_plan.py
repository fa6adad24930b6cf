"""Checking a plan against the layers of a model: a plan may be written by hand, or for another model."""

from __future__ import annotations

from collections.abc import Sequence

from onnxdecomp.channels.channel import Channel
from onnxdecomp.decompositions.base import Decomposition, outline, refusal_of
from onnxdecomp.decompositions.joint import CUTS
from onnxdecomp.decompositions.registry import get
from onnxdecomp.errors import UsageError
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.search.fixed_widths import methods_of
from onnxdecomp.search.plan import Choice, Cut, Plan
from onnxdecomp.search.sibling_groups import check_groups


def check_plan(plan: Plan, matched: Sequence[LayerMatch], channels: Sequence[Channel] = ()) -> None:
    """Refuse a plan that these layers and channels cannot be given.

    Raises:
        UsageError: The plan names a layer that is not there, or one twice, or a method that is unknown or
            does not take its layer, or ranks that the layer does not have; or a group of layers that are no
            siblings (see `check_groups`); or a channel that is not there or cannot be cut so.
    """
    by_name = {(match.layer.graph, match.layer.name): match for match in matched}
    seen: set[tuple[str, str]] = set()
    for choice in plan.decomposed:
        key = (choice.graph, choice.layer)
        if key not in by_name:
            raise UsageError(
                f"the plan is for another model: there is no layer {choice.layer!r} here; 'onnxdecomp "
                "inspect' lists their names"
            )
        if key in seen:
            raise UsageError(f"the plan decides twice about the layer {choice.layer!r}")
        seen.add(key)
        _check_choice(choice, by_name[key])
    check_groups(plan, matched)
    _check_cuts(plan, channels)


def method_of(choice: Choice) -> Decomposition:
    """The method that a choice names, with its options.

    Raises:
        UsageError: There is no such method, or it has no such option.
    """
    try:
        return get(choice.method or "", **choice.options)
    except UsageError as error:
        raise UsageError(f"the plan's layer {choice.layer!r}: {error}") from error


def _check_choice(choice: Choice, match: LayerMatch) -> None:
    method, layer = method_of(choice), match.layer
    whose = f"the plan's layer {choice.layer!r}: {method.name}"
    if refusal := refusal_of(method, layer):
        raise UsageError(f"{whose} does not take it ({refusal})")
    # What a group has in common has more ranks than one of its layers may have alone.
    full = (layer.inputs,) if choice.group else method.full_ranks(layer)
    largest = ",".join(map(str, full))
    if len(choice.ranks) != len(full):
        given = ",".join(map(str, choice.ranks)) or "none"
        raise UsageError(f"{whose} needs {len(full)} of ranks there, at most {largest}, not {given}")
    for rank, most in zip(choice.ranks, full, strict=True):
        if not 1 <= rank <= most:
            which = f"rank {rank}" + ("" if len(full) == 1 else f" in {','.join(map(str, choice.ranks))}")
            raise UsageError(f"{whose} has no {which} there; ranks are from 1 to {largest}")
    if reason := match.adapter.obstacle(outline(method, layer, choice.ranks), layer):
        raise UsageError(f"{whose} cannot stand in its place ({reason})")


def channel_of(cut: Cut, channels: Sequence[Channel]) -> Channel:
    """The channel that a plan cuts.

    Raises:
        UsageError: There is none of this name, or it has other units or blocks.
    """
    found = next((channel for channel in channels if channel.name == cut.channel), None)
    if found is None:
        raise UsageError(
            f"the plan is for another model: there is no channel {cut.channel!r} here; 'onnxdecomp inspect "
            "--method width,attention' lists their names"
        )
    if found.width != cut.width:
        what = f"the channel {cut.channel!r} has {found.width} units, not {cut.width}"
        raise UsageError(f"the plan is for another model: {what}")
    for ends, names, what in ((found.producers, cut.producers, "made"), (found.readers, cut.readers, "read")):
        own = [end.match.layer.name for end in ends]
        if other := [name for name in names if name not in own]:
            where = f"the channel {cut.channel!r} is not {what} by {other[0]!r}"
            raise UsageError(f"the plan is for another model: {where}")
    if cut.kept % found.blocks:
        raise UsageError(
            f"the plan's channel {cut.channel!r} must keep equally many units in each of {found.blocks} "
            f"blocks: {cut.kept} is no multiple of that"
        )
    return found


def _check_cuts(plan: Plan, channels: Sequence[Channel]) -> None:
    seen: set[str] = set()
    for cut in plan.cuts:
        channel = channel_of(cut, channels)
        if cut.channel in seen:
            raise UsageError(f"the plan decides twice about the channel {cut.channel!r}")
        seen.add(cut.channel)
        if cut.method not in CUTS:
            raise UsageError(f"the plan's channel {cut.channel!r}: {cut.method!r} cuts no channels")
        if cut.method not in (able := methods_of(channel)):
            only = f"it takes {', '.join(able)}" if able else "no method does"
            raise UsageError(f"the plan's channel {cut.channel!r}: {cut.method} does not cut it ({only})")
