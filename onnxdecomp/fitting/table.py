"""Tables: a matrix W [V, D] of a vocabulary whose rows are looked up, multiplied with, or both.

Rows are not used alike: a lookup reads row v as often as its token comes, and a product W x weighs all rows
by the second moment G of its inputs. With shares p of the tokens, What = A B loses

    a tr(E G ET) + b sum_v p_v |e_v|²,   E = W - A B with rows e_v,

so row v has the metric M_v = a G + b p_v I, and one pair of factors serves both uses of a tied table. For a
basis B the best row is w_v M_v BT (B M_v BT)^-1, which is diagonal where B BT = I and B G BT is diagonal;
for rows A the best basis solves the Sylvester equation a AT A B G + b AT P A B = a AT W G + b AT P W. The two
take turns. Tokens that come equally often share a metric, so everything is done in D x D, a Gram matrix for
each frequency: the size of the vocabulary counts in one pass over the table and in the last product only.

Weighing rows by frequency: Chen et al. 2018 (GroupReduce, arXiv 1806.06950), there in blocks of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import MatMul
from onnxdecomp.tensor.blas_threads import one_thread, threads_for

SMOOTHINGS = (0.1, 0.3, 0.6, 1.0)
"""Shares of the lookups that are spread over all rows alike; held-out tokens choose among them."""

_UNJUDGED = 0.3
"""The share where no tokens were held out."""

_GRAMS = 256 << 20
"""Bytes that the Gram matrices of the frequencies may take."""

_MOST = 16
"""Frequencies that are told apart at most."""

_SWEEPS, _FEW = 10, 3
_BLOCK = 1 << 22
_TINY = 1e-10


@dataclass(frozen=True, eq=False)
class Uses:
    """How the rows of a table are used, summed over those who use it.

    Attributes:
        counts: Lookups of each row, [V]; None where none are made, or none are known.
        second: E[x xT] of the inputs of products, [D, D], shrunk towards a multiple of I; None without them.
    """

    counts: Array | None = None
    second: Array | None = None


@dataclass(frozen=True, eq=False)
class TableFit:
    """Factors of a table.

    Attributes:
        rows, basis: A [V, r] and B [r, D], in the table's type.
        looked_up, multiplied: The relative losses of the two uses; None of one that there is not.
        smoothing: See SMOOTHINGS.
    """

    rows: Array
    basis: Array
    looked_up: float | None
    multiplied: float | None
    smoothing: float


@one_thread()
def fit_table(table: Array, rank: int, uses: Uses, held_out: Uses | None = None) -> TableFit:
    """The factors of least loss, both uses' losses relative to what they use, added up.

    Args:
        table: W [V, D], V >= D.
        rank: At most D.
        uses: To fit to.
        held_out: Other lookups, by which the smoothing is chosen; they are fitted to as well, then.
    """
    smoothing, counts = _UNJUDGED, uses.counts
    if counts is not None and held_out is not None and held_out.counts is not None:
        smoothing = _smoothing(table, rank, counts, held_out.counts)
        counts = counts + held_out.counts
    return _fitted(_problem(table, counts, uses.second, smoothing), table, rank, smoothing)


def table_chain(found: TableFit, layer: Layer, mean: Array | None = None) -> Chain:
    """The factors as the chain of a layer that looks rows up, weight [D, V], or multiplies, weight [V, D].

    Args:
        found: The fit.
        layer: One of its users.
        mean: E[x] of a product's inputs, whose error the bias makes up for; None leaves the bias.
    """
    rows, basis = found.rows, found.basis
    if layer.lookup:
        return Chain((MatMul(rows, "first"), MatMul(basis, "last")), layer.bias, layer.inputs)
    bias = layer.bias
    if mean is not None:
        error = layer.weight @ mean - rows @ (basis @ mean)
        bias = (error if bias is None else bias + error).astype(layer.weight.dtype)
    return Chain((MatMul(basis.T, "first"), MatMul(rows.T, "last")), bias, layer.inputs)


@dataclass(frozen=True, eq=False)
class _Problem:
    """The loss in D x D.

    Attributes:
        of_row: The class of each row, [V].
        shares: b p of a row of each class, [C].
        grams: sum w wT of the rows of each class, [C, D, D].
        second: a G, [D, D].
    """

    of_row: Array
    shares: Array
    grams: Array
    second: Array

    @cached_property
    def values(self) -> tuple[Array, Array]:
        """Eigenvalues and vectors of a G."""
        with threads_for(len(self.second)):
            values, vectors = np.linalg.eigh(self.second)
        return np.maximum(values, 0), vectors


def _problem(table: Array, counts: Array | None, second: Array | None, smoothing: float) -> _Problem:
    size, width = table.shape
    of_row, known = np.zeros(size, np.intp), np.zeros(1)
    if counts is not None and counts.any():
        most = int(np.clip(_GRAMS // (8 * width * width), 2, _MOST))
        of_row, known = _classes(counts, most)
    grams = np.stack([_gram(table, np.flatnonzero(of_row == index)) for index in range(len(known))])
    sizes = np.bincount(of_row, minlength=len(known))
    shares = known * 0.0
    if counts is not None:
        total = float(known @ sizes)
        shares = (1 - smoothing) * known / total + smoothing / size if total else np.full(1, 1 / size)
        shares = shares / max(float(shares @ np.trace(grams, axis1=1, axis2=2)), _TINY)
    metric = np.zeros((width, width))
    if second is not None:
        metric = second / max(float(np.sum(grams.sum(0) * second)), _TINY)
    return _Problem(of_row, shares, grams, metric)


def _classes(counts: Array, most: int) -> tuple[Array, Array]:
    """The class of each row, and the mean count of each class: rows that never came are one of their own."""
    found = np.unique(counts[counts > 0])
    if len(found) >= most:
        found = np.geomspace(found[0], found[-1] + 1, most)[:-1]
    of_row = np.searchsorted(found, counts, side="right")
    sizes = np.bincount(of_row, minlength=len(found) + 1)
    left = np.flatnonzero(sizes)
    means = np.bincount(of_row, counts)[left] / sizes[left]
    return np.searchsorted(left, of_row), means


def _gram(table: Array, rows: Array) -> Array:
    """sum w wT over these rows, [D, D]."""
    width = table.shape[1]
    total = np.zeros((width, width))
    step = max(1, _BLOCK // width)
    for start in range(0, len(rows), step):
        block = table[rows[start : start + step]]
        with threads_for(width):
            total += block.T @ block
    return total


def _fitted(posed: _Problem, table: Array, rank: int, smoothing: float) -> TableFit:
    least, best = np.inf, np.zeros((0, 0))
    for start in _starts(posed, rank):
        basis, loss = _alternated(posed, start, _FEW)
        if loss < least:
            least, best = loss, basis
    basis, _ = _alternated(posed, best, _SWEEPS)
    maps = _maps(posed, basis)
    rows = np.empty((len(table), rank), table.dtype)
    step = max(1, _BLOCK // table.shape[1])
    for index, own in enumerate(maps):
        places = np.flatnonzero(posed.of_row == index)
        for begin in range(0, len(places), step):
            at = places[begin : begin + step]
            rows[at] = table[at] @ own.T.astype(table.dtype)
    looked_up, multiplied = _losses(posed, basis, maps)
    # The basis has rows of norm 1; each column of the other factor and its row get the same norm.
    scale = np.sqrt(np.sqrt(np.einsum("vr,vr->r", rows, rows, dtype=np.float64)))
    scale = np.maximum(scale, 1e-4 * float(scale.max(initial=0.0)) or 1.0)
    rows /= scale.astype(table.dtype)
    return TableFit(
        rows,
        (basis * scale[:, None]).astype(table.dtype),
        looked_up if posed.shares.any() else None,
        multiplied if posed.second.any() else None,
        smoothing,
    )


def _starts(posed: _Problem, rank: int) -> list[Array]:
    """The bases [r, D] that are best for one metric of all rows, and for all rows alike."""
    plain = posed.grams.sum(0)
    weights = np.trace(posed.grams, axis1=1, axis2=2)
    share = float(posed.shares @ weights) / max(float(weights.sum()), _TINY)
    values, vectors = posed.values
    root = np.sqrt(values + share + (_TINY * float(values[-1] + share) or 1.0))
    colour, whiten = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
    looked_up = np.einsum("c,cij->ij", posed.shares, posed.grams)
    found = [_top(colour @ plain @ colour, rank) @ whiten, _top(plain, rank)]
    return [*found, _top(looked_up, rank)] if looked_up.any() else found


def _top(symmetric: Array, rank: int) -> Array:
    """The eigenvectors of the largest eigenvalues, as rows."""
    with threads_for(len(symmetric)):
        return np.asarray(np.linalg.eigh((symmetric + symmetric.T) / 2)[1][:, ::-1][:, :rank].T)


def _alternated(posed: _Problem, basis: Array, sweeps: int) -> tuple[Array, float]:
    """The basis after some turns, never worse, and its loss."""
    basis = _straight(posed, basis)
    loss = sum(_losses(posed, basis, _maps(posed, basis)))
    for _ in range(sweeps if loss > 0 else 0):
        moved = _straight(posed, _moved(posed, _maps(posed, basis)))
        now = sum(_losses(posed, moved, _maps(posed, moved)))
        if not now < loss * (1 - 1e-5):
            break
        basis, loss = moved, now
    return basis, loss


def _straight(posed: _Problem, basis: Array) -> Array:
    """The same space with B BT = I and B G BT diagonal."""
    rows = scipy.linalg.qr(basis.T, mode="economic", check_finite=False)[0].T
    if not posed.second.any():
        return np.asarray(rows)
    inner = rows @ posed.second @ rows.T
    with threads_for(len(inner)):
        return np.asarray(np.linalg.eigh((inner + inner.T) / 2)[1].T @ rows)


def _maps(posed: _Problem, basis: Array) -> list[Array]:
    """What makes the factors' rows of the table's, [r, D] of each class: (B M BT)^-1 B M."""
    weighed = basis @ posed.second
    inner = np.einsum("rd,rd->r", weighed, basis)
    if not posed.shares.any():
        return [weighed / np.maximum(inner, _TINY * inner.max())[:, None]]
    return [(weighed + share * basis) / (inner + share)[:, None] for share in posed.shares]


def _moved(posed: _Problem, maps: Sequence[Array]) -> Array:
    """The best basis for the rows that these maps make."""
    rank, width = maps[0].shape
    once, often = np.zeros((rank, rank)), np.zeros((rank, rank))
    right = np.zeros((rank, width))
    for own, gram, share in zip(maps, posed.grams, posed.shares, strict=True):
        seen = own @ gram
        square = seen @ own.T
        once += square
        often += share * square
        right += seen @ posed.second + share * seen
    once[np.diag_indices(rank)] += _TINY * np.trace(once) / rank or 1.0
    shares, turn = scipy.linalg.eigh(often, once, check_finite=False)  # turnT once turn = I
    values, vectors = posed.values
    found = turn.T @ right @ vectors / (np.maximum(shares, 0)[:, None] + values + _TINY * values[-1])
    return np.asarray(turn @ found @ vectors.T)


def _losses(posed: _Problem, basis: Array, maps: Sequence[Array]) -> tuple[float, float]:
    """What lookups and products lose."""
    looked_up = multiplied = 0.0
    for own, gram, share in zip(maps, posed.grams, posed.shares, strict=True):
        left = np.eye(basis.shape[1]) - own.T @ basis
        error = left.T @ gram @ left
        looked_up += share * float(np.trace(error))
        multiplied += float(np.sum(error * posed.second))
    return looked_up, multiplied


def _smoothing(table: Array, rank: int, counts: Array, held_out: Array) -> float:
    """The share of lookups, spread over all rows, that does best on tokens held out."""
    if not counts.any() or not held_out.any():
        return _UNJUDGED
    everything = _gram(table, np.arange(len(table))) / len(table)
    seen, judge = (_weighted_gram(table, own) / float(own.sum()) for own in (counts, held_out))

    def lost(smoothing: float) -> float:
        basis = _top((1 - smoothing) * seen + smoothing * everything, rank)
        return float(np.trace(judge) - np.sum((basis @ judge) * basis))

    return min(SMOOTHINGS, key=lost)


def _weighted_gram(table: Array, counts: Array) -> Array:
    rows = np.flatnonzero(counts)
    block = table[rows] * np.sqrt(counts[rows])[:, None]
    return np.asarray(block.T @ block, np.float64)
