"""Storage: how weights are stored in fewer bits, where it is not as plain int8 (see int8_weights)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Lookup, MatMul


@dataclass(frozen=True, eq=False)
class Stored:
    """The operator that multiplies by a factor as it is stored, or reads its rows.

    Attributes:
        domain, op_type: Of the operator.
        parts: Its operands besides the activation, by what the factor's name gets behind it.
        attributes: The operator's.
        x_at: The activation's position among the operands.
    """

    domain: str
    op_type: str
    parts: Mapping[str, Array]
    attributes: Mapping[str, int]
    x_at: int = 0


@dataclass(frozen=True, eq=False)
class Integers:
    """A factor that integers are multiplied by: the activation is rounded as it comes.

    Attributes:
        weight: int8 [S, T], symmetric.
        scales: Of each column, float32 [T].
    """

    weight: Array
    scales: Array


@dataclass(frozen=True, eq=False)
class Rows:
    """A table with a scale for each of its rows, which are read before they become floats again.

    Attributes:
        table: int8 [S, T], symmetric.
        scales: float32 [S, 1].
    """

    table: Array
    scales: Array


class Storage(Protocol):
    """A kind of weights in fewer bits."""

    @property
    def name(self) -> str:
        """The element type, for people."""
        ...

    @property
    def rounding(self) -> int:
        """How many times the usual rounding the lowering check allows: activations may be rounded, too."""
        ...

    def rounded(self, step: MatMul | Lookup) -> Array:
        """The weight [S, T] of a step as it is when stored."""
        ...

    def stored(self, step: MatMul) -> Stored | Integers:
        """What multiplies by the step's weight."""
        ...

    def table(self, step: Lookup) -> Stored | Rows:
        """What reads rows of the step's weight."""
        ...


@dataclass(frozen=True)
class WithTables:
    """A storage of products, and another one of tables.

    Attributes:
        products, tables: The two.
    """

    products: Storage
    tables: Storage

    @property
    def name(self) -> str:
        return self.products.name

    @property
    def rounding(self) -> int:
        return max(self.products.rounding, self.tables.rounding)

    def rounded(self, step: MatMul | Lookup) -> Array:
        return (self.tables if isinstance(step, Lookup) else self.products).rounded(step)

    def stored(self, step: MatMul) -> Stored | Integers:
        return self.products.stored(step)

    def table(self, step: Lookup) -> Stored | Rows:
        return self.tables.table(step)
