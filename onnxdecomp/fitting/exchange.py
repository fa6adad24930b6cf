"""Units exchanged for others while that lessens the loss, where there are few of them.

Local search as in OSSCAR (Meng et al. 2024): of the units outside, those that would take most off the loss
are tried one after the other, each against the unit that can best be spared then. The sweep operator (Beaton
1964) takes features in and out of the regression: of those that are in, the matrix holds -P and V, of the
others what those leave unexplained (see `elimination`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.elimination import Part, ReaderMoments, scores_of
from onnxdecomp.fitting.quadratic_loss import problem
from onnxdecomp.tensor.blas_threads import one_thread

_TRIED = 4
"""Units from outside in each round."""

_LEAST = 1e-4
"""Of what the exchanged units explain: less is not worth an exchange."""

FEATURES = 1200
"""Of all readers together, up to which an exchange takes milliseconds."""


@one_thread()
def exchanged(
    readers: Sequence[ReaderMoments], width: int, units: Array, *, blocks: int = 1, shrinkage: float
) -> Array:
    """Units [K], sorted, that lose no more than those given.

    Args:
        readers, width, blocks, shrinkage: As for `unit_order`.
        units: Those that stay, [K].
    """
    parts = [part for reader in readers for part in _swept(reader, shrinkage)]
    inside = np.zeros(width, bool)
    inside[units] = True
    for part in parts:
        part.sweep(np.isin(part.units, [-1, *units]))
    block = np.arange(width) // (width // blocks)

    def scores() -> Array:
        return np.asarray(np.sum([part.scores(width) for part in parts], axis=0))

    def toggle(unit: int) -> None:
        for part in parts:
            part.sweep(part.units == unit)
        inside[unit] = not inside[unit]

    for _ in range(2 * width):
        gains = np.where(inside, -np.inf, scores())
        for comes in map(int, np.argsort(-gains)[:_TRIED]):
            if not gains[comes] > 0:
                return np.flatnonzero(inside)
            # What has just come could go for what it has gained.
            after = np.sum([part.scores_with(comes, width) for part in parts], axis=0)
            after = np.where(inside & (block == block[comes]), after, np.inf)
            goes = int(np.argmin(after))
            if gains[comes] - after[goes] > _LEAST * gains[comes]:
                toggle(comes)
                toggle(goes)
                break
        else:
            break
    return np.flatnonzero(inside)


class _Swept(Part):
    """A part of which features can be taken in and out; none is in at first."""

    def sweep(self, at: Array) -> None:
        """Takes these features, bool [n], in, or out if they are in; all of them must be alike."""
        if not at.any():
            return
        inverse = np.linalg.inv(self.inverse[np.ix_(at, at)])
        sign = 1.0 if inverse[0, 0] > 0 else -1.0
        moved = inverse @ self.inverse[at]
        own = self.weight[:, at]
        self.inverse -= self.inverse[:, at] @ moved
        self.inverse[at], self.inverse[:, at] = sign * moved, sign * moved.T
        self.inverse[np.ix_(at, at)] = -inverse
        self.weight -= own @ moved
        self.weight[:, at] = sign * own @ inverse

    def scores(self, width: int) -> Array:
        return np.abs(super().scores(width))

    def scores_with(self, unit: int, width: int) -> Array:
        """The scores of the others if this unit, which is out, were in: without a sweep of the whole."""
        at = self.units == unit
        if not at.any():
            return self.scores(width)
        rows = self.inverse[at]
        moved = np.linalg.solve(rows[:, at], rows)

        def blocks(places: Array) -> Array:
            across = rows[:, places].transpose(1, 2, 0) @ moved[:, places].swapaxes(0, 1)
            found = self._blocks(places) - across
            found[at[places[:, 0]]] = np.eye(places.shape[1])  # its own, which nobody asks for
            return np.asarray(found)

        return np.abs(scores_of(self, self.weight - self.weight[:, at] @ moved, blocks, width))


def _swept(reader: ReaderMoments, shrinkage: float) -> list[_Swept]:
    reader = reader.scaled()
    posed = problem(reader.train, reader.weight, shrinkage, centred=reader.centred)
    whole = posed.energy or posed.pull or 1.0
    parts = []
    for second, cross, units in zip(posed.second, posed.cross, reader.units, strict=True):
        few = np.asarray(np.linalg.qr(cross, mode="r")) if len(cross) > len(second) else cross
        parts.append(_Swept(second, few.copy(), units, whole))
    return parts
