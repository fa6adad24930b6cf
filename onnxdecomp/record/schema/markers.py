"""What types of fields cannot say of the JSON: missing keys, bounds, lengths, known keys of open objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxdecomp.runtime.jsonio import LEFT_OUT

OPTIONAL = "optional"

LATER: Mapping[str, bool] = {OPTIONAL: True}
"""Metadata of a field whose key is not required: records of earlier releases lack it."""

ABSENT: Mapping[str, bool] = {OPTIONAL: True, LEFT_OUT: True}
"""Metadata of a field whose key the JSON lacks where the value is None."""


@dataclass(frozen=True)
class Between:
    """A number within bounds, both of them included."""

    low: float
    high: float


@dataclass(frozen=True)
class Length:
    """A list of so many items."""

    least: int
    most: int | None = None


@dataclass(frozen=True)
class Known:
    """An open object in which some keys have a type of their own.

    Attributes:
        keys: Their types.
        required: Those of them that are always there.
    """

    keys: Mapping[str, object]
    required: tuple[str, ...] = ()
