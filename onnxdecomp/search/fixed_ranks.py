"""The plain plan: ranks by a rule, the same for every layer whose name a pattern matches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.json_values import Json
from onnxdecomp.core.layer import Layer, Ranks
from onnxdecomp.core.names import some
from onnxdecomp.core.patterns import Named, names_of, of_layers, selected
from onnxdecomp.decompositions.base import Decomposition, Refusal, outline
from onnxdecomp.decompositions.registry import JOINT, get
from onnxdecomp.decompositions.shared import whole
from onnxdecomp.errors import UsageError
from onnxdecomp.layers.adapter import LayerMatch, Skip
from onnxdecomp.layers.siblings import Siblings, siblings
from onnxdecomp.layers.tied_weights import stays, ties
from onnxdecomp.ranks.spec import RankSpec, choose
from onnxdecomp.search.finite_weights import unsound
from onnxdecomp.search.keep_layers import Key
from onnxdecomp.search.layer_errors import foreseen, reason_for
from onnxdecomp.search.plan import Choice, Cost, Plan, choice_of, cost_after_first, cost_of, kept
from onnxdecomp.search.plan_options import Saving
from onnxdecomp.search.rules import Rule
from onnxdecomp.search.stored_parameters import tallied


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        rules: The first that fits a layer's name decides; a layer that none fits stays.
        multiple: Ranks are rounded to multiples of it.
        quantum: What the kernels work in that the result will run on.
        include, exclude: Shell patterns of layer names; an empty `include` takes all.
        must_save: What a chain must cost less of than its layer, or the layer stays.
        skip_below: A layer stays if both its MACs and its parameters are below this share of the average
            layer's: it would bring little, and first and last layers lose most.
    """

    rules: tuple[Rule, ...]
    multiple: int = 1
    quantum: int = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    must_save: Saving = "macs"
    skip_below: float = 0.1


def plan_uniform(
    matched: Sequence[LayerMatch],
    skips: Sequence[Skip],
    request: Request,
    left: Mapping[Key, Layer] = MappingProxyType({}),
) -> Plan:
    """Choose for every match; operators that could not be read follow with their reasons.

    Args:
        matched, skips: What there is.
        request: What is asked for.
        left: Layers that are smaller behind cuts, as they are then and without their numbers: a chain has to
            save something of that.

    Raises:
        UsageError: Patterns that match no layer; ranks that fit no layer at all.
    """
    request = resolved(request, matched, skips)
    costs = [cost_of(dense_chain(match.layer), match.layer) for match in matched]
    smallest = _smallest(costs, request)
    joint = any(method.name in JOINT for rule in request.rules for method in rule.methods)
    kin = siblings(matched, ties(matched)) if joint else Siblings((), {})
    refused = dict(kin.refusals)

    def chosen(place: int) -> Choice:
        match = matched[place]
        smaller = left.get((match.layer.graph, match.layer.name))
        if smaller is None or unsound(match.layer.weight):
            return _chosen(match, costs[place], smallest, request, refused.get(place, ""))
        rule = _rule_of(match, request)
        if rule is not None and rule.rank.rule in ("ranks", "fraction"):
            # Other ranks are found by the numbers, which only the whole layer has.
            match = replace(match, layer=smaller)
        before = cost_of(dense_chain(smaller), smaller)
        found = _chosen(match, before, smallest, request, refused.get(place, ""))
        whole = kept(matched[place].layer, costs[place])
        return replace(found, before=whole.before, weight=whole.weight, input=whole.input)

    choices = [chosen(place) for place in range(len(matched))]
    for group in kin.groups:
        choices = _with_group(group, matched, choices, request, refused)
        for place in group:
            if place in refused:
                choices[place] = chosen(place)
    choices = _with_ties(matched, choices, request.must_save)
    beyond = [choice.reason for choice in choices if choice.reason.startswith("rank ")]
    if beyond and not any(choice.method or choice.after for choice in choices):
        *rules, default = request.rules
        named = [f"rank={rule.rank}" for rule in rules if rule.methods]
        raise UsageError(f"{' and '.join(named) or f'--rank {default.rank}'} fits no layer: {beyond[0]}")
    skipped = [choice_of(skip) for skip in skips]
    return Plan((*choices, *skipped))


def _smallest(costs: Sequence[Cost], request: Request) -> Cost:
    """Below this, in both respects, a layer is too small to bother."""
    if request.must_save == "none" or not costs:
        return Cost(0, 0)
    share = request.skip_below / len(costs)
    return Cost(int(share * sum(c.params for c in costs)), int(share * sum(c.macs for c in costs)))


def _chosen(match: LayerMatch, before: Cost, smallest: Cost, request: Request, refused: str) -> Choice:
    """The choice for a layer; it stays where an error of ours prevents one."""
    try:
        return _choose(match, before, smallest, request, refused)
    except Exception as error:
        if foreseen(error):
            raise
        return replace(kept(match.layer, before), reason=reason_for(error, match.layer.name), fixed=True)


def _choose(match: LayerMatch, before: Cost, smallest: Cost, request: Request, refused: str) -> Choice:
    """The choice for a layer; of a method that takes several it has no ranks yet, and none if `refused`."""
    layer = match.layer
    stays = kept(layer, before)
    if not selected(names_of(layer), request.include, request.exclude):
        return replace(stays, reason="excluded by name", fixed=True)
    rule = _rule_of(match, request)
    if rule is None or not (rule.methods or rule.joint):
        return replace(stays, reason="kept as asked" if rule else "no rule fits its name", fixed=True)
    if not rule.methods:
        take = "take" if len(rule.joint) > 1 else "takes"
        return replace(stays, reason=f"{', '.join(rule.joint)} {take} channels, and no layer by itself")
    if before.macs < smallest.macs and before.params < smallest.params:
        reason = f"too small: below {request.skip_below:g} of the average layer in MACs and parameters"
        return replace(stays, reason=reason)
    if wrong := unsound(layer.weight):
        return replace(stays, reason=wrong)
    tried = []
    for method in rule.methods:
        if method.name in JOINT:
            choice = _jointly(match, stays, method, refused)
        else:
            choice = _with_method(match, stays, method, rule.rank, request)
        if choice.method is not None:
            return choice
        tried.append(choice)
    reasons = dict.fromkeys(choice.reason for choice in tried)
    return replace(tried[-1], reason="; ".join(reasons))


def _rule_of(match: LayerMatch, request: Request) -> Rule | None:
    return next((rule for rule in request.rules if rule.fits(names_of(match.layer))), None)


def _jointly(match: LayerMatch, stays: Choice, method: Decomposition, refused: str) -> Choice:
    """The choice of a method that takes several layers: its ranks are the group's to find."""
    fitting = method.specialise(match.layer)
    if reason := fitting.reason if isinstance(fitting, Refusal) else refused:
        return replace(stays, reason=reason)
    return replace(stays, method=method.name, options=method_options(method))


def _with_group(
    group: Sequence[int],
    matched: Sequence[LayerMatch],
    choices: list[Choice],
    request: Request,
    refused: dict[int, str],
) -> list[Choice]:
    """The choices with those of siblings that are decomposed together; the others' reasons go to `refused`.

    Layers whose rules ask for different ranks are different groups.
    """
    choices, by_rank = list(choices), dict[RankSpec, list[int]]()
    for place in group:
        if choices[place].method in JOINT:
            rule = _rule_of(matched[place], request)
            assert rule is not None
            by_rank.setdefault(rule.rank, []).append(place)
    for spec, members in by_rank.items():
        found = _together([matched[place] for place in members], [choices[p] for p in members], spec, request)
        if isinstance(found, str):
            refused.update(dict.fromkeys(members, found))
        else:
            for place, choice in zip(members, found, strict=True):
                choices[place] = choice
    return choices


def _together(
    own: Sequence[LayerMatch], choices: Sequence[Choice], spec: RankSpec, request: Request
) -> list[Choice] | str:
    """The choices of siblings that are decomposed together, or why they are not."""
    if len(own) < 2:
        return "no other layer that reads its activation is given the same"
    method = get(choices[0].method or "", **choices[0].options)
    ranks = choose(method, whole([match.layer for match in own]), spec, request.multiple)
    if isinstance(ranks, str):
        return ranks
    costs: list[Cost] = []
    for match in own:
        chain = outline(method, match.layer, ranks)
        if reason := match.adapter.obstacle(chain, match.layer):
            return f"{match.layer.name}: {reason}"
        costs.append((cost_after_first if costs else cost_of)(chain, match.layer))
    before = _sum(choice.before for choice in choices)
    if why_not := _does_not_save(request.must_save, before, _sum(costs), lookup=False):
        names = some([match.layer.name for match in own])
        return f"{method.name} at {_show(ranks)} {why_not}, of all that read one activation: {names}"
    name = own[0].layer.name
    return [
        replace(choice, ranks=ranks, after=after, group=name)
        for choice, after in zip(choices, costs, strict=True)
    ]


def _sum(costs: Iterable[Cost | None]) -> Cost:
    known = [cost for cost in costs if cost is not None]
    return Cost(sum(cost.params for cost in known), sum(cost.macs for cost in known))


def _with_method(
    match: LayerMatch, stays: Choice, method: Decomposition, rank: RankSpec, request: Request
) -> Choice:
    """The choice that this method makes of a layer: its ranks, or the reason why the layer stays."""
    layer, before = match.layer, stays.before
    assert before is not None
    fitting = method.specialise(layer)
    if isinstance(fitting, Refusal):
        return replace(stays, reason=fitting.reason)
    ranks = choose(fitting, layer, rank, request.multiple)
    if isinstance(ranks, str):
        return replace(stays, reason=ranks)
    chain = outline(fitting, layer, ranks)
    if reason := match.adapter.obstacle(chain, layer):
        return replace(stays, reason=reason)
    after = cost_of(chain, layer)
    if why_not := _does_not_save(request.must_save, before, after, layer.lookup):
        return replace(stays, reason=f"{fitting.name} at {_show(ranks)} {why_not}", ranks=ranks, after=after)
    return replace(stays, method=fitting.name, options=method_options(fitting), ranks=ranks, after=after)


def _with_ties(matched: Sequence[LayerMatch], choices: list[Choice], must_save: Saving) -> list[Choice]:
    """The choices without those that must save parameters and save none, since others read their weight."""
    shared = [tie for tie in ties(matched) if tie.is_shared]
    before = -1
    while before != (before := sum(choice.method is None for choice in choices)):
        counted = tallied(Plan(tuple(choices)), matched).choices if shared else ()
        for tie in shared:
            bound = [
                index for index in tie.members if _needs_params(choices[index], matched[index], must_save)
            ]
            kept_by = [choices[index].layer for index in tie.members if choices[index].method is None]
            costs = [(counted[index].before, counted[index].after) for index in tie.members]
            stored, left = (sum(cost.params for cost in part if cost) for part in zip(*costs, strict=True))
            if reader := next(iter(kept_by), tie.other):
                reason = stays(reader)
            elif left >= stored:
                reason = f"the layers that share its weight need {left / max(stored, 1):.2f}x its parameters"
            else:
                continue
            for index in bound:
                choices[index] = replace(choices[index], method=None, options={}, reason=reason)
    return choices


def _needs_params(choice: Choice, match: LayerMatch, must_save: Saving) -> bool:
    """Whether the layer is to be decomposed only if that saves parameters."""
    if choice.method is None or choice.before is None or choice.after is None:
        return False
    if must_save == "either":
        return choice.after.macs >= choice.before.macs
    return must_save in ("params", "both") or (must_save == "macs" and match.layer.lookup)


def method_options(method: Decomposition) -> dict[str, Json]:
    """The method's fields and their values."""
    return asdict(method)  # type: ignore[call-overload,no-any-return]


def _does_not_save(must_save: Saving, before: Cost, after: Cost, lookup: bool) -> str:
    macs, params = after.macs < before.macs, after.params < before.params
    enough = {
        "macs": params if lookup else macs,
        "params": params,
        "both": macs and params,
        "either": macs or params,
        "none": True,
    }[must_save]
    if enough:
        return ""
    if lookup:
        share = f"{after.params / max(before.params, 1):.2f}x the parameters of the layer"
        return f"needs MACs, a lookup none, and {share}" if must_save == "both" else f"needs {share}"
    return (
        f"needs {after.macs / max(before.macs, 1):.2f}x the MACs and "
        f"{after.params / max(before.params, 1):.2f}x the parameters of the layer"
    )


def _show(ranks: Ranks) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def resolved(request: Request, matched: Sequence[LayerMatch], skips: Sequence[Skip]) -> Request:
    """The request with names of layers read literally.

    Raises:
        UsageError: Patterns that match no layer.
    """
    layers: list[Named] = [*(match.layer for match in matched), *skips]
    return replace(
        request,
        rules=tuple(replace(rule, match=of_layers([rule.match], layers)[0]) for rule in request.rules),
        include=of_layers(request.include, layers),
        exclude=of_layers(request.exclude, layers),
    )
