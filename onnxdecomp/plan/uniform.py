"""The plain plan: one method and one rank specification for every layer."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from onnxdecomp.errors import UsageError
from onnxdecomp.layer import Layer
from onnxdecomp.methods import for_layer, get
from onnxdecomp.methods.base import Method, Ranks, outline
from onnxdecomp.plan.plan import Choice, Cost, Plan, cost_of, dense_chain
from onnxdecomp.ranks.spec import RankSpec, check, choose
from onnxdecomp.sites.base import Site, Skip
from onnxdecomp.sites.emit import needs_rank

Saving = Literal["macs", "params", "both", "either", "none"]


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        method: A name of onnxdecomp.methods.
        rank: The rank specification.
        multiple: Ranks are rounded to multiples of it.
        options: The method's own options.
        include, exclude: Shell patterns of layer names; an empty `include` takes all.
        must_save: What a chain must cost less of than its layer, or the layer stays.
        skip_below: A layer stays if both its MACs and its parameters are below this share of the average
            layer's: it would bring little, and first and last layers lose most.
    """

    method: str
    rank: RankSpec
    multiple: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    must_save: Saving = "macs"
    skip_below: float = 0.1


def plan_uniform(sites: Sequence[Site], skips: Sequence[Skip], request: Request) -> Plan:
    """Choose for every site; operators that could not be read follow with their reasons.

    Raises:
        UsageError: Unknown method or option; patterns that match no layer; ranks that fit no layer at all.
    """
    method = get(request.method, **request.options)
    check(method, request.rank)
    _check_patterns(sites, skips, request)
    costs = [cost_of(dense_chain(site.layer), site.layer) for site in sites]
    smallest = _smallest(costs, request)
    choices = [
        _choose(site, before, smallest, method, request) for site, before in zip(sites, costs, strict=True)
    ]
    beyond = [choice.reason for choice in choices if choice.reason.startswith("rank ")]
    if beyond and not any(choice.method or choice.after for choice in choices):
        raise UsageError(f"--rank {request.rank} fits no layer: {beyond[0]}")
    skipped = [Choice(skip.name, skip.graph, skip.op_type, reason=skip.reason) for skip in skips]
    return Plan((*choices, *skipped))


def _smallest(costs: Sequence[Cost], request: Request) -> Cost:
    """Below this, in both respects, a layer is too small to bother."""
    if request.must_save == "none" or not costs:
        return Cost(0, 0)
    share = request.skip_below / len(costs)
    return Cost(int(share * sum(c.params for c in costs)), int(share * sum(c.macs for c in costs)))


def _choose(site: Site, before: Cost, smallest: Cost, method: Method, request: Request) -> Choice:
    layer = site.layer

    def stay(reason: str, ranks: Ranks = (), after: Cost | None = None) -> Choice:
        return Choice(
            layer.name,
            layer.graph,
            layer.op_type,
            reason=reason,
            ranks=ranks,
            before=before,
            after=after,
        )

    if not selected(layer.name, request.include, request.exclude):
        return stay("excluded by name")
    fitting = for_layer(method, layer)
    if refusal := fitting.refusal(layer):
        return stay(refusal)
    if before.macs < smallest.macs and before.params < smallest.params:
        return stay(f"too small: below {request.skip_below:g} of the average layer in MACs and parameters")
    ranks = choose(fitting, layer, request.rank, request.multiple)
    if isinstance(ranks, str):
        return stay(ranks)
    chain = outline(fitting, layer, ranks)
    if needs_rank(chain, site) and layer.input_shape is None:
        return stay("the rank of its activation is unknown")
    after = cost_of(chain, layer)
    if why_not := _does_not_save(request.must_save, before, after, layer):
        return stay(f"{fitting.name} at {_show(ranks)} {why_not}", ranks, after)
    return Choice(
        layer.name,
        layer.graph,
        layer.op_type,
        method=fitting.name,
        options=method_options(fitting),
        ranks=ranks,
        before=before,
        after=after,
    )


def selected(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether shell patterns let a layer of that name through."""
    inside = not include or any(fnmatch.fnmatchcase(name, pattern) for pattern in include)
    return inside and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)


def method_options(method: Method) -> dict[str, Any]:
    """The method's fields and their values."""
    return asdict(method)  # type: ignore[call-overload,no-any-return]


def _does_not_save(must_save: Saving, before: Cost, after: Cost, layer: Layer) -> str:
    macs, params = after.macs < before.macs, after.params < before.params
    enough = {
        "macs": macs,
        "params": params,
        "both": macs and params,
        "either": macs or params,
        "none": True,
    }[must_save]
    if enough:
        return ""
    return (
        f"needs {after.macs / max(before.macs, 1):.2f}x the MACs and "
        f"{after.params / max(before.params, 1):.2f}x the parameters of the layer"
    )


def _show(ranks: Ranks) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _check_patterns(sites: Sequence[Site], skips: Sequence[Skip], request: Request) -> None:
    names = [site.layer.name for site in sites] + [skip.name for skip in skips]
    for pattern in (*request.include, *request.exclude):
        if names and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"no layer matches {pattern!r}; 'onnxdecomp inspect' lists their names")
