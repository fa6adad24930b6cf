"""Storage: how factors are stored that are quantized again, where it is not as int8 (see int8_weights)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import MatMul


@dataclass(frozen=True, eq=False)
class Stored:
    """The operator that multiplies by a factor as it is stored.

    Attributes:
        domain, op_type: Of the operator.
        parts: Its operands after the activation, by what the factor's name gets behind it.
        attributes: The operator's.
    """

    domain: str
    op_type: str
    parts: Mapping[str, Array]
    attributes: Mapping[str, int]


class Storage(Protocol):
    """A kind of weights that an operator of its own multiplies by."""

    @property
    def name(self) -> str:
        """The element type, for people."""
        ...

    def rounded(self, step: MatMul) -> MatMul:
        """The step with its weight [S, T] as it is when stored."""
        ...

    def stored(self, step: MatMul) -> Stored:
        """The operator of the step, with its weight."""
        ...
