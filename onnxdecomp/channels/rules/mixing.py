"""Operators that compute with all places along some axes together: those axes do not pass, the others do."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.channels.facts import Facts, Term
from onnxdecomp.channels.rules.elementwise import aligned_right
from onnxdecomp.channels.rules.rule import Operator, OperatorRule, single_output
from onnxdecomp.graph.attributes import attribute
from onnxdecomp.layers.scope import MICROSOFT

FLATTENING = 13
"""The opset from which Softmax and its like work along one axis; before they took all from it on."""

SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")
NORMALISATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
SKIPS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
REDUCTIONS = [f"Reduce{name}" for name in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()]  # noqa: SIM905


@single_output
def _softmax(node: ir.Node, facts: Facts) -> None:
    rank = _rank(node, facts)
    flattens = facts.scope.opset < FLATTENING
    axis = int(attribute(node, "axis", 1 if flattens else -1)) % max(rank, 1)
    _apart(node, facts, range(axis, rank) if flattens else [axis], "weighs its places against each other")


@single_output
def _normalisation(node: ir.Node, facts: Facts) -> None:
    rank = _rank(node, facts)
    axis = int(attribute(node, "axis", -1)) % max(rank, 1)
    _apart(node, facts, range(axis, rank), "takes the mean over it")


@single_output
def _skip_normalisation(node: ir.Node, facts: Facts) -> None:
    _apart(node, facts, [_rank(node, facts) - 1], "takes the mean over it")


@single_output
def _along_axis(node: ir.Node, facts: Facts) -> None:
    default = {"LpNormalization": -1}.get(node.op_type, 0)
    axes = [int(attribute(node, "axis", default))]
    if node.op_type == "CumSum":
        axes = facts.integers(node.inputs[1]) or []
    _apart(node, facts, [axis % max(_rank(node, facts), 1) for axis in axes], "works across it", operands=1)


@single_output
def _mean_variance(node: ir.Node, facts: Facts) -> None:
    axes = [int(axis) % max(_rank(node, facts), 1) for axis in attribute(node, "axes", (0, 2, 3))]
    _apart(node, facts, axes, "takes the mean over it")


@single_output
def _neighbours(node: ir.Node, facts: Facts) -> None:
    _apart(node, facts, [1], "works across its channels")


@single_output
def _reduce(node: ir.Node, facts: Facts) -> None:
    """The axes that are left pass."""
    x = node.inputs[0]
    shape = facts.sizes.shape(x)
    axes = _axes(node, facts)
    if shape is None or axes is None:
        return facts.freeze_all(node, "the axes that it works along are not known")
    rank = len(shape)
    gone = {axis % rank for axis in axes}
    if node.op_type not in ("ReduceMean", "ReduceSum"):
        facts.bend()
    facts.mix(node, 0, sorted(gone), "takes them all together")
    keeps = bool(attribute(node, "keepdims", 1))
    left = tuple(axis for axis in range(rank) if keeps or axis not in gone)
    facts.tie(node, [(0, tuple(range(rank))), (-1, left)], rank)
    return None


def _top(node: ir.Node, facts: Facts) -> None:
    x = node.inputs[0]
    shape = facts.sizes.shape(x)
    if shape is None:
        return facts.freeze_all(node, "the shape of its input is not known")
    rank, axis = len(shape), int(attribute(node, "axis", -1)) % len(shape)
    facts.bend()
    every = tuple(range(rank))
    terms: list[Term] = [(0, every), (-1, every), (-2, every)]
    for at, _ in terms:
        facts.mix(node, at, [axis], "picks some of them")
    facts.tie(node, terms, rank)
    return None


def _axes(node: ir.Node, facts: Facts) -> list[int] | None:
    """The axes of a reduction; None where they are computed."""
    if node.op_type.startswith("Arg"):
        return [int(attribute(node, "axis", 0))]
    given = attribute(node, "axes", None)
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        given = facts.integers(node.inputs[1])
        if given is None:
            return None
    if given is None or len(given) == 0:
        x = node.inputs[0]
        rank = len((facts.sizes.shape(x)) or ())
        return [] if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return [int(axis) for axis in given]


def _apart(
    node: ir.Node, facts: Facts, axes: range | list[int], what: str, operands: int | None = None
) -> None:
    """All axes but these pass between operands and output, aligned from the right."""
    rank = _rank(node, facts)
    facts.bend()
    if not rank:
        return facts.freeze_all(node, "the shape of its output is not known")
    terms: list[Term] = [(-1, tuple(range(rank)))]
    for at in range(len(node.inputs[:operands])):
        own = aligned_right(node, at, rank, facts)
        if own is not None:
            terms.append((at, own))
    for at, own in terms:
        facts.mix(node, at, [own.index(axis) for axis in axes if axis in own], what)
    facts.tie(node, terms, rank)
    return None


def _rank(node: ir.Node, facts: Facts) -> int:
    return len(facts.sizes.shape(node.outputs[0]) or ())


RULES: dict[Operator, OperatorRule] = {
    **{("", name): OperatorRule(_softmax) for name in SOFTMAX},
    **{("", name): OperatorRule(_normalisation) for name in NORMALISATIONS},
    **{(MICROSOFT, name): OperatorRule(_skip_normalisation) for name in SKIPS},
    **{("", name): OperatorRule(_along_axis) for name in ("CumSum", "LpNormalization")},
    ("", "MeanVarianceNormalization"): OperatorRule(_mean_variance),
    ("", "LRN"): OperatorRule(_neighbours),
    **{("", name): OperatorRule(_reduce) for name in (*REDUCTIONS, "ArgMax", "ArgMin")},
    ("", "TopK"): OperatorRule(_top),
}
