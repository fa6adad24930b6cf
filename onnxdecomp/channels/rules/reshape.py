"""Reshape, Flatten and Expand: axes that are split and merged.

The sizes of both shapes are matched from either end, so that sizes which are free do no harm to axes that
stand in groups of their own: [N, T, 384] to [N, T, 12, 32] is the last axis in two whatever N and T are.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels.facts import Facts, Term, describe
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.channels.rules.rule import Operator, OperatorRule
from onnxdecomp.core.layer import Dim
from onnxdecomp.graph.attributes import dims

Group = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes of the operand and those of the output that they become."""


def _reshape(node: ir.Node, facts: Facts) -> None:
    before = None if node.inputs[0] is None else dims(node.inputs[0])
    after = dims(node.outputs[0])
    if before is None or after is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    if node.op_type == "Reshape" and not _is_writable(node, before, after, facts):
        return facts.freeze_all(node, "the shape that it gives is computed")
    groups = groups_of(before, after)
    _carry(node, 0, -1, groups, before, after, facts)
    _carry(node, -1, 0, [(b, a) for a, b in groups], after, before, facts)
    return None


def _carry(
    node: ir.Node,
    source: int,
    target: int,
    groups: Sequence[Group],
    before: Sequence[Dim],
    after: Sequence[Dim],
    facts: Facts,
) -> None:
    """Give one side of a reshape the labels of the other."""
    value = node.inputs[0] if source == 0 else node.outputs[0]
    labels = facts.labels(value)
    if labels is None:
        return None
    shape, reached = [1] * len(before), [1] * len(after)
    for own, others in groups:
        found = [axis for axis in own if labels.shape[axis] > 1]
        if not found:
            continue
        sizes, others_sizes = [before[axis] for axis in own], [after[axis] for axis in others]
        if not all(isinstance(size, int) for size in (*sizes, *others_sizes)):
            return facts.freeze_all(node, "it merges or splits axes whose sizes are free")
        for axis in own:
            shape[axis] = labels.shape[axis] if len(own) == len(others) == 1 else int(before[axis] or 1)
        for axis in others:
            reached[axis] = int(after[axis] or 1)
        if len(found) > 1:  # what becomes shorter must be the innermost axis, or the order would change
            facts.align(node, np.moveaxis(labels, found[-1], -1).reshape(-1, labels.shape[found[-1]]))
    facts.give(node, target, np.broadcast_to(labels, shape).reshape(reached))
    return None


def groups_of(before: Sequence[Dim], after: Sequence[Dim]) -> list[Group]:
    """Which axes become which, in as small groups as the sizes tell; free sizes that differ end in one."""
    cuts = {(0, 0), (len(before), len(after))}
    cuts |= _matches(before, after)
    backward = _matches(before[::-1], after[::-1])
    cuts |= {(len(before) - i, len(after) - j) for i, j in backward}
    ordered = sorted(cuts)
    chain = [ordered[0]]
    for i, j in ordered[1:]:
        if i >= chain[-1][0] and j >= chain[-1][1]:
            chain.append((i, j))
    return [(tuple(range(i, k)), tuple(range(j, n))) for (i, j), (k, n) in itertools.pairwise(chain)]


def _matches(before: Sequence[Dim], after: Sequence[Dim]) -> set[tuple[int, int]]:
    """Where the products of all sizes so far are equal."""
    ends = {_product(before[:i]): i for i in range(len(before), 0, -1)}
    found = set()
    for j in range(1, len(after) + 1):
        i = ends.get(_product(after[:j]))
        if i is not None and None not in (*before[:i], *after[:j]):
            found.add((i, j))
    return found


def _product(sizes: Sequence[Dim]) -> tuple[int, frozenset[tuple[str, int]]]:
    names = Counter(size for size in sizes if isinstance(size, str))
    return math.prod(size for size in sizes if isinstance(size, int)), frozenset(names.items())


def _is_writable(node: ir.Node, before: Sequence[Dim], after: Sequence[Dim], facts: Facts) -> bool:
    return facts.constant(node.inputs[1]) is not None or _written(before, after) is not None


def _written(before: Sequence[Dim], after: Sequence[Dim]) -> list[int] | None:
    """The target shape as numbers where it is computed: 0 copies a size, and one may be left open."""
    target = [
        size
        if isinstance(size, int)
        else 0
        if size is not None and axis < len(before) and before[axis] == size
        else -1
        for axis, size in enumerate(after)
    ]
    return target if target.count(-1) <= 1 else None


def _resize_reshape(node: ir.Node, cut: Resizing) -> None:
    x, y = node.inputs[0], node.outputs[0]
    before, after = (dims(x) if x is not None else None) or (), dims(y) or ()
    grows = [axis for axis in range(len(after)) if cut.stays(y, axis) is not None]
    copied = [axis for axis in range(len(before)) if cut.stays(x, axis) is not None]
    found = cut.computed(node, 1)
    target = _written(before, after) if found is None else [int(size) for size in found.tolist()]
    assert target is not None
    for axis, size in enumerate(target):
        if axis in grows and size != -1:
            target[axis] = cut.size(y, axis)
        elif size == 0 and axis in copied:
            target[axis] = int(before[axis] or 0)
    if found is None:
        node.attributes.pop("allowzero", None)
    cut.put(node, 1, np.array(target, np.int64))


def _expand(node: ir.Node, facts: Facts) -> None:
    before = None if node.inputs[0] is None else dims(node.inputs[0])
    after = dims(node.outputs[0])
    if before is None or after is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    rank = len(after)
    terms: list[Term] = [(0, tuple(range(rank - len(before), rank))), (-1, tuple(range(rank)))]
    joint = facts.tie(node, terms, rank)
    if joint is not None and facts.constant(node.inputs[1]) is None:
        facts.freeze(joint, f"the shape that {describe(node)} gives is computed")
    return None


def _resize_expand(node: ir.Node, cut: Resizing) -> None:
    y = node.outputs[0]
    target = cut.constant(node, 1).copy()
    rank = len(dims(y) or ())
    for axis in range(rank):
        at = axis - (rank - target.size)
        if at >= 0 and cut.stays(y, axis) is not None and target[at] != 1:
            target[at] = cut.size(y, axis)
    cut.put(node, 1, target)


RULES: dict[Operator, OperatorRule] = {
    ("", "Reshape"): OperatorRule(_reshape, _resize_reshape),
    ("", "Flatten"): OperatorRule(_reshape),
    ("", "Expand"): OperatorRule(_expand, _resize_expand),
}
