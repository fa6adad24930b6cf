"""Queries and keys of attention cut inside their heads: the scores q^T k from fewer numbers.

Where queries and keys meet in pairs as if they were independent, with second moments Gq and Gk, scores
q^T A^T B k from maps of rank d' differ from q^T k by |Gq^1/2 (I - A^T B) Gk^1/2|² on average. Least is
A^T B = Gk^1/2 V V^T Gk^-1/2, with V the first eigenvectors of Gk^1/2 Gq Gk^1/2, whose eigenvalues S² tell the
loss. Heads that share their keys add up their Gq, and have A in common as well. A and B are balanced: what
they make of queries and keys has the second moment S. (MoDeGPT, Lin et al. 2024, and CORP, Zhang and Yang
2026, select coordinates instead.)

Softmax does not see what all keys of a query have in common, and sees little of keys that get no weight. To
second order the divergence between its probabilities p and those of other scores is half the variance of the
difference under p. So keys are best taken around their mean under p and weighted by it, see `score_moments`.

Rotary positions turn pairs of coordinates against each other and forbid other maps: there whole pairs stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.tensor.blas_threads import one_thread

_FLOOR = 1e-7
"""Of the largest eigenvalue: directions seen less count as seen so much."""


@dataclass(frozen=True, eq=False)
class ScoreMoments:
    """Second moments of the queries and keys of heads, biases included.

    Attributes:
        query: [S, d, d], for each set of keys 0 … S - 1 the mean of q q^T, summed over its heads.
        key: [S, d, d], the mean of k k^T.
        count: Of queries that it is the mean of.
    """

    query: Array
    key: Array
    count: int

    def __add__(self, other: ScoreMoments) -> ScoreMoments:
        count = self.count + other.count
        share = other.count / count if count else 0.0
        query, key = ((1 - share) * a + share * b for a, b in zip(self._both, other._both, strict=True))
        return ScoreMoments(query, key, count)

    @property
    def _both(self) -> tuple[Array, Array]:
        return self.query, self.key


@dataclass(frozen=True, eq=False)
class ScoreMaps:
    """Maps of queries and keys to heads of size d'; weights and biases of both are to be multiplied by them.

    Attributes:
        query: A, [H, d', d]; in closed form the same for all heads that share keys.
        key: B, [S, d', d].
        loss: Of the scores, E (q^T k - q^T A^T B k)² over E (q^T k)², all heads together.
        held_out: The same on samples that they were not fitted to; None where there are none.
    """

    query: Array
    key: Array
    loss: float
    held_out: float | None = None


def score_moments(
    query: Array, key: Array, groups: Sequence[int], probabilities: Array | None = None
) -> ScoreMoments:
    """Moments of the queries and keys of some samples.

    Args:
        query: [N, H, n, d].
        key: [N, S, m, d].
        groups: For each of the H heads its set of keys, 0 … S - 1.
        probabilities: [N, H, n, m], what the softmax makes of the scores; keys that a query must not see have
            none. A row of zeros (padding) is left out. Without them keys count alike, around their mean.
    """
    sets, size = key.shape[1], key.shape[3]
    of_heads = np.asarray(groups)
    queries, keys = np.zeros((sets, size, size)), np.zeros((sets, size, size))
    count = 0
    for sample, (q_heads, k_heads) in enumerate(zip(query, key, strict=True)):
        if probabilities is None:
            p_heads = np.full((len(of_heads), q_heads.shape[1], k_heads.shape[1]), 1 / k_heads.shape[1])
        else:
            p_heads = probabilities[sample].astype(np.float64)
        real = p_heads.any(axis=(0, 2))
        count += int(real.sum())
        for of, q, p in zip(of_heads, q_heads[:, real].astype(np.float64), p_heads[:, real], strict=True):
            k = k_heads[of].astype(np.float64)
            means = p @ k
            queries[of] += q.T @ q
            keys[of] += (k.T * p.sum(0)) @ k - means.T @ means
    heads = np.maximum(np.bincount(of_heads, minlength=sets), 1)[:, None, None]
    return ScoreMoments(queries / max(count, 1), keys / max(count, 1) / heads, count)


@one_thread()
def score_losses(moments: ScoreMoments) -> Array:
    """[d + 1], the loss of the scores at each size of the heads."""
    squares = sum(_product(*both)[0] for both in zip(moments.query, moments.key, strict=True))
    left = np.append(np.cumsum(np.asarray(squares)[::-1])[::-1], 0.0)
    return left / (left[0] or 1.0)


@one_thread()
def rotate_scores(moments: ScoreMoments, groups: Sequence[int], kept: int) -> ScoreMaps:
    """The maps that change the scores least; at the whole size the identity.

    Args:
        moments: Of the queries and keys.
        groups: For each head its set of keys.
        kept: d', the size of the heads.

    Raises:
        ValueError: The heads have no such size.
    """
    sets, size, _ = moments.key.shape
    if not 1 <= kept <= size:
        raise ValueError(f"{kept} of {size} numbers per head cannot stay")
    if kept == size:
        return ScoreMaps(np.tile(np.eye(size), (len(groups), 1, 1)), np.tile(np.eye(size), (sets, 1, 1)), 0.0)
    heads = np.maximum(np.bincount(groups, minlength=sets), 1)
    queries, keys = [], []
    for count, query, key in zip(heads, moments.query, moments.key, strict=True):
        squares, vectors, root, inverse = _product(query, key)
        first = vectors[:, :kept].T
        # The mean query of several heads is made as long as the key.
        scale = np.sqrt(np.sqrt(np.maximum(squares[:kept], _FLOOR**2 * squares[0]) / count))[:, None]
        scale = np.where(scale > 0, scale, 1.0)
        queries.append(first @ root / scale)
        keys.append(scale * (first @ inverse))
    loss = float(score_losses(moments)[kept])
    return ScoreMaps(np.stack(queries)[np.asarray(groups)], np.stack(keys), loss)


def _product(query: Array, key: Array) -> tuple[Array, Array, Array, Array]:
    """S² and V of Gq^1/2 Gk^1/2, descending, and Gk^1/2 and Gk^-1/2."""
    values, basis = np.linalg.eigh(key)
    values = np.sqrt(np.maximum(values, _FLOOR * values[-1]) if values[-1] > 0 else np.ones_like(values))
    root, inverse = (basis * values) @ basis.T, (basis / values) @ basis.T
    squares, vectors = np.linalg.eigh(root @ query @ root)
    return np.maximum(squares[::-1], 0.0), vectors[:, ::-1], root, inverse


@dataclass(frozen=True, eq=False)
class PairOrder:
    """Pairs of coordinates in the order in which they stay.

    Attributes:
        order: int [S, P], for each set of keys; of P' pairs the first P' stay.
        losses: [P + 1], what P' pairs lose of the scores, as in `ScoreMaps`.
        pairs: int [P, 2], the coordinates.
    """

    order: Array
    losses: Array
    pairs: Array

    def coordinates(self, kept: int) -> Array:
        """int [S, 2 kept], those that stay of each set, ascending; a layout in halves stays one in halves."""
        return np.sort(self.pairs[self.order[:, :kept]].reshape(len(self.order), -1), axis=1)


def pair_order(moments: ScoreMoments, pairs: Array, *, common: bool = True) -> PairOrder:
    """The order of the pairs of coordinates that rotary positions turn.

    Without the coordinates R the scores lose the sum over R x R of Gq * Gk, element by element; the pair that
    adds least goes first.

    Args:
        moments: Of queries and keys as they meet, after the rotation.
        pairs: int [P, 2].
        common: The same pairs stay in all heads, as one table of cosines and sines for all demands.
    """
    forms = moments.query * moments.key
    forms = forms[:, pairs[:, :, None, None], pairs[None, None]].sum(axis=(2, 4))  # [S, P, P]
    whole = float(forms.sum()) or 1.0
    chosen = [_eliminated(form) for form in (forms.sum(0, keepdims=True) if common else forms)]
    losses = np.sum([lost for _, lost in chosen], axis=0) / whole
    order = np.stack([order for order, _ in chosen])
    return PairOrder(np.broadcast_to(order, (len(forms), len(pairs))), losses, pairs)


def _eliminated(form: Array) -> tuple[Array, Array]:
    """The order in which what a quadratic form's sums run over stays, and the sums over the rest, [P + 1]."""
    live, dropped, lost = np.ones(len(form), bool), [], [0.0]
    across = np.zeros(len(form))  # of each with what is dropped
    for _ in range(len(form)):
        added = np.where(live, np.diag(form) + 2 * across, np.inf)
        goes = int(np.argmin(added))
        live[goes] = False
        dropped.append(goes)
        lost.append(max(lost[-1], lost[-1] + float(added[goes])))
        across += form[goes]
    return np.array(dropped[::-1]), np.array(lost[::-1])
