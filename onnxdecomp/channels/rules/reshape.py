"""Reshape, Flatten and Expand: axes that are split and merged.

The sizes of both shapes are matched from either end, so that sizes which are free do no harm to axes that
stand in groups of their own: [N, T, 384] to [N, T, 12, 32] is the last axis in two whatever N and T are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.facts import Facts, Term
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.channels.rules.rule import Operator, OperatorRule
from onnxdecomp.channels.sizes import Shape, Sizes, product
from onnxdecomp.core.layer import Array

Group = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes of the operand and those of the output that they become."""


def _reshape(node: ir.Node, facts: Facts) -> None:
    before = facts.sizes.shape(node.inputs[0])
    after = facts.sizes.shape(node.outputs[0])
    if before is None or after is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    groups = groups_of(before, after)
    _carry(node, 0, -1, groups, before, after, facts)
    _carry(node, -1, 0, [(b, a) for a, b in groups], after, before, facts)
    joint = facts.labels(node.outputs[0])
    computed = node.op_type == "Reshape" and facts.constant(node.inputs[1]) is None
    if not computed or joint is None or _is_open(node, joint, facts.sizes):
        return None
    if _written(before, after) is None:
        facts.freeze_all(node, "the shape that it gives is computed")
    return None


def _is_open(node: ir.Node, labels: Array, sizes: Sizes) -> bool:
    """Whether the computed shape leaves all sizes open that may change."""
    numbers = sizes.numbers(node.inputs[1])
    if numbers is None or any(number.size == 0 for number in numbers):
        return False
    return all(numbers[axis].size == -1 for axis in of.varies(labels))


def _carry(
    node: ir.Node,
    source: int,
    target: int,
    groups: Sequence[Group],
    before: Shape,
    after: Shape,
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
        if len(own) == 1 and len(others) > 1:
            facts.runs.add(int(after[others[-1]]))
        for axis in own:
            shape[axis] = labels.shape[axis] if len(own) == len(others) == 1 else int(before[axis] or 1)
        for axis in others:
            reached[axis] = int(after[axis] or 1)
        if len(found) > 1:  # what becomes shorter must be the innermost axis, or the order would change
            facts.align(node, source, np.moveaxis(labels, found[-1], -1).reshape(-1, labels.shape[found[-1]]))
    facts.give(node, target, np.broadcast_to(labels, shape).reshape(reached))
    return None


def groups_of(before: Shape, after: Shape) -> list[Group]:
    """Which axes become which, in as small groups as the sizes tell."""
    cuts = {(0, 0), (len(before), len(after))}
    cuts |= _matches(before, after)
    cuts |= {(len(before) - i, len(after) - j) for i, j in _matches(before[::-1], after[::-1])}
    chain = [(0, 0)]
    for i, j in sorted(cuts)[1:]:
        if i >= chain[-1][0] and j >= chain[-1][1]:
            chain.append((i, j))
    return [(tuple(range(i, k)), tuple(range(j, n))) for (i, j), (k, n) in itertools.pairwise(chain)]


def _matches(before: Shape, after: Shape) -> set[tuple[int, int]]:
    """Where the products of all sizes so far are equal."""
    ends = {_key(before[:i]): i for i in range(len(before), 0, -1)}
    starts = {_key(after[:j]): j for j in range(len(after), 0, -1)}
    return {(i, starts[key]) for key, i in ends.items() if key in starts}


def _key(sizes: Shape) -> tuple[int, frozenset[tuple[str, int]]]:
    number, names = product(sizes)
    return number, frozenset(names.items())


def _written(before: Shape, after: Shape) -> list[int] | None:
    """The target shape as numbers where it is computed: 0 copies a size, and one may be left open."""
    target = [
        size if isinstance(size, int) else 0 if axis < len(before) and before[axis] == size else -1
        for axis, size in enumerate(after)
    ]
    return target if target.count(-1) <= 1 else None


def _resize_reshape(node: ir.Node, cut: Resizing) -> None:
    x, y = node.inputs[0], node.outputs[0]
    before, after = cut.shape(x), cut.shape(y)
    grows = [axis for axis in range(len(after)) if cut.stays(y, axis) is not None]
    copied = [axis for axis in range(len(before)) if cut.stays(x, axis) is not None]
    found = cut.computed(node, 1)
    labels = cut.units.get(y)
    if found is None and (labels is None or _is_open(node, labels, cut.sizes)):
        return
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
    before = facts.sizes.shape(node.inputs[0])
    after = facts.sizes.shape(node.outputs[0])
    if before is None or after is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    rank = len(after)
    terms: list[Term] = [(0, tuple(range(rank - len(before), rank))), (-1, tuple(range(rank)))]
    facts.tie(node, terms, rank)
    return None


def _resize_expand(node: ir.Node, cut: Resizing) -> None:
    y = node.outputs[0]
    found = cut.computed(node, 1)
    if found is None:
        return
    target = found.copy()
    rank = len(cut.shape(y))
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
