"""Operators that compute each place of the output from the same places of the operands, with broadcasting."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.channels.facts import Facts, Term
from onnxdecomp.channels.rules.rule import Operator, OperatorRule
from onnxdecomp.layers.scope import MICROSOFT

LINEAR = "Add Cast CastLike Dropout Identity Mean Neg Sub Sum".split()  # noqa: SIM905
SCALING = ("Mul", "Div")
OTHERS = """
    Abs Acos Acosh And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu
    Clip Cos Cosh Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN
    LeakyRelu Less LessOrEqual Log Max Min Mish Mod Not Or PRelu Pow Reciprocal Relu Round Selu Shrink
    Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Where Xor
""".split()  # noqa: SIM905 - a column of strings is no easier to read
FUSED = "BiasGelu FastGelu Gelu QuickGelu".split()  # noqa: SIM905


def elementwise(node: ir.Node, facts: Facts) -> None:
    """All operands and the output are aligned from the right."""
    shape = facts.sizes.shape(node.outputs[0])
    if shape is None:
        facts.freeze_all(node, "the shape of its output is not known")
        return
    rank = len(shape)
    terms: list[Term] = [(-1, tuple(range(rank)))]
    for at in range(len(node.inputs)):
        axes = aligned_right(node, at, rank, facts)
        if axes is not None:
            terms.append((at, axes))
    facts.tie(node, terms, rank)


def aligned_right(node: ir.Node, at: int, rank: int, facts: Facts) -> tuple[int, ...] | None:
    """Which axes of an output of this rank an operand's are; None where it is left out."""
    value = node.inputs[at]
    if value is None:
        return None
    constant = facts.constant(value)
    shape = constant.array.shape if constant is not None else facts.sizes.shape(value)
    if shape is None or len(shape) > rank:
        facts.freeze_all(node, f"the shape of {value.name} is not known")
        return None
    return tuple(range(rank - len(shape), rank))


def _bending(node: ir.Node, facts: Facts) -> None:
    facts.bend()
    elementwise(node, facts)


def _scaling(node: ir.Node, facts: Facts) -> None:
    """By one number for all units the product is linear."""
    constants = [facts.constant(value) for value in node.inputs]
    if not any(constant is not None and constant.array.size == 1 for constant in constants[-1:]) and not (
        node.op_type == "Mul" and constants[0] is not None and constants[0].array.size == 1
    ):
        facts.bend()
    elementwise(node, facts)


RULES: dict[Operator, OperatorRule] = {
    **{("", name): OperatorRule(elementwise) for name in LINEAR},
    **{("", name): OperatorRule(_scaling) for name in SCALING},
    **{("", name): OperatorRule(_bending) for name in OTHERS},
    **{(MICROSOFT, name): OperatorRule(_bending) for name in FUSED},
}
