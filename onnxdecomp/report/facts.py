"""Facts: values of a record that know where they stand in it, so that what a page shows can be traced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from onnxdecomp.record.text import full, visible


class Fact:
    """A value of the record and its JSON pointer (RFC 6901).

    Templates walk it as they would the value (`record.totals.macs.ratio`); it has no public attributes that
    could hide a key.
    """

    __slots__ = ("_pointer", "_value")

    def __init__(self, value: Any, pointer: str = "") -> None:
        self._value = value
        self._pointer = pointer

    def __getitem__(self, key: str | int) -> Fact:
        step = str(key).replace("~", "~0").replace("/", "~1")
        return Fact(self._value[key], f"{self._pointer}/{step}")

    def __iter__(self) -> Iterator[Fact]:
        return (self[key] for key in (self._value if isinstance(self._value, Mapping) else range(len(self))))

    def __len__(self) -> int:
        return len(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __str__(self) -> str:
        return visible(str(self._value))

    def __html__(self) -> str:
        """The value as text, when a template does not say how else."""
        return tagged(self, str(self))


def raw(fact: Any) -> Any:
    """The value itself."""
    return fact._value if isinstance(fact, Fact) else fact


def pointer(fact: Fact) -> str:
    """Where it stands in the record."""
    return fact._pointer


def tagged(fact: Fact, text: str) -> str:
    """HTML: the text, marked with the value behind it and its place."""
    from markupsafe import Markup, escape

    value = raw(fact)
    place, shown = escape(full(pointer(fact))), escape(text)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Markup(f'<data value="{json.dumps(value)}" data-from="{place}">{shown}</data>')
    return Markup(f'<span data-from="{place}">{shown}</span>')


def known(fact: Any) -> bool:
    """Whether there is a value: 0 is one."""
    return raw(fact) is not None
