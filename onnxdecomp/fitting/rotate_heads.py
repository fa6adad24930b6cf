"""Values and outputs of attention cut inside their heads: fewer numbers per head, found by a rotation.

What reaches the output projection O in head h is x_h, an average of the head's values with weights that sum
to one. So a map A_h [d', d] in front of O is one behind the value projection, its bias included: V's rows
become A_h V_h, and O reads A_h x_h. Heads that share their values (grouped queries) share A_h.

MoDeGPT (Lin et al. 2024) takes the singular vectors of each head's product in the metric of its inputs, as if
the heads were uncorrelated. Here directions are eliminated one by one with all heads in view: with P the
inverse of O's G and V its best weight (see `elimination`), a head can do without the direction k of its input
for |V_h k|² / k^T P_hh k more loss, O fitted anew, so that the best k is an eigenvector of the pair
(V_h^T V_h, P_hh). One pass has the loss of every size, and its bases are nested; at the size that is wanted
each head's directions are chosen once more with those of the others fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.elimination import Part, ReaderMoments, TrackedPart, inverse_of, tracked
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.quadratic_loss import problem
from onnxdecomp.fitting.select_units import RefittedReader, refit_reader
from onnxdecomp.fitting.strengths import SHRINKAGES
from onnxdecomp.fitting.unit_order import SHRINKAGE
from onnxdecomp.tensor.blas_threads import one_thread

_SWEEPS, _WORTH = 3, 0.01
"""Over the heads at most, and the share of the loss that a sweep must take off for another one to follow."""


@dataclass(frozen=True, eq=False)
class HeadBases:
    """The directions of each head in the order in which they stay.

    Attributes:
        bases: [S, d, d], orthogonal, one for each set of values; at size d' its first d' rows stay.
        groups: int [H], the set of values that each head of O's input is an average of.
        losses: [d + 1], what size d' loses: E |y - V x|² over E |y|².
        held_out: The same on held-out rows, of a fit to the others; None where there are none.
    """

    bases: Array
    groups: Array
    losses: Array
    held_out: Array | None


@dataclass(frozen=True, eq=False)
class RotatedValues:
    """Heads of a smaller size.

    Attributes:
        maps: A, [S, d', d]: V's rows and bias of each set of values are to be multiplied by it.
        output: O fitted to what they leave; its weight is [1, T, H d'], head after head.
    """

    maps: Array
    output: RefittedReader


@one_thread()
def head_bases(reader: ReaderMoments, groups: Sequence[int], *, shrinkage: float = SHRINKAGE) -> HeadBases:
    """The bases of the heads that O reads.

    Args:
        reader: O, whose features are those of the heads, head after head; its units are not looked at.
        groups: For each of its H heads the set of values 0 … S - 1 that it is an average of; (0, 1, 2, …)
            where each has its own.
        shrinkage: Of the fits on the way.

    Raises:
        ValueError: The heads do not divide the features.
    """
    of_heads, size = np.asarray(groups), _size(reader, groups)
    (part,) = tracked(replace(reader, units=np.arange(len(groups)).repeat(size)[None]), shrinkage)
    sets = 1 + int(of_heads.max())
    bases, rests = np.zeros((sets, size, size)), [np.eye(size)] * sets
    losses, outside, penalised = [part.loss - part.pulled()], _outside(part), part.loss
    for left in range(size - 1, -1, -1):
        for values in range(sets):
            turn, increase = _narrow(part, of_heads, values)
            penalised += increase
            turned = turn @ rests[values]
            bases[values, left], rests[values] = turned[-1], turned[:-1]
        losses.append(penalised - part.pulled())
        outside += _outside(part)
    return HeadBases(bases, of_heads, _falling(losses), _falling(outside) if outside else None)


def _size(reader: ReaderMoments, groups: Sequence[int]) -> int:
    heads, features = len(groups), reader.weight.shape[2]
    if reader.weight.shape[0] != 1 or features % heads:
        raise ValueError(f"{heads} heads do not divide {features} features")
    return int(features // heads)


def _outside(part: TrackedPart) -> list[float]:
    return [part.outside()] if part.judged else []


def _falling(losses: Sequence[float]) -> Array:
    """From the whole size down to from none up; smaller sizes never lose less."""
    return np.asarray(np.maximum(np.maximum.accumulate(losses), 0.0)[::-1])


def _narrow(part: Part, groups: Array, values: int) -> tuple[Array, float]:
    """Drops a direction of the heads of these values; their rotation before, and what it adds to the loss.

    The units of the part's features are their heads.
    """
    heads = np.flatnonzero(groups == values)
    at = np.stack([np.flatnonzero(part.units == head) for head in heads])
    turn, increase = _turn(part, at)
    for places in at:
        part.rotate(places, turn)
    part.units[at[:, -1]] = -1
    part.drop(np.array([-1]))
    return turn, increase


def _turn(part: Part, at: Array) -> tuple[Array, float]:
    """A rotation [m, m] whose last row is the direction that the heads at `at` [heads, m] lose least without.

    With one head it is best; with several, whose losses have no closed form together, it is the best of the
    directions of the sum of their forms. With it what it adds to the relative loss.
    """
    weights = part.weight[:, at].transpose(1, 2, 0)  # [heads, m, T']
    cross = np.einsum("amt,bnt->abmn", weights, weights, optimize=True)
    inverse = part.inverse[at[:, None, :, None], at[None, :, None, :]]
    heads = np.arange(len(at))
    loads, metric = cross[heads, heads].sum(0), inverse[heads, heads].sum(0)
    _, vectors = scipy.linalg.eigh(loads, metric)
    vectors = vectors / np.linalg.norm(vectors, axis=0)
    of_loads = np.einsum("abmn,mk,nk->kab", cross, vectors, vectors, optimize=True)
    of_inverse = np.einsum("abmn,mk,nk->kab", inverse, vectors, vectors, optimize=True)
    added = np.trace(np.linalg.solve(of_inverse, of_loads), axis1=1, axis2=2)
    best = int(np.argmin(added))
    return _completed(vectors[:, best]), max(0.0, float(added[best])) / part.whole


def _completed(last: Array) -> Array:
    """A rotation with this last row: Householder's reflection that exchanges it with the last unit vector."""
    apart = last * (-1.0 if last[-1] > 0 else 1.0)
    apart = apart - np.eye(len(last))[-1]
    return np.asarray(np.eye(len(last)) - 2 * np.outer(apart, apart) / (apart @ apart))


@one_thread()
def rotate_values(
    reader: ReaderMoments,
    groups: Sequence[int],
    kept: int,
    *,
    bases: HeadBases | None = None,
    shrinkages: Sequence[float] = SHRINKAGES,
) -> RotatedValues:
    """Heads of size `kept`, and O fitted to them; at the whole size O is repaired (see `repair`).

    Args:
        reader, groups: As for `head_bases`.
        kept: d', the size of all heads.
        bases: Where they are known already.
        shrinkages: Strengths to choose among; with no held-out rows the first is taken.

    Raises:
        ValueError: The heads do not divide the features, or have no such size.
    """
    heads, size = len(groups), _size(reader, groups)
    if not 1 <= kept <= size:
        raise ValueError(f"{kept} of {size} numbers per head cannot stay")
    if kept == size:
        maps = np.tile(np.eye(size), (1 + max(groups), 1, 1))
    else:
        bases = bases or head_bases(reader, groups)
        maps = _once_more(reader, np.asarray(groups), bases.bases[:, :kept])
    turned = rotated(reader, maps[np.asarray(groups)])
    return RotatedValues(maps, refit_reader(turned, np.arange(heads), shrinkages, cut=kept < size))


def _once_more(reader: ReaderMoments, groups: Array, maps: Array) -> Array:
    """Maps [S, d', d] of no more loss: each set's chosen anew with those of the others as they are."""
    reader = reader.scaled()
    posed = problem(reader.train, reader.weight, SHRINKAGE, centred=reader.centred)
    second, cross = posed.second[0], posed.cross[0]
    (sets, kept, size), heads = maps.shape, np.arange(len(groups))
    explained = -np.inf
    for _ in range(_SWEEPS):
        before = explained
        for values in range(sets):
            blocks = [np.eye(size) if of == values else maps[of] for of in groups]
            wanted = _columns(cross, blocks)
            inverse = inverse_of(_columns(_columns(second, blocks).T, blocks))
            part = Part(inverse, wanted @ inverse, heads.repeat([len(block) for block in blocks]), 1.0)
            found = np.eye(size)
            for _ in range(size - kept):
                turn, _ = _narrow(part, groups, values)
                found = (turn @ found)[:-1]
            changed = maps.copy()
            changed[values] = found
            now = float(np.sum(part.weight[:, part.units >= 0] * _columns(cross, changed[groups])))
            if now > explained:
                maps, explained = changed, now
        if explained - before <= _WORTH * (posed.energy + posed.pull - explained):
            break
    return maps


def _columns(rows: Array, blocks: Sequence[Array] | Array) -> Array:
    """Rows [..., H d] with the part of each head multiplied by its block [d', d]."""
    parts = np.split(rows, len(blocks), axis=-1)
    return np.concatenate([part @ block.T for part, block in zip(parts, blocks, strict=True)], axis=-1)


def rotated(reader: ReaderMoments, maps: Array) -> ReaderMoments:
    """The reader of A_h x_h, for a map A_h of each head, [H, d', d]; its weight W_h becomes W_h A_h^T."""
    heads, kept, _ = maps.shape

    def moments(m: Moments) -> Moments:
        xx = _columns(_columns(m.xx, maps).swapaxes(1, 2), maps)
        return replace(m, xx=xx, yx=_columns(m.yx, maps), x=_columns(m.x, maps))

    held_out = None if reader.held_out is None else moments(reader.held_out)
    units = np.arange(heads).repeat(kept)[None]
    weight = _columns(reader.weight, maps)
    return replace(reader, train=moments(reader.train), held_out=held_out, weight=weight, units=units)
