"""The units of a channel in the order in which its readers can do without them, and what each width loses.

Backward elimination by the exact increase of the readers' quadratic losses (Hassibi and Stork 1993, "Optimal
Brain Surgeon"; Frantar and Alistarh 2022, "Optimal Brain Compression", for single weights): with P the
inverse of a reader's G and V its best weight (see `quadratic_loss`), dropping the features F and fitting the
others anew

    adds  tr(V_F P_FF^-1 V_F^T)  to the loss  and leaves  V - V_F P_FF^-1 P_F.  and  P - P_.F P_FF^-1 P_F.

So one pass from the whole width down has every width's loss. Many units go at once, so that the updates are
products of matrices: among three times as many candidates they are eliminated one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.quadratic_loss import Problem, problem, solved_positive
from onnxdecomp.tensor.blas_threads import one_thread, threads_for

SHRINKAGE = 1e-3
"""Of the fits along the pass (see `problem`)."""

_AT_ONCE = 32
"""One in so many of the units that are left go at once."""

_CANDIDATES = 3
"""Times as many are candidates."""

_JUDGED = 16
"""Widths at which held-out rows are asked."""


@dataclass(frozen=True, eq=False)
class ReaderMoments:
    """What a layer that reads the channel sees, and the layer itself.

    Attributes:
        train, held_out: Moments of its rows, as for `fit`.
        weight: Its own, [g, T/g, D].
        units: int [g, D], the unit that each feature belongs to; -1: it always stays.
        bias: Its own, [T], if it has one.
        centred: Give the means to the bias; else the layer's own bias stays and the wanted outputs are
            without it.
    """

    train: Moments
    held_out: Moments | None
    weight: Array
    units: Array
    bias: Array | None = None
    centred: bool = True


@dataclass(frozen=True, eq=False)
class UnitOrder:
    """Units in the order in which they stay.

    Attributes:
        order: int [U]; of width K the first K stay.
        losses: [U + 1], what width K loses: the sum over the readers of E |y - V x|² over E |y|², V fitted
            to the features that are left. It falls with K; exact at some widths, between them interpolated.
        held_out: The same on held-out rows, of fits to the others; None where a reader has none.
    """

    order: Array
    losses: Array
    held_out: Array | None


@one_thread()
def unit_order(
    readers: Sequence[ReaderMoments], width: int, *, blocks: int = 1, shrinkage: float = SHRINKAGE
) -> UnitOrder:
    """The order of a channel's units for its readers together.

    Args:
        readers: At least one.
        width: U, the number of units.
        blocks: The units are so many equal runs, of each of which equally many stay, at every width that is
            a multiple of it.
        shrinkage: Of the fits on the way.

    Raises:
        ValueError: `blocks` does not divide `width`.
    """
    if width % blocks:
        raise ValueError(f"{blocks} blocks do not divide {width} units")
    parts = [part for reader in readers for part in _tracked(reader, shrinkage)]
    judged = all(reader.held_out is not None for reader in readers)
    dropped: list[int] = []
    penalised = [sum(part.loss for part in parts)]
    widths, exact = [width], [penalised[0] - sum(part.pulled() for part in parts)]
    asked, outside = [width], [sum(part.outside() for part in parts)] if judged else []
    live = np.arange(width).reshape(blocks, -1)
    while live.size:
        chosen, increases = _worst(parts, live, max(1, live.shape[1] // _AT_ONCE))
        for part in parts:
            part.drop(chosen)
        dropped += chosen.tolist()
        penalised += (penalised[-1] + np.cumsum(increases)).tolist()
        live = live[~np.isin(live, chosen)].reshape(blocks, -1)
        widths.append(live.size)
        exact.append(penalised[-1] - sum(part.pulled() for part in parts))
        if judged and (live.size == 0 or asked[-1] - live.size >= width / _JUDGED):
            asked.append(live.size)
            outside.append(sum(part.outside() for part in parts))
    along = np.array(penalised)
    losses = _interpolated(widths, exact, along)
    held_out = _interpolated(asked, outside, along) if judged else None
    return UnitOrder(np.array(dropped[::-1], dtype=np.int64), losses, held_out)


def _interpolated(widths: Sequence[int], values: Sequence[float], along: Array) -> Array:
    """Values at all widths, U downwards, from those at some; between them they move as `along` [U + 1] does.

    Returns [U + 1] from no unit on. With fewer units never less is lost than with more.
    """
    rising = np.maximum(np.maximum.accumulate(values), 0.0)
    dropped = widths[0] - np.array(widths)
    places = np.arange(len(along))
    # A curve of their own for the places, strictly rising: equal losses count for a little each.
    path = np.maximum.accumulate(along)
    path = path + places * (1e-9 * (path[-1] - path[0]) + 1e-300)
    return np.asarray(np.interp(path, path[dropped], rising)[::-1])


def _worst(parts: Sequence[_Part], live: Array, rounds: int) -> tuple[Array, Array]:
    """The units [blocks * rounds] to drop next, so many of each block, and what each adds to the loss."""
    width = 1 + int(live.max())
    scores = np.sum([part.scores(width) for part in parts], axis=0)[live]  # [blocks, units left]
    count = min(live.shape[1], _CANDIDATES * rounds)
    near = np.argpartition(scores, count - 1, axis=1)[:, :count]
    units, owner = np.take_along_axis(live, near, axis=1).reshape(-1), np.repeat(np.arange(len(live)), count)
    local = [part.among(units) for part in parts]
    gone, chosen, increases = np.zeros(len(units), bool), [], []
    for _ in range(rounds):
        waiting = np.ones(len(live), bool)  # blocks of which none has gone in this round
        while waiting.any():
            now = np.sum([part.scores(width) for part in local], axis=0)[units]
            place = int(np.argmin(np.where(gone | ~waiting[owner], np.inf, now)))
            gone[place], waiting[owner[place]] = True, False
            chosen.append(int(units[place]))
            increases.append(max(0.0, float(now[place])))
            for part in local:
                part.drop(units[place : place + 1])
    return np.array(chosen), np.array(increases)


class _Part:
    """One group of a reader while units are dropped, its weight always the best on the features left.

    Attributes:
        inverse: P, [n, n].
        weight: V, [T', n]; of its outputs nothing but products is asked, so any rotation of them will do.
        units: int [n], those that the features belong to.
        whole: E |y|² of the reader.
    """

    def __init__(self, inverse: Array, weight: Array, units: Array, whole: float) -> None:
        self.inverse, self.weight, self.units, self.whole = inverse, weight, units, whole

    def scores(self, width: int) -> Array:
        """[width], what dropping each unit adds to the relative loss."""
        found = np.zeros(width)
        for units, places in _places(self.units):
            if places.shape[1] == 1:
                at = places[:, 0]
                found[units] = np.square(self.weight[:, at]).sum(0) / self.inverse[at, at]
            else:
                own = self.weight[:, places].transpose(1, 2, 0)  # [m, b, T']
                blocks = self.inverse[places[:, :, None], places[:, None, :]]
                solved = np.linalg.solve(blocks, own @ own.swapaxes(1, 2))
                found[units] = np.trace(solved, axis1=1, axis2=2)
        return np.asarray(found / self.whole)

    def drop(self, chosen: Array) -> Array:
        """Drops the features of these units, and says which features were left, bool [n]."""
        left = ~np.isin(self.units, chosen)
        if not left.all():
            with threads_for(len(left)):
                across = self.inverse[np.ix_(~left, left)]
                moved = np.linalg.solve(self.inverse[np.ix_(~left, ~left)], across)
                self.inverse = self.inverse[np.ix_(left, left)]
                self.inverse -= across.T @ moved
                self.weight = self.weight[:, left] - self.weight[:, ~left] @ moved
            self.units = self.units[left]
        return left

    def among(self, units: Array) -> _Part:
        """The same in few numbers, as far as scores and drops of these units go."""
        here = np.isin(self.units, units)
        weight = self.weight[:, here]
        if len(weight) > weight.shape[1]:
            weight = np.asarray(np.linalg.qr(weight, mode="r"))
        return _Part(self.inverse[np.ix_(here, here)], weight, self.units[here], self.whole)


def _places(units: Array) -> Iterator[tuple[Array, Array]]:
    """Units of equally many features b: the units [m], and where their features are, [m, b]."""
    order = np.argsort(units, kind="stable")
    order = order[np.searchsorted(units[order], 0) :]  # without those that always stay
    found, starts, counts = np.unique(units[order], return_index=True, return_counts=True)
    for count in np.unique(counts):
        which = counts == count
        yield found[which], order[starts[which][:, None] + np.arange(count)]


class _Tracked(_Part):
    """A part that knows what its weight loses, on the rows that it is fitted to and on others.

    Attributes:
        loss: Relative and with the shrinkage's part, before anything is dropped. What the groups of a reader
            have together counts for the first.
    """

    def __init__(self, posed: Problem, judge: Problem | None, own: Array, units: Array, group: int) -> None:
        second, cross = posed.second[group], posed.cross[group]
        # Of more outputs than features as many say it all.
        basis = np.linalg.qr(cross)[0] if len(cross) > len(second) else None

        def turned(weight: Array) -> Array:
            return weight if basis is None else np.asarray(basis.T @ weight)

        inverse = _inverse(second)
        wanted = turned(cross)
        super().__init__(inverse, wanted @ inverse, units, posed.energy or posed.pull or 1.0)
        constant = 0.0 if group else posed.energy + posed.pull
        self.loss = (constant - float(np.sum(self.weight * wanted))) / self.whole
        square = float(np.sum(np.square(own)))
        self._strength = posed.pull / square if posed.energy and square else 0.0
        self._own, self._square = turned(own[group]), float(np.sum(np.square(own[group])))
        if judge is not None:
            self._seen, self._wanted = judge.second[group], turned(judge.cross[group])
            self._constant = 0.0 if group else judge.energy + judge.pull
            self._judged = judge.energy or judge.pull or 1.0
        self._features = np.arange(len(units))

    def drop(self, chosen: Array) -> Array:
        left = super().drop(chosen)
        self._features = self._features[left]
        return left

    def pulled(self) -> float:
        """l |V - W|², the shrinkage's part of the relative loss."""
        apart = np.sum(np.square(self.weight)) - 2 * np.sum(self.weight * self._own[:, self._features])
        return self._strength * (float(apart) + self._square) / self.whole

    def outside(self) -> float:
        """The relative loss on held-out rows."""
        at, v = self._features, self.weight
        with threads_for(len(at)):
            products = float(np.sum((v @ self._seen[np.ix_(at, at)] - 2 * self._wanted[:, at]) * v))
        return (products + self._constant) / self._judged


def _tracked(reader: ReaderMoments, shrinkage: float) -> Iterator[_Tracked]:
    posed = problem(reader.train, reader.weight, shrinkage, centred=reader.centred)
    judge = None
    if reader.held_out is not None:
        judge = problem(reader.held_out, reader.weight, centred=reader.centred)
    for group, units in enumerate(reader.units):
        yield _Tracked(posed, judge, reader.weight, units, group)


def _inverse(second: Array) -> Array:
    """The inverse of G; with the sums' rounding it may not be positive definite, then what is below counts
    as seen as little as that."""
    try:
        inverse = solved_positive(second, np.eye(len(second)))
    except np.linalg.LinAlgError:
        with threads_for(len(second)):
            values, vectors = np.linalg.eigh(second)
            inverse = (vectors / np.maximum(values, 2 * abs(values[0]))) @ vectors.T
    return (inverse + inverse.T) / 2
