"""Call: one node with the values of its operands, as the functions of the operator tables take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir
import torch

from onnxdecomp.errors import ModelError

Tensor: TypeAlias = torch.Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """A node and its operands.

    Attributes:
        node: The node.
        opset: The version of its domain.
        operands: A tensor per input; None where one is left out.
        enter: Runs a subgraph with values for its inputs; gives those of its outputs.
    """

    node: ir.Node
    opset: int
    operands: tuple[Tensor | None, ...]
    enter: Callable[[ir.Graph, tuple[Tensor, ...]], tuple[Tensor, ...]]

    @property
    def x(self) -> Tensor:
        """The first operand."""
        return self[0]

    def __getitem__(self, index: int) -> Tensor:
        """An operand that must be there."""
        value = self.get(index)
        if value is None:
            raise self.refuse(f"its input {index} is missing")
        return value

    def get(self, index: int) -> Tensor | None:
        """An operand, or None where it is left out."""
        return self.operands[index] if index < len(self.operands) else None

    def tensors(self) -> tuple[Tensor, ...]:
        """All operands of an operator that takes any number."""
        return tuple(value for value in self.operands if value is not None)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value as Python has it (bytes decoded), or the default."""
        found = self.node.attributes.get(name)
        if found is None:
            return default
        value = found.value
        return list(value) if isinstance(value, tuple) else value

    def numbers(self, name: str, index: int) -> list[int] | None:
        """Integers that stand in an attribute or, in later opsets, in an operand; None where in neither."""
        value = self.attribute(name)
        if value is not None:
            return [value] if isinstance(value, int) else list(value)
        operand = self.get(index)
        return None if operand is None else [int(v) for v in operand.reshape(-1).tolist()]

    def used(self, index: int) -> bool:
        """Whether an output of the node is named, and so may be read."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def refuse(self, why: str) -> ModelError:
        """The error for what is not handled."""
        name = f" {self.node.name}" if self.node.name else ""
        return ModelError(f"cannot train through {self.node.op_type}{name}: {why}")


Operator: TypeAlias = Callable[[Call], "Tensor | tuple[Tensor | None, ...]"]
"""What computes a node: its output, or all of its outputs."""

Table: TypeAlias = Mapping[str, Operator]
"""Operators of a domain by type."""
