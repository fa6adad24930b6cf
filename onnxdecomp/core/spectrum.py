"""Spectrum: the singular values that a rank cuts, in a bounded number of points."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spectrum:
    """What one rank of a method truncates.

    Attributes:
        name: The rank's name: "out", "in", "rank", …
        rank: Where it is cut.
        full: How many singular values there are.
        kept: The part of their squared sum before the cut, from 0 to 1.
        index: The places of the values that are given, from 1.
        values: Those singular values over the largest.
    """

    name: str
    rank: int
    full: int
    kept: float
    index: tuple[int, ...]
    values: tuple[float, ...]
