"""States: the units that a recurrent operator makes, and reads itself at the next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STEP, DIRECTION, BATCH, UNIT = range(4)
"""Axes that those of states are told by."""


@dataclass(frozen=True)
class States:
    """Where an operator has its units, [directions, size] of them.

    All stored tensors have the directions on axis 0.

    Attributes:
        directions: Equally many units belong to each of them.
        size: Units of one direction.
        reverse: For each direction whether it goes from the last step to the first.
        outputs: The axes of each output that has units, by position.
        initial: Those of the first states among the inputs; absent ones are zero.
        runs: How often stored tensors have the units of a direction on axis 1, gate after gate.
        recurrence: The position of the weight [directions, rows, size] that multiplies the state before.
        bias: The position of a bias, of whose rows the second half is added to that product.
        attribute: Says the size.
    """

    directions: int
    size: int
    reverse: tuple[bool, ...]
    outputs: Mapping[int, tuple[int, ...]]
    initial: Mapping[int, tuple[int, ...]]
    runs: Mapping[int, int]
    recurrence: int
    bias: int
    attribute: str
