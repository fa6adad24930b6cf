"""Names in order and in messages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def natural(path: Path) -> tuple[int, str]:
    """The order in which input_2 is before input_10."""
    return (len(path.name), path.name)


def names(found: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(found) or "none"
