"""A course of work in a work folder: results that depend on the same things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from onnxdecomp.tasks.journal import Journal
from onnxdecomp.tasks.store import Store
from onnxdecomp.tasks.values import Codec, digest

T = TypeVar("T")


@dataclass(frozen=True)
class Course:
    """Where results are kept, and what all of them depend on.

    Attributes:
        store: Where.
        base: The hash of what they depend on.
    """

    store: Store
    base: str

    def under(self, *parts: object) -> Course:
        """The course of what depends on these, too."""
        return Course(self.store, digest(self.base, *parts))

    def journal(self, codec: Codec) -> Journal:
        """What keeps the calls of this course, one after the other."""
        return Journal(self.store, self.base, codec)

    def kept(self, codec: Codec, make: Callable[[], T], kind: type[T]) -> T:
        """The one result of this course, made now or before."""
        return Journal(self.store, self.base, codec).call(make, lambda value: _checked(value, kind))


def _checked(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"is no {kind.__name__}")
    return value
