"""Splitting the two dimensions of a matrix into the modes of a TT-matrix."""

from __future__ import annotations

import math
from typing import TypeAlias

from onnxdecomp.errors import UsageError

MOST_MODES = 16
"""Of a side: of 2^17 numbers more can only be modes of size 1, and NumPy has no array of 65 axes."""

Modes: TypeAlias = tuple[tuple[int, int], ...]
"""(i_k, j_k): the k-th mode of the inputs and of the outputs."""

_MOST_PADDING = 8
"""A dimension grows by at most one part in this."""

_PAYS = 1.5
"""How many times smaller its modes must add up for a dimension to be padded: that costs copies."""


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


def padded_factors(n: int, count: int) -> tuple[int, ...]:
    """The balanced factors of n or, where these are far from even, of the next size that has even ones.

    A core's size grows with its modes, so their sum is what counts; even ones have count * n^(1/count).
    """
    exact = balanced_factors(n, count)
    even = count * n ** (1 / count)
    if sum(exact) < _PAYS * even:
        return exact
    for padded in range(n + 1, most_padded(n) + 1):
        factors = balanced_factors(padded, count)
        if sum(factors) <= 1.25 * even:
            return factors if _PAYS * sum(factors) <= sum(exact) else exact
    return exact


def most_padded(n: int) -> int:
    """The largest size that a dimension of n may be padded to."""
    return n + n // _MOST_PADDING


def matrix_modes(inputs: int, outputs: int, order: int, padded: bool = True) -> Modes:
    """`order` modes whose products are the two dimensions or, if `padded`, a bit more where that is evener.

    The inputs' modes descend where the outputs' ascend, so that the products i_k j_k are even. A small
    prime stays one mode, (n, 1): with both such, a train of two cores is the SVD.
    """
    factors = padded_factors if padded else balanced_factors
    ins, outs = factors(inputs, order), factors(outputs, order)
    return tuple(zip(ins, reversed(outs), strict=True))


def sizes(modes: Modes) -> tuple[int, int]:
    """The inputs and the outputs that the modes make."""
    return math.prod(i for i, _ in modes), math.prod(j for _, j in modes)


def fits(modes: Modes, inputs: int, outputs: int) -> bool:
    """Whether the modes make a matrix of that size, with a little padding at most."""
    return all(n <= size <= most_padded(n) for n, size in zip((inputs, outputs), sizes(modes), strict=True))


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
    if len(ins) != len(outs) or not 2 <= len(ins) <= MOST_MODES or min(*ins, *outs) < 1:
        raise UsageError(f'tt: shape {text!r}: give the modes of inputs and outputs, as "4x7x4x7:5x5x5x5"')
    return tuple(zip(ins, outs, strict=True))
