"""Feeds in order, held in memory or read anew each time: a set may be larger than the memory."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, islice, pairwise
from typing import Protocol, TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import Feed

HELD = 256 << 20
"""Bytes of feeds that are kept in memory once they were read."""

_GOLDEN = 0.6180339887498949
"""The golden ratio, of which multiples are spread most evenly over the unit interval (modulo 1)."""

Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]


class Items(Protocol):
    """What holds feeds: a tuple, or a FeedSource."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Feed]: ...
    def __getitem__(self, index: int, /) -> Feed: ...


@dataclass(frozen=True, eq=False)
class Part:
    """Neighbouring feeds that are read together: those of a file, of an image, or what a caller gave.

    Attributes:
        count: How many.
        read: Opens what holds them, yields them and closes it again; called for every iteration.
        labels: What a user says of the feeds, [count * labels of a feed, ...], or None.
        name: What holds them, for people; "" for what holds all of them.
        unused: Names of arrays beside them that are no inputs of the model, nor labels.
    """

    count: int
    read: Callable[[], Iterator[Feed]]
    labels: Array | None = None
    name: str = ""
    unused: tuple[str, ...] = ()

    def first(self, count: int) -> Part:
        """The first `count` feeds of it."""
        if count >= self.count:
            return self
        each = len(self.labels) // self.count if self.labels is not None else 0
        labels = None if self.labels is None else self.labels[: count * each]
        return replace(self, count=count, read=partial(_first, self.read, count), labels=labels)


class FeedSource:
    """Feeds that every iteration reads anew, one part after the other: one file at most is open at a time.

    Parts are kept after they were read to their end as long as all that is kept takes `hold` bytes at
    most; the others are read again.
    """

    def __init__(self, parts: Sequence[Part], *, hold: int = HELD) -> None:
        self.parts = tuple(parts)
        self._ends = tuple(accumulate(part.count for part in self.parts))
        self._left = hold
        self._held: dict[int, tuple[Feed, ...]] = {}
        self._too_large: set[int] = set()
        self._shapes: dict[int, tuple[Shapes, ...]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Feed]:
        for index in range(len(self.parts)):
            yield from self._read(index)

    def __getitem__(self, index: int, /) -> Feed:
        """One feed; the part that holds it is read up to it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = bisect_right(self._ends, index)
        before = self._ends[at - 1] if at else 0
        return next(islice(self._read(at), index - before, None))

    def shapes(self) -> Iterator[Shapes]:
        """The shapes of each part's feeds; reads the parts that no iteration has come to the end of."""
        for index in range(len(self.parts)):
            if index not in self._shapes:
                for _ in self._read(index):
                    pass
            yield from self._shapes[index]

    def _read(self, index: int) -> Iterator[Feed]:
        if index in self._held:
            yield from self._held[index]
            return
        kept: list[Feed] | None = None if index in self._too_large else []
        count = size = 0
        shapes: dict[Shapes, None] = {}
        for feed in self.parts[index].read():
            count += 1
            shapes.setdefault(_shapes(feed))
            size += nbytes(feed)
            if kept is not None and size > self._left:
                kept = None
                self._too_large.add(index)
            if kept is not None:
                kept.append(feed)
            yield feed
        if count != self.parts[index].count:
            raise UsageError(f"the data changed while they were used: {count} samples are left of a part")
        self._shapes[index] = tuple(shapes)
        if kept is not None and index not in self._held and size <= self._left:
            self._held[index] = tuple(kept)
            self._left -= size


@dataclass(frozen=True, eq=False)
class Feeds:
    """Feeds in order, each an array per input with the batch axis; they can be iterated many times.

    Attributes:
        items: The feeds.
        source: Where they come from, for people.
        labels: What a user says of the samples, in the order of the feeds' rows, or None: class indices, or
            whatever a metric wants.
        stackable: Whether each feed is one sample of a model whose batch size is free.
        unused: Names of arrays where they come from that are no inputs of the model, nor labels.
    """

    items: Items
    source: str
    labels: Array | None = None
    stackable: bool = False
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Feed]:
        return iter(self.items)

    def __getitem__(self, index: int) -> Feed:
        return self.items[index]

    def where(self, index: int) -> str:
        """Where a feed comes from, for people: "digits.npz, sample 3"."""
        parts = self.items.parts if isinstance(self.items, FeedSource) else ()
        before = 0
        for part in parts:
            if index < before + part.count:
                return f"{part.name or self.source}, sample {index - before}"
            before += part.count
        return f"{self.source}, sample {index}"

    def shapes(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """The different shapes among the feeds."""
        items = self.items
        found = items.shapes() if isinstance(items, FeedSource) else map(_shapes, items)
        return tuple(dict(shapes) for shapes in dict.fromkeys(found))

    def largest(self) -> Feed:
        """A feed of the shapes that hold the most numbers; the first of them."""
        most = max(self.shapes(), key=lambda shapes: sum(map(math.prod, shapes.values())))
        return next(feed for feed in self.items if dict(_shapes(feed)) == most)

    def batches(self, size: int) -> Iterator[Feed]:
        """The feeds, `size` neighbours stacked into one where that is possible."""
        group: list[Feed] = []
        for feed in self.items:
            if group and (len(group) == size or not self.stackable or not _alike(group[0], feed)):
                yield _stack(group)
                group = []
            group.append(feed)
        if group:
            yield _stack(group)

    def first(self, count: int | None) -> Feeds:
        """The first `count` feeds, or all."""
        if count is None or count >= len(self):
            return self
        short = Part(len(self), partial(iter, self.items)).first(count)
        labels = self.labels if self.labels is None else self.labels[: sum(self.labels_each()[:count])]
        return replace(self, items=FeedSource([short], hold=0), labels=labels)

    def spread(self, count: int) -> Feeds:
        """So many of the feeds, or all, one of each of as many stretches; those of a large set are kept.

        Where in its stretch a feed stands is different from one to the next: samples are often sorted, or
        their classes come in turn.
        """
        most = len(self)
        if count >= most:
            return self
        ends = [k * most // count for k in range(count + 1)]
        places = [
            begin + int(k * _GOLDEN % 1 * (end - begin)) for k, (begin, end) in enumerate(pairwise(ends))
        ]
        return self._picked(places, hold=HELD)

    def halves(self) -> tuple[Feeds, Feeds]:
        """The feeds in two halves, two by two in turn: samples are often sorted, and some belong in pairs."""
        places = range(len(self))
        first, second = ([k for k in places if k // 2 % 2 == half] for half in (0, 1))
        return self._picked(first), self._picked(second)

    def _picked(self, places: Sequence[int], *, hold: int = 0) -> Feeds:
        """The feeds at these places, which rise."""
        part = Part(len(places), partial(_at, self.items, frozenset(places)))
        labels = self.labels
        if labels is not None and len(places) < len(self):
            ends = list(accumulate(self.labels_each()))
            begins = [0, *ends[:-1]]
            labels = np.concatenate([labels[:0], *(labels[begins[k] : ends[k]] for k in places)])
        return replace(self, items=FeedSource([part], hold=hold), labels=labels)

    def labels_each(self) -> list[int]:
        """How many of the labels each feed has."""
        labels = self.labels
        assert labels is not None
        parts = self.items.parts if isinstance(self.items, FeedSource) else ()
        if parts and all(part.labels is not None for part in parts):
            return [len(p.labels) // p.count for p in parts if p.labels is not None for _ in range(p.count)]
        if len(labels) % len(self) == 0:
            return [len(labels) // len(self)] * len(self)
        return [rows(feed) for feed in self]

    def apart(self, each: int) -> tuple[Feeds, Feeds]:
        """The feeds without a share of 1/`each`, and those: two neighbours of every 2 `each` feeds.

        They are taken from everywhere, for samples are often sorted; two by two, for some belong in pairs;
        and not at one distance, for classes may come in turn. Of fewer than 2 `each` it is one.
        """
        places = range(len(self))
        if len(self) < 2 * each:
            chosen = set(places[each - 1 :: each])
        else:
            chosen = {k for k in places if (k // 2 + k // (2 * each)) % each == each - 1}
        return self._picked([k for k in places if k not in chosen]), self._picked(sorted(chosen))


def first_parts(parts: Iterable[Part], count: int | None) -> list[Part]:
    """The parts that hold the first `count` feeds, or all; no more of them are drawn than it takes."""
    taken: list[Part] = []
    left = count
    for part in parts if left is None or left > 0 else ():
        taken.append(part if left is None else part.first(left))
        if left is not None:
            left -= taken[-1].count
            if left <= 0:
                break
    return taken


def join(parts: Sequence[Part], source: str, *, stackable: bool, hold: int = HELD) -> Feeds:
    """The feeds of all parts, with their labels.

    Raises:
        UsageError: Some parts have labels and others have none.
    """
    unused = tuple(dict.fromkeys(name for part in parts for name in part.unused))
    return Feeds(FeedSource(parts, hold=hold), source, _labels(parts, source), stackable, unused)


def labels_per_feed(labels: Array, count: int, where: str) -> Array:
    """The labels of `count` feeds, checked: the same number for each feed.

    Raises:
        UsageError: They are not.
    """
    if count == 0 or not labels.ndim or len(labels) % count:
        raise UsageError(f"{where}: {labels.shape} labels do not fit {count} samples")
    return labels


def rows(feed: Feed) -> int:
    """The samples in a feed: the first axis of the first input that has one."""
    return next((array.shape[0] for array in feed.values() if array.ndim), 1)


def nbytes(feed: Feed) -> int:
    """Bytes of the arrays' numbers."""
    return sum(array.nbytes for array in feed.values())


def _labels(parts: Sequence[Part], source: str) -> Array | None:
    labels = [part.labels for part in parts if part.labels is not None]
    if labels and len(labels) < len(parts):
        raise UsageError(f"only some of the files in {source} have labels")
    return np.concatenate(labels) if labels else None


def _at(items: Items, places: frozenset[int]) -> Iterator[Feed]:
    return (feed for place, feed in enumerate(items) if place in places)


def _first(read: Callable[[], Iterator[Feed]], count: int) -> Iterator[Feed]:
    return islice(read(), count)


def _shapes(feed: Feed) -> Shapes:
    return tuple((name, array.shape) for name, array in feed.items())


def _alike(a: Feed, b: Feed) -> bool:
    return all(array.shape[1:] == b[name].shape[1:] for name, array in a.items())


def _stack(group: Sequence[Feed]) -> Feed:
    if len(group) == 1:
        return group[0]
    return {name: np.concatenate([feed[name] for feed in group]) for name in group[0]}
