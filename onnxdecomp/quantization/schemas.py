"""Which of an operator's operands may be float16, as ONNX Runtime's schemas say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

_HALF = "tensor(float16)"
_FLOAT = "tensor(float)"


@dataclass(frozen=True)
class Signature:
    """The types of an operator's inputs and outputs.

    Attributes:
        inputs, outputs: A type or the name of a type parameter for each; the last is that of all others
            where `variadic` says so.
        variadic: Of the inputs and of the outputs, whether the last may be repeated.
        allowed: The types that each type parameter may stand for.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    variadic: tuple[bool, bool]
    allowed: Mapping[str, frozenset[str]]

    def input(self, position: int) -> str:
        """The type of an input, "" where the operator has none there."""
        return _at(self.inputs, position, self.variadic[0])

    def output(self, position: int) -> str:
        """The type of an output, as `input`."""
        return _at(self.outputs, position, self.variadic[1])

    def takes_half(self, name: str) -> bool:
        """Whether a type, which allows float32, may be float16 as well."""
        return {_HALF, _FLOAT} <= self.allowed.get(name, frozenset())

    def is_float(self, name: str) -> bool:
        """Whether a type is float32 and no other."""
        return name == _FLOAT or self.allowed.get(name) == frozenset([_FLOAT])


def _at(types: Sequence[str], position: int, variadic: bool) -> str:
    if position < len(types):
        return types[position]
    return types[-1] if variadic and types else ""


class Signatures:
    """The signatures of all operators that ONNX Runtime has, in the versions that a model uses."""

    def __init__(self, opset_imports: Mapping[str, int]) -> None:
        from onnxruntime.capi import _pybind_state

        self._opsets = {("" if domain == "ai.onnx" else domain): n for domain, n in opset_imports.items()}
        self._schemas: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for schema in _pybind_state.get_all_operator_schema():
            self._schemas[schema.domain, schema.name].append(schema)

    def of(self, node: ir.Node) -> Signature | None:
        """The signature of a node's operator; None for one that ONNX Runtime does not know."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        opset = self._opsets.get(domain, 1)
        found = [s for s in self._schemas.get((domain, node.op_type), []) if s.since_version <= opset]
        return _signature(max(found, key=lambda s: s.since_version)) if found else None


def _signature(schema: Any) -> Signature:
    inputs, outputs = schema.inputs, schema.outputs
    return Signature(
        tuple(operand.typeStr for operand in inputs),
        tuple(operand.typeStr for operand in outputs),
        (_repeats(inputs), _repeats(outputs)),
        {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
    )


def _repeats(operands: Sequence[Any]) -> bool:
    return bool(operands) and operands[-1].option.name == "Variadic"
