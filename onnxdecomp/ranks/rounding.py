"""Ranks that fill whole blocks of channels: multiples of what the hardware works in."""

from __future__ import annotations


def round_to_multiple(rank: int, multiple: int, full: int, *, up: bool = False) -> int:
    """The nearest multiple (halves up; with `up` the next one), at least `multiple`, never above `full`.

    A full rank stays full, so that a fraction of 1.0 is exact whatever the multiple is.
    """
    if rank >= full:
        return full
    blocks = -(-rank // multiple) if up else (2 * rank + multiple) // (2 * multiple)
    return min(full, max(1, blocks) * multiple)
