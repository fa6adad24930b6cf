"""The tally: what a plan's layers store, every number once however many of them read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from onnxdecomp.core.layer import Layer
from onnxdecomp.decompositions.base import outline, refusal_of
from onnxdecomp.decompositions.registry import get
from onnxdecomp.graph.inherit import origin
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.emitter import Share
from onnxdecomp.layers.tied_weights import Tie, share_of, ties
from onnxdecomp.search.keep_layers import Key
from onnxdecomp.search.plan import Choice, Cost, Plan, cost_after_first, cost_of


def shares_of(
    matched: Sequence[LayerMatch], found: Sequence[Tie], plan: Plan
) -> dict[tuple[str, str], Share]:
    """What the layers that the plan decomposes share their factors by, by graph and name."""
    by_name = {(choice.graph, choice.layer): choice for choice in plan.decomposed}
    shares = {}
    for tie in found:
        for member, index in enumerate(tie.members):
            layer = matched[index].layer
            choice = by_name.get((layer.graph, layer.name))
            if choice is not None:
                method = get(choice.method or "", **choice.options)
                share = share_of(tie, member, matched[index], method, choice.ranks)
                shares[layer.graph, layer.name] = share
    return shares


def numbers_stored(found: Sequence[Tie], matched: Sequence[LayerMatch], dense: Sequence[Cost]) -> list[int]:
    """The numbers that the model holds for each layer, by its cost; a weight with its first reader."""
    numbers = {index: n for tie in found for index, n in zip(tie.members, tie.numbers, strict=True)}
    biases = (cost.params - int(match.layer.weight.size) for match, cost in zip(matched, dense, strict=True))
    return [numbers[index] + bias for index, bias in enumerate(biases)]


def tallied(
    plan: Plan, matched: Sequence[LayerMatch], left: Mapping[Key, Layer] = MappingProxyType({})
) -> Plan:
    """The plan with costs that add up to what is stored before and after.

    A weight that several layers read is the first one's; it is counted afterwards, too, unless all of its
    readers are decomposed, and none of them is anything but a layer. Factors that several layers share are
    the first one's as well, and so are a bias and the MACs of siblings' first factor. Copies of a bias, which
    layers have only since they were given their own, are told apart: they are stored afterwards, and were
    not before.

    Args:
        plan: For these layers; choices for others stay as they are.
        matched: The layers.
        left: Those that are smaller behind the plan's cuts, as they are then.
    """
    by_name = {(choice.graph, choice.layer): choice for choice in plan.choices}
    keys = [(match.layer.graph, match.layer.name) for match in matched]
    if not set(keys) <= set(by_name) or not _fits(matched, [by_name[key] for key in keys]):
        return plan
    choices = [by_name[key] for key in keys]
    found = ties(matched)
    shares = shares_of(matched, found, plan)
    biases: set[int] = set()
    origins: set[tuple[str, str]] = set()
    groups: set[tuple[str, str]] = set()
    seen = set()
    for tie in found:
        stays = bool(tie.other) or any(choices[index].method is None for index in tie.members)
        for index, numbers in zip(tie.members, tie.numbers, strict=True):
            layer, choice, share = matched[index].layer, choices[index], shares.get(keys[index])
            assert choice.before is not None
            bias = 0 if layer.bias is None or _bias(matched[index]) in biases else int(layer.bias.size)
            biases.add(_bias(matched[index]))
            first = _origin(matched[index]) not in origins
            origins.add(_origin(matched[index]))
            before = replace(choice.before, params=numbers + bias + layer.recurrence)
            after = choice.after
            if choice.method is not None and (keys[index] in left or not choice.narrowed):
                layer = left.get(keys[index], layer)
                chain = outline(get(choice.method, **choice.options), layer, choice.ranks)
                group = (choice.graph, choice.group)
                price = cost_after_first if choice.group and group in groups else cost_of
                groups.add(group)
                cost = price(replace(chain, bias=None), layer)
                factors = 0 if share is not None and share.key in seen else cost.params
                bias = min(bias, 0 if layer.bias is None else int(layer.bias.size))
                after = Cost((numbers if stays else 0) + factors + bias, cost.macs)
            if share is not None:
                seen.add(share.key)
            copied = 0 if first else before.params - numbers
            by_name[keys[index]] = replace(choice, before=before, after=after, copied=copied)
    ordered = tuple(by_name[choice.graph, choice.layer] for choice in plan.choices)
    return replace(plan, choices=ordered)


def remaining(plan: Plan, matched: Sequence[LayerMatch]) -> dict[tuple[str, str], str]:
    """The decomposed layers whose weight stays in the file, by graph and name, with who else reads it."""
    by_name = {(choice.graph, choice.layer): choice for choice in plan.choices}
    found: dict[tuple[str, str], str] = {}
    for tie in ties(matched):
        choices = [by_name.get((matched[i].layer.graph, matched[i].layer.name)) for i in tie.members]
        kept = [choice.layer for choice in choices if choice is not None and choice.method is None]
        reader = next(iter(kept), tie.other)
        if reader:
            names = [(c.graph, c.layer) for c in choices if c is not None and c.method is not None]
            found |= dict.fromkeys(names, reader)
    return found


def _bias(match: LayerMatch) -> int:
    """What tells biases apart: the value that stores one, or the layer where it has its own."""
    return id(match.layer) if match.bias is None else id(match.bias)


def _origin(match: LayerMatch) -> tuple[str, str]:
    """What tells biases apart as the model came in."""
    own = f"the bias of {match.layer.name}"
    return match.layer.graph, own if match.bias is None else origin(match.bias)


def _fits(matched: Sequence[LayerMatch], choices: Sequence[Choice]) -> bool:
    """Whether the choices are for these layers: a plan for another model is refused elsewhere."""
    for match, choice in zip(matched, choices, strict=True):
        if choice.before is None:
            return False
        if choice.method is not None:
            method = get(choice.method, **choice.options)
            if refusal_of(method, match.layer) is not None:
                return False
            if len(method.full_ranks(match.layer)) != len(choice.ranks) or min(choice.ranks) < 1:
                return False
    return True
