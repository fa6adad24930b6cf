"""Names of layers, nodes and values in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 6
"""Names that are listed: a model may have hundreds, and the record has them all."""


def some(names: Sequence[str]) -> str:
    """The names, of many the first ones and how many more there are: "a, b, c, d, e, f and 12 more"."""
    # One more takes no more room than to say so.
    if len(names) <= MOST + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MOST])} and {len(names) - MOST} more"
