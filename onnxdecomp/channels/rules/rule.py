"""OperatorRule: what is known of an operator for channels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onnxdecomp.channels.facts import Facts, Rule
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.layers.adapter import Operator

__all__ = ["Operator", "OperatorRule", "Resize", "single_output"]

Resize: TypeAlias = Callable[[ir.Node, Resizing], None]
"""Sets what a node says of sizes, in attributes or constant operands, to the sizes after a cut."""


@dataclass(frozen=True)
class OperatorRule:
    """What an operator does to units.

    Attributes:
        spread: Spreads labels between its operands and outputs.
        resize: What a cut changes in its node; None: nothing but tensors.
    """

    spread: Rule
    resize: Resize | None = None


def single_output(rule: Rule) -> Rule:
    """The rule for nodes of which the first output alone is read."""

    @functools.wraps(rule)
    def checked(node: ir.Node, facts: Facts) -> None:
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return facts.freeze_all(node, "its further outputs are read, too")
        return rule(node, facts)

    return checked
