"""Splitting the two dimensions of a matrix into the modes of a TT-matrix."""

from __future__ import annotations

import math
from typing import TypeAlias

from onnxdecomp.errors import UsageError

Modes: TypeAlias = tuple[tuple[int, int], ...]
"""(i_k, j_k): the k-th mode of the inputs and of the outputs."""

_UNBALANCED = 4
"""The largest ratio of two modes of one dimension at which splitting it so far is still worth it."""


def balanced_factors(n: int, count: int) -> tuple[int, ...]:
    """`count` factors of n, descending, the largest as small as possible, then the next."""
    if count == 1:
        return (n,)
    if n == 1:
        return (1,) * count
    for largest in range(math.ceil(round(n ** (1 / count), 9)), n + 1):
        if n % largest == 0:
            rest = balanced_factors(n // largest, count - 1)
            if rest[0] <= largest:
                return (largest, *rest)
    raise AssertionError("n itself is a factor")


def matrix_modes(inputs: int, outputs: int, order: int) -> Modes:
    """At most `order` modes, at least two, as balanced as the dimensions' divisors allow.

    The inputs' modes descend where the outputs' ascend, so that the products i_k j_k are even. A prime
    dimension ends up as (n, 1): with both prime, the train is the SVD.
    """
    for d in range(order, 1, -1):
        ins, outs = balanced_factors(inputs, d), balanced_factors(outputs, d)
        if d == 2 or all(modes[0] <= _UNBALANCED * modes[-1] for modes in (ins, outs)):
            return tuple(zip(ins, reversed(outs), strict=True))
    raise ValueError(f"a TT-matrix has at least two modes, not {order}")


def parse_modes(text: str) -> Modes:
    """Read "4x7x4x7:5x5x5x5", the modes of the inputs and of the outputs.

    Raises:
        UsageError: The text is not of that form, or the two sides have different numbers of modes.
    """
    sides = text.lower().split(":")
    try:
        ins, outs = ([int(mode) for mode in side.split("x")] for side in sides)
    except ValueError:
        ins, outs = [], []
    if len(ins) != len(outs) or len(ins) < 2 or min(*ins, *outs) < 1:
        raise UsageError(f'tt: shape {text!r}: give the modes of inputs and outputs, as "4x7x4x7:5x5x5x5"')
    return tuple(zip(ins, outs, strict=True))
