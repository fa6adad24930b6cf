"""Features eliminated from a least squares fit, whose weight and loss follow exactly.

With P the inverse of a reader's G and V its best weight (see `quadratic_loss`), dropping the features F and
fitting the others anew

    adds  tr(V_F P_FF^-1 V_F^T)  to the loss  and leaves  V - V_F P_FF^-1 P_F.  and  P - P_.F P_FF^-1 P_F.

(Hassibi and Stork 1993, "Optimal Brain Surgeon"; for groups of weights Frantar and Alistarh 2022, "Optimal
Brain Compression").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.quadratic_loss import Problem, problem
from onnxdecomp.tensor.blas_threads import LONG, threads_for

_LEAST_VARIANCE = 1e-6
"""Of the largest: outputs that vary less count as if they varied so much."""

_GONE = -2
"""The unit of a feature that was dropped."""

_FULL = 0.75
"""The part of the features up to which those that were dropped are only zeros."""

_ROWS = 512
"""Rows that are updated at a time: their products stay in a cache."""


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
        importance: [T], what the squared error of each output counts for in every loss, above 0; None: alike.
            Weights are fitted for each output by itself, so it decides what is kept, not how it is fitted.
    """

    train: Moments
    held_out: Moments | None
    weight: Array
    units: Array
    bias: Array | None = None
    centred: bool = True
    importance: Array | None = None

    @property
    def scale(self) -> Array:
        """[T], what outputs are to be multiplied by so that all of them count alike."""
        if self.importance is None:
            return np.ones(self.weight.shape[0] * self.weight.shape[1])
        return np.asarray(np.sqrt(self.importance))

    def scaled(self) -> ReaderMoments:
        """The reader with its outputs multiplied by `scale`."""
        if self.importance is None:
            return self
        scale = self.scale
        rows = scale.reshape(*self.weight.shape[:2], 1)

        def moments(m: Moments) -> Moments:
            return replace(m, yx=m.yx * rows, y=m.y * scale, yy=m.yy * scale**2)

        held_out = None if self.held_out is None else moments(self.held_out)
        bias = None if self.bias is None else self.bias * scale
        train, weight = moments(self.train), self.weight * rows
        return replace(self, train=train, held_out=held_out, weight=weight, bias=bias, importance=None)


def even_importance(moments: Moments) -> Array:
    """[T], the importance that has every output count by its error's share of its own variance.

    For outputs that are normalised behind the layer: there those of a large variance matter no more than
    others, and would decide alone.
    """
    n = max(moments.count, 1)
    variances = np.maximum(moments.yy / n - (moments.y / n) ** 2, 0.0)
    least = _LEAST_VARIANCE * float(variances.max(initial=0.0)) or 1.0
    importance = 1 / np.maximum(variances, least)
    return np.asarray(importance / importance.mean())


class Part:
    """One group of a reader while units are dropped, its weight always the best on the features left.

    Attributes:
        inverse: P, [n, n].
        weight: V, [T', n]; of its outputs nothing but products is asked, so any rotation of them will do.
        units: int [n], those that the features belong to; below 0: to none, or dropped.
        whole: E |y|² of the reader.
    """

    def __init__(self, inverse: Array, weight: Array, units: Array, whole: float) -> None:
        self.inverse, self.weight, self.units, self.whole = inverse, weight, units, whole

    def scores(self, width: int) -> Array:
        """[width], what dropping each unit adds to the relative loss."""
        return scores_of(self, self.weight, self._blocks, width)

    def _blocks(self, places: Array) -> Array:
        """The blocks [m, b, b] of the inverse at places [m, b]."""
        return np.asarray(self.inverse[places[:, :, None], places[:, None, :]])

    def drop(self, chosen: Array) -> Array:
        """Drops the features of these units, and says which features are kept in the matrices, bool [n].

        Those that are gone stay in them as zeros until they are many: moving the rest together takes as long
        as the update does.
        """
        goes = np.flatnonzero(np.isin(self.units, chosen))
        if len(goes):
            with threads_for(len(self.units)):
                rows = self.inverse[goes]
                moved = np.linalg.solve(rows[:, goes], rows)
                for start in range(0, len(self.units), _ROWS):
                    at = slice(start, start + _ROWS)
                    self.inverse[at] -= rows[:, at].T @ moved
                self.weight = self.weight - self.weight[:, goes] @ moved
            self.inverse[goes] = self.inverse[:, goes] = self.weight[:, goes] = 0.0
            self.units = self.units.copy()
            self.units[goes] = _GONE
        left: Array = self.units != _GONE
        if np.count_nonzero(left) > _FULL * len(left):
            return np.ones(len(left), bool)
        stays = np.flatnonzero(left)
        # Rows, then columns: both at once, number by number, takes several times as long.
        self.inverse, self.weight = self.inverse[stays].take(stays, axis=1), self.weight[:, stays]
        self.units = self.units[stays]
        return left

    def rotate(self, at: Array, turn: Array) -> None:
        """Puts new features in the place of those at `at` [m]: `turn` [m, m], orthogonal, times them."""
        self.inverse[at] = turn @ self.inverse[at]
        self.inverse[:, at] = self.inverse[:, at] @ turn.T
        self.weight[:, at] = self.weight[:, at] @ turn.T

    def among(self, units: Array) -> Part:
        """The same in few numbers, as far as scores and drops of these units go."""
        here = np.isin(self.units, units)
        weight = self.weight[:, here]
        if len(weight) > weight.shape[1]:
            weight = np.asarray(np.linalg.qr(weight, mode="r"))
        return Part(self.inverse[np.ix_(here, here)], weight, self.units[here], self.whole)


def scores_of(part: Part, weight: Array, blocks: Callable[[Array], Array], width: int) -> Array:
    """The scores [width] of a part's units where its weight and the blocks of its inverse are these."""
    found = np.zeros(width)
    for units, places in _places(part.units):
        if places.shape[1] == 1:
            at = places[:, 0]
            found[units] = np.square(weight[:, at]).sum(0) / blocks(places)[:, 0, 0]
        else:
            own = weight[:, places].transpose(1, 2, 0)  # [m, b, T']
            solved = np.linalg.solve(blocks(places), own @ own.swapaxes(1, 2))
            found[units] = np.trace(solved, axis1=1, axis2=2)
    return np.asarray(found / part.whole)


def _places(units: Array) -> Iterator[tuple[Array, Array]]:
    """Units of equally many features b: the units [m], and where their features are, [m, b]."""
    order = np.argsort(units, kind="stable")
    order = order[np.searchsorted(units[order], 0) :]  # without those that always stay
    found, starts, counts = np.unique(units[order], return_index=True, return_counts=True)
    for count in np.unique(counts):
        which = counts == count
        yield found[which], order[starts[which][:, None] + np.arange(count)]


class TrackedPart(Part):
    """A part that knows what its weight loses, on the rows that it is fitted to and on others.

    Attributes:
        loss: Relative and with the shrinkage's part, before anything is dropped. What the groups of a reader
            have together counts for the first.
        judged: Whether there are held-out rows.
    """

    def __init__(self, posed: Problem, judge: Problem | None, own: Array, units: Array, group: int) -> None:
        second, cross = posed.second[group], posed.cross[group]
        # Of more outputs than features as many say it all.
        basis = np.linalg.qr(cross)[0] if len(cross) > len(second) else None

        def turned(weight: Array) -> Array:
            return weight if basis is None else np.asarray(basis.T @ weight)

        inverse = inverse_of(second)
        wanted = turned(cross)
        super().__init__(inverse, wanted @ inverse, units, posed.energy or posed.pull or 1.0)
        constant = 0.0 if group else posed.energy + posed.pull
        self.loss = (constant - float(np.sum(self.weight * wanted))) / self.whole
        square = float(np.sum(np.square(own)))
        self._strength = posed.pull / square if posed.energy and square else 0.0
        self._own = np.array(turned(own[group]), np.float64)
        self._square = float(np.sum(np.square(own[group])))
        self.judged = judge is not None
        if judge is not None:
            self._seen, self._wanted = judge.single[group], turned(judge.cross[group])
            self._constant = 0.0 if group else judge.energy + judge.pull
            self._held_whole = judge.energy or judge.pull or 1.0
        self._features = np.arange(len(units))

    def drop(self, chosen: Array) -> Array:
        left = super().drop(chosen)
        if not left.all():
            self._features, self._own = self._features[left], self._own[:, left]
        return left

    def rotate(self, at: Array, turn: Array) -> None:
        super().rotate(at, turn)
        self._own[:, at] = self._own[:, at] @ turn.T
        at = self._features[at]
        if self.judged:
            self._seen[at] = turn @ self._seen[at]
            self._seen[:, at] = self._seen[:, at] @ turn.T
            self._wanted[:, at] = self._wanted[:, at] @ turn.T

    def pulled(self) -> float:
        """l |V - W|², the shrinkage's part of the relative loss; what was dropped is zero in V."""
        apart = np.vdot(self.weight, self.weight) - 2 * np.vdot(self.weight, self._own)
        return self._strength * (float(apart) + self._square) / self.whole

    def outside(self) -> float:
        """The relative loss on held-out rows."""
        at, v = self._features, self.weight
        with threads_for(len(at)):
            seen = self._seen if len(at) == len(self._seen) else self._seen[at].take(at, axis=1)
            products = float(np.sum((v.astype(seen.dtype) @ seen - 2 * self._wanted[:, at]) * v))
        return (products + self._constant) / self._held_whole


def tracked(reader: ReaderMoments, shrinkage: float) -> Iterator[TrackedPart]:
    """The groups of a reader, nothing dropped so far, their weights fitted at this shrinkage."""
    reader = reader.scaled()
    posed = problem(reader.train, reader.weight, shrinkage, centred=reader.centred)
    judge = None
    if reader.held_out is not None:
        judge = problem(reader.held_out, reader.weight, centred=reader.centred)
    for group, units in enumerate(reader.units):
        yield TrackedPart(posed, judge, reader.weight, units, group)


def inverse_of(second: Array) -> Array:
    """The inverse of G.

    With the sums' rounding G may not be positive definite; then directions seen less than that tells count as
    seen so little.
    """
    with threads_for(len(second)):
        try:
            inverse = _by_halves(second)
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(second)
            inverse = (vectors / np.maximum(values, 2 * abs(values[0]))) @ vectors.T
    return (inverse + inverse.T) / 2


def _by_halves(second: Array) -> Array:
    """The inverse of a positive definite matrix, by products of its halves where it is large.

    Raises:
        numpy.linalg.LinAlgError: It is not positive definite.
    """
    if len(second) <= LONG:
        return _by_factor(second)
    half = len(second) // 2
    across = second[:half, half:]
    first = _by_halves(second[:half, :half])
    moved = first @ across
    last = _by_halves(second[half:, half:] - across.T @ moved)
    corner = -moved @ last
    return np.block([[first - corner @ moved.T, corner], [corner.T, last]])


def _by_factor(second: Array) -> Array:
    """The inverse of a positive definite matrix by its Cholesky factor.

    Raises:
        numpy.linalg.LinAlgError: It is not positive definite.
    """
    from scipy.linalg import lapack

    factor, refused = lapack.dpotrf(second, lower=1)
    if refused:
        raise np.linalg.LinAlgError("not positive definite")
    lower, _ = lapack.dpotri(factor, lower=1)
    lower = np.tril(lower)
    return np.asarray(lower + np.tril(lower, -1).T)
