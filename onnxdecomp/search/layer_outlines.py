"""What could be done to each layer of a model: outlines by layer, alike for layers that share a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.tied_weights import Tie, stays
from onnxdecomp.search.candidates import Outline, What, methods_for, outlined, outlines
from onnxdecomp.search.layer_errors import foreseen, reason_for
from onnxdecomp.search.scope import Scope, refusals


def layer_outlines(matched: Sequence[LayerMatch], reasons: list[str], scope: Scope) -> list[list[Outline]]:
    """What could be done to each layer; where there is nothing, a reason is put in."""
    options: list[list[Outline]] = [[] for _ in matched]
    for index, match in enumerate(matched):
        if reasons[index]:
            continue
        try:
            methods = methods_for(scope.methods, match, scope.options)
            multiple = scope.multiple_of(match.layer)
            options[index] = outlines(match, methods, multiple=multiple, what=cost_kind(match, scope))
            reasons[index] = "" if options[index] else refusals(scope.methods, match)
        except Exception as error:
            reasons[index] = reason_of_error(error, match)
    return options


def cost_kind(match: LayerMatch, scope: Scope) -> What:
    return "params" if match.layer.lookup else scope.what


def reason_of_error(error: Exception, match: LayerMatch) -> str:
    """The reason why a layer stays for which an error of ours has come up; others are raised."""
    if foreseen(error):
        raise error
    return reason_for(error, match.layer.name)


def weight_reader(tie: Tie, members: Mapping[int, tuple[LayerMatch, Sequence[object]]]) -> str:
    """Who keeps a weight, given what could be done to each of its layers."""
    kept = (match.layer.name for match, options in members.values() if not options)
    return next(kept, tie.other) if len(members) > 1 else tie.other


def joined(
    found: Sequence[Tie],
    matched: Sequence[LayerMatch],
    options: list[list[Outline]],
    reasons: list[str],
    scope: Scope,
) -> set[int]:
    """Make the outlines of layers that share a weight alike, so that all of them may get the same.

    Layers that are decomposed for their parameters alone lose their outlines where another reader keeps the
    weight.

    Returns:
        The layers that would share factors, which are fitted to the weight alone.
    """
    joint: set[int] = set()
    for tie in found:
        own = [index for index in tie.members if options[index]]
        if reader := weight_reader(tie, {index: (matched[index], options[index]) for index in tie.members}):
            for index in own:
                if scope.what == "params" or matched[index].layer.lookup:
                    options[index], reasons[index] = [], stays(reader)
        elif len(own) > 1:
            common = set.intersection(*({o.method.name for o in options[index]} for index in own))
            ranks = {(o.method.name, o.ranks): o for i in own for o in options[i] if o.method.name in common}
            for index in own:
                methods = {option.method.name: option.method for option in options[index]}
                options[index] = [outlined(matched[index], methods[n], r) for n, r in ranks]
                if not common:
                    reasons[index] = "no method takes all layers that share its weight"
            joint.update(own if common else ())
    return joint
