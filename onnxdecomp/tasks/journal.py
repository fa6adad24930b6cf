"""A journal: what the calls of a course have given, that is the same every time it is taken.

A course is a search or the carrying out of a plan: what it does follows from the model, the inputs and the
options, which its name is the hash of. So its calls are found again by their places in it. What is not kept
is called again, in the state that the calls before have left: of windows on activations too, which are moved
as they were then, for what is computed from another place differs in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from onnxdecomp.tasks.store import Store
from onnxdecomp.tasks.values import Codec, Packed, digest

T = TypeVar("T")

_END = "end"


class Moves(Protocol):
    """A window, as far as a journal knows one."""

    @property
    def moves(self) -> list[tuple[str, ...]]:
        """What it was asked for, one after the other."""

    def move(self, names: Sequence[str]) -> None:
        """Ask for it again, and need nothing of it."""


@dataclass(eq=False)
class Journal:
    """The calls of one course.

    Attributes:
        store: Where they are kept.
        course: The hash of all that the course depends on.
        codec: Packs what calls give.
        complete: All of them are kept: no window needs to be moved.
    """

    store: Store
    course: str
    codec: Codec
    complete: bool = field(init=False)
    _count: int = 0
    _sound: bool = True

    def __post_init__(self) -> None:
        self.complete = self.store.read(self._key(_END)) is not None

    def call(
        self,
        make: Callable[[], T],
        kind: Callable[[object], T],
        windows: Iterable[Moves] = (),
        *,
        again: bool = False,
    ) -> T:
        """What the next call gives, as it was kept, or made now and kept.

        Args:
            make: The call.
            kind: Says that what was read is what the call gives.
            windows: Those that it moves.
            again: It leaves more behind than what it gives: it is made even if that is kept, unless all
                further calls are kept, too.
        """
        key, self._count = self._key(str(self._count)), self._count + 1
        own = list(windows)
        if (not again or self.complete) and (kept := self.store.read(key)) is not None:
            value, looks = self._unpacked(kept)
            if not self.complete:
                for window, names in zip(own, looks, strict=True):
                    for asked in names:
                        window.move(asked)
            return kind(value)
        before = [len(window.moves) for window in own]
        try:
            made = make()
        except Exception:
            self._sound = False  # it will fail again, where all that it needs is there
            raise
        moves = [window.moves[start:] for window, start in zip(own, before, strict=True)]
        packed = self.codec.pack((made, moves))
        self.store.write(key, packed)
        # As a later run will have it: arrays that are views of others lie in memory in another way.
        return kind(self._unpacked(packed)[0])

    def end(self) -> None:
        """All calls were made."""
        if self._sound and not self.complete:
            self.store.write(self._key(_END), self.codec.pack(self._count))

    def _unpacked(self, packed: Packed) -> tuple[object, list[list[tuple[str, ...]]]]:
        """What a call gave, and what it asked of each window."""
        match self.codec.unpack(packed):
            case (value, list(moves)):
                return value, [[tuple(map(str, names)) for names in own] for own in moves]
        raise ValueError("is no call")

    def _key(self, place: str) -> str:
        return digest(self.course, place)
