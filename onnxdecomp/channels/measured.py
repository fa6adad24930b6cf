"""Sizes that the model itself computes: a cut must not change those that are meant to stay.

A Shape of an activation of the channel gives another number afterwards. That is right where the number is the
size of what has become smaller alike, and where it is not read: everything else breaks the channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.facts import Facts, describe
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import attribute

Labels: TypeAlias = Callable[[ir.Value], Array | None]
"""The labels of an activation."""

SIZED = {"Resize": 3, "Expand": 1, "Reshape": 1}
"""Operators that are given the sizes of their output, and the operand's position."""

_PASSING = frozenset(["Cast", "Identity", "Squeeze", "Unsqueeze"])


def wrong_size(facts: Facts, labels: Labels, shrinks: Callable[[Array], int]) -> str:
    """Why the sizes that the model computes are not right after a cut; "" where they are.

    Args:
        facts: All that is known.
        labels: Those of the units that can be left out.
        shrinks: The axis along which a tensor with such labels becomes smaller.
    """
    for node in facts.nodes:
        if node.op_type == "Shape":
            x = node.inputs[0]
            found = None if x is None else labels(x)
            if found is not None:
                axis = shrinks(found)
                start = int(attribute(node, "start", 0)) % found.ndim
                place = axis - start
                size = len(facts.sizes.numbers(node.outputs[0]) or ())
                if 0 <= place < size and not _harmless(node, place, of.line(found, axis), facts, labels):
                    return f"{describe(node)} measures it"
        elif node.op_type in SIZED and (reason := _computed(node, facts, labels, shrinks)):
            return reason
    return ""


def _computed(node: ir.Node, facts: Facts, labels: Labels, shrinks: Callable[[Array], int]) -> str:
    """Why computed sizes of a node's output do not follow; a Reshape's are written anew."""
    at, found = SIZED[node.op_type], labels(node.outputs[0])
    given = node.inputs[at] if len(node.inputs) > at else None
    if found is None or given is None or node.op_type == "Reshape" or facts.constant(given) is not None:
        return ""
    axis, numbers = shrinks(found), facts.sizes.numbers(given)
    place = axis - (found.ndim - len(numbers)) if numbers is not None else -1
    if numbers is not None and place >= 0 and not attribute(node, "axes", None):
        number = numbers[place]
        if node.op_type == "Expand" and number.size == 1:
            return ""
        source = labels(number.source[0]) if number.source is not None else None
        own = number.source[1] if number.source is not None else None
        if source is not None and own is not None and shrinks(source) == own:
            return "" if np.array_equal(of.line(source, own), of.line(found, axis)) else _follows_not(node)
    return _follows_not(node)


def _follows_not(node: ir.Node) -> str:
    return f"the sizes that {describe(node)} gives are computed"


def _harmless(node: ir.Node, place: int, line: Array, facts: Facts, labels: Labels) -> bool:
    """Whether a number that changes is read only by what has become smaller alike."""
    todo = [(node.outputs[0], place)]
    while todo:
        value, place = todo.pop()
        if value.is_graph_output():
            return False
        for user, at in value.uses():
            places = _moved(user, at, place, facts)
            if places is not None:
                todo += [(user.outputs[0], moved) for moved in places]
                continue
            out = labels(user.outputs[0])
            if SIZED.get(user.op_type) != at or out is None:
                return False
            if user.op_type != "Reshape" and not np.array_equal(of.line(out, place), line):
                return False
    return True


def _moved(user: ir.Node, at: int, place: int, facts: Facts) -> list[int] | None:
    """Where a node that picks or joins numbers has one of them; None for any other node."""
    numbers = facts.sizes.numbers
    if user.op_type in _PASSING and at == 0:
        return [place]
    if user.op_type == "Concat":
        before = [numbers(value) for value in list(user.inputs)[:at]]
        known = [part for part in before if part is not None]
        return [place + sum(len(part) for part in known)] if len(known) == len(before) else None
    given, made = numbers(user.inputs[0]), numbers(user.outputs[0])
    if user.op_type in ("Gather", "Slice") and at == 0 and given is not None and made is not None:
        places = list(_picked(user, len(given), facts))
        return [index for index, source in enumerate(places) if source == place]
    return None


def _picked(user: ir.Node, size: int, facts: Facts) -> Iterator[int]:
    parts = [facts.integers(value) or [] for value in user.inputs[1:]]
    if user.op_type == "Gather":
        yield from (place % size for place in parts[0])
        return
    step = parts[3][0] if len(parts) > 3 else 1
    yield from range(size)[parts[0][0] : parts[1][0] : step]
