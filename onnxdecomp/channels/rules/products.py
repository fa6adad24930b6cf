"""Products of two activations: what they sum over joins both, the other axes pass."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.facts import Facts, describe
from onnxdecomp.channels.rules.rule import Operator, OperatorRule
from onnxdecomp.graph.attributes import attribute
from onnxdecomp.layers.scope import MICROSOFT


def _matmul(node: ir.Node, facts: Facts) -> None:
    ranks = [len((facts.sizes.shape(value)) or ()) for value in node.inputs[:2]]
    batch = attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0)
    if min(ranks) < 2 or batch:
        return facts.freeze_all(node, "how its axes lie is not known")
    lead = max(ranks) - 2
    row, summed, column = lead, lead + 1, lead + 2
    a, b = [row, summed], [summed, column]
    operands = [
        (*range(lead - (rank - 2), lead), *(own[::-1] if attribute(node, turned, 0) else own))
        for rank, own, turned in zip(ranks, (a, b), ("transA", "transB"), strict=True)
    ]
    return _contract(node, operands, (*range(lead), row, column), lead + 3, facts)


def _einsum(node: ir.Node, facts: Facts) -> None:
    """Of an equation with an arrow and no ellipsis."""
    left, arrow, out = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left or any(len(set(term)) != len(term) for term in (*terms, out)):
        return facts.freeze_all(node, "its equation is not read")
    letters = sorted(set(left) - {","})
    axes = [tuple(letters.index(letter) for letter in term) for term in terms]
    return _contract(node, axes, tuple(letters.index(letter) for letter in out), len(letters), facts)


def _contract(
    node: ir.Node, operands: Sequence[tuple[int, ...]], output: tuple[int, ...], rank: int, facts: Facts
) -> None:
    for at, own in enumerate(operands):
        alone = [axis for axis in own if axis not in output and sum(axis in other for other in operands) == 1]
        facts.mix(node, at, [own.index(axis) for axis in alone], "sums over it")
    joint = facts.tie(node, [*enumerate(operands), (-1, output)], rank)
    if joint is None:
        return
    summed = [axis for axis in of.varies(joint) if axis not in output]
    if len(summed) > 1:
        facts.freeze(joint, f"{describe(node)} sums over it along several axes")
    elif summed:
        facts.products[node] = joint


RULES: dict[Operator, OperatorRule] = {
    ("", "MatMul"): OperatorRule(_matmul),
    (MICROSOFT, "FusedMatMul"): OperatorRule(_matmul),
    ("", "Einsum"): OperatorRule(_einsum),
}
