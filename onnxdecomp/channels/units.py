"""Units: which of those that a search began with have become one, and which cannot be left out, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnxdecomp.channels.channel import NONE
from onnxdecomp.core.layer import Array


class Broken(Exception):  # noqa: N818 - no error: it ends a search early
    """All units are frozen."""


@dataclass(eq=False)
class Units:
    """Sets of units that can only go together, by union and find.

    Attributes:
        width: Units at the beginning.
        fewer: Called when units have become one.
        reasons: Units that are frozen, and why.
        merged: Whether any have become one.
    """

    width: int
    fewer: Callable[[], None]
    reasons: list[tuple[Array, str]] = field(default_factory=list)
    merged: bool = field(init=False, default=False)
    _parent: Array = field(init=False)
    _frozen: Array = field(init=False)

    def __post_init__(self) -> None:
        # The last entry is that of NONE.
        self._parent = np.append(np.arange(self.width), NONE)
        self._frozen = np.zeros(self.width + 1, bool)

    def current(self, labels: Array) -> Array:
        """The labels with one number for units that have become one."""
        return np.asarray(self._parent[labels]) if self.merged else labels

    def freeze(self, labels: Array, reason: str) -> None:
        """These units cannot be left out.

        Raises:
            Broken: None can.
        """
        units = np.unique(self._parent[labels])
        units = units[units >= 0]
        if not units.size or self._frozen[units].all():
            return
        self._frozen[units] = True
        self.reasons.append((units, reason))
        if self._frozen[self._parent[:-1]].all():
            raise Broken(reason)

    def joined(self, a: Array, b: Array) -> Array:
        """Both labels of one tensor, of all axes that either has: where two units meet they become one."""
        a, b = self.current(a), self.current(b)
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        self.unite(a, b)
        return self.current(np.where(a == NONE, b, a))

    def unite(self, a: Array, b: Array) -> None:
        """The units of `a` are those of `b`, place by place; NONE is nothing."""
        differ = (a != b) & (a != NONE) & (b != NONE)
        if not differ.any():
            return
        pairs = np.unique(np.stack([a[differ], b[differ]], axis=1), axis=0)
        parent = self._parent
        for one, other in pairs.tolist():
            x, y = sorted((_root(parent, one), _root(parent, other)))
            parent[y] = x
        self.merged = True
        while not np.array_equal(parent[parent], parent):
            parent[:] = parent[parent]
        frozen = np.unique(parent[:-1][self._frozen[:-1]])
        self._frozen[:-1] |= np.isin(parent[:-1], frozen)
        self.fewer()

    def usable(self) -> Array:
        """bool [width]: the units that can be left out, one for all that have become one."""
        own = self._parent[:-1] == np.arange(self.width)
        return np.asarray(own & ~self._frozen[:-1])


def _root(parent: Array, unit: int) -> int:
    while parent[unit] != unit:
        unit = int(parent[unit])
    return unit
