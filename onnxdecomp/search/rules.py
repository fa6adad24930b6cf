"""Rules: which layers get which methods at which ranks; the first rule whose pattern fits a layer decides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxdecomp.core.patterns import Names, matches
from onnxdecomp.decompositions.base import Decomposition
from onnxdecomp.decompositions.joint import CUTS
from onnxdecomp.decompositions.registry import get, names
from onnxdecomp.errors import UsageError
from onnxdecomp.ranks.spec import RankSpec, check, parse

KEEP = "keep"
"""In place of a method: the layer stays as it is."""

_GIVEN = re.compile(r"(?P<methods>[a-z]+(?:,[a-z]+)*)(?P<options>(?::[a-z_]+=.*)?)", re.DOTALL)


@dataclass(frozen=True)
class Rule:
    """What the layers of certain names get.

    Attributes:
        match: Shell pattern of layer names.
        methods: In order of preference: the first that takes a layer and saves what must be saved.
        rank: The rank specification.
        joint: The joint methods, for the channels that such layers are the first to make. With neither
            methods nor these such layers are kept.
    """

    match: str
    methods: tuple[Decomposition, ...]
    rank: RankSpec
    joint: tuple[str, ...] = ()

    def fits(self, names: Names) -> bool:
        return matches(names, [self.match])


@dataclass(frozen=True)
class Defaults:
    """What a rule leaves open: the methods' options by method, and the rank."""

    rank: str
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def make_rule(
    methods: str, defaults: Defaults, match: str = "*", given: Mapping[str, str] | None = None
) -> Rule:
    """The rule for layers called `match`.

    Args:
        methods: Names with commas between, or "keep".
        defaults: For what is not given.
        match: Shell pattern.
        given: "rank", and options of the methods (of each that has such an option).

    Raises:
        UsageError: An unknown method or option, a bad rank, a number of ranks that no such method takes.
    """
    own = dict(given or {})
    rank = parse(own.pop("rank", defaults.rank))
    if methods == KEEP:
        if given:
            raise UsageError(f"layers {match!r} are kept: {', '.join(given)} cannot be given")
        return Rule(match, (), rank)
    made, joint = [], []
    unused = set(own)
    for name in methods.split(","):
        if name in CUTS:
            joint.append(name)
            continue
        options = {**defaults.options.get(name, {}), **_known(name, own, single="," not in methods)}
        unused -= set(options)
        method = get(name, **options)
        check(method, rank)
        made.append(method)
    if unused:
        raise UsageError(f"none of the methods {methods} has an option {sorted(unused)[0]!r}")
    return Rule(match, tuple(made), rank, tuple(joint))


def parse_rule(text: str, defaults: Defaults) -> Rule:
    """The rule that PATTERN=METHOD[,METHOD…][:rank=SPEC][:option=value…] stands for, or PATTERN=keep.

    Raises:
        UsageError: It is of another form, or as `make_rule`.
    """
    # A name may hold "=" and ":" itself: what follows it begins with a method, if there is one.
    parts = [(text[: at.start()], _GIVEN.fullmatch(text, at.end())) for at in re.finditer("=", text)]
    readings = [(match, given) for match, given in parts if match and given]
    every = {KEEP, *names(), *CUTS}
    known = [(m, given) for m, given in readings if {*given["methods"].split(",")} <= every]
    match, found = next(iter(known or readings), ("", None))
    if found is None:
        raise UsageError(
            f"{text!r} is no rule: give PATTERN=METHOD or PATTERN=METHOD:rank=SPEC:option=value, METHOD "
            f"one of {', '.join((*names(), *CUTS))} or keep"
        )
    # A value may hold ":" and ",": an option starts where a name and "=" follow the colon.
    options = [part for part in re.split(r":(?=[a-z_]+=)", found["options"]) if part]
    given: dict[str, str] = {}
    for name, value in (part.split("=", 1) for part in options):
        if name in given:
            raise UsageError(f"{text!r} gives {name}, an option of one rule twice")
        given[name] = value
    return make_rule(found["methods"], defaults, match, given)


def _known(name: str, given: Mapping[str, str], *, single: bool) -> dict[str, str]:
    """The given options that a method has; all of them if it is the only one, so that it objects itself."""
    from onnxdecomp.decompositions.registry import options

    known = {option.name for option in options(name)}
    return dict(given) if single else {k: v for k, v in given.items() if k in known}
