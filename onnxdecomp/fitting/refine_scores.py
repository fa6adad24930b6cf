"""Maps of queries and keys fitted to those that really meet.

`rotate_scores` takes queries and keys as if any of them met; in a sentence or a picture they have a subject
in common. Here the loss is that of the pairs themselves. With E_h = I - A_h^T B it is twice what the
attention p of head h diverges by to second order,

    sum over queries q of the variance of q^T E_h k under p(k | q),

and, so that few pairs are not learnt by heart, a share of the loss as if all met. It is a quadratic in the
A_h while B stands and the other way round. Either is lessened by conjugate gradients (Hestenes and Stiefel
1952), preconditioned by the second form. What it gains: bench/results/unit_selection.md.

Where the layers before have lost something, the scores that are wanted are those of the original: then
q^T E_h k is what they are less those that q and k have by now, mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.rotate_scores import ScoreMaps
from onnxdecomp.tensor.blas_threads import one_thread

_SWEEPS, _ITERATIONS = 2, 2
"""Over A and B, and of conjugate gradients for either."""

_SHARES = (0.1, 1.0)
"""Of the loss as if all met, for held-out samples to choose among."""

_RIDGE = 1e-4
"""Of the mean variance, in the preconditioner."""


@dataclass(frozen=True, eq=False)
class AttentionSample:
    """The attention of one sample.

    Attributes:
        query: [H, n, d], as they meet the keys.
        key: [S, m, d].
        probabilities: [H, n, m]; rows of padding are zeros.
        wanted: Other queries and keys of the same shapes, whose scores are wanted; None: these.
    """

    query: Array
    key: Array
    probabilities: Array
    wanted: tuple[Array, Array] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(own.nbytes for own in (self.query, self.key, self.probabilities, *(self.wanted or ())))


def attention_loss(maps: ScoreMaps, samples: Sequence[AttentionSample], groups: Sequence[int]) -> Array:
    """[H], of each head the variance of what the scores differ by from those wanted over that of these."""
    changed, whole = np.zeros(len(groups)), np.zeros(len(groups))
    for sample in samples:
        q, k, p = _of_heads(sample, groups)
        scores = _wanted(sample, groups)
        query, key = (own.astype(q.dtype).swapaxes(1, 2) for own in (maps.query, maps.key[list(groups)]))
        less = (q @ query) @ (k @ key).swapaxes(1, 2)
        changed += np.sum(p * _centred(scores - less, p) ** 2, axis=(1, 2), dtype=np.float64)
        whole += np.sum(p * _centred(scores, p) ** 2, axis=(1, 2), dtype=np.float64)
    return changed / np.where(whole > 0, whole, 1.0)


@one_thread()
def refine_scores(
    maps: ScoreMaps,
    samples: Sequence[AttentionSample],
    held_out: Sequence[AttentionSample],
    groups: Sequence[int],
) -> ScoreMaps:
    """Maps of less loss on the samples; where that is not so on held-out ones, those of a set of keys stay.

    The losses of the result are the means of `attention_loss` over the heads, on all samples and on those
    held out.

    Args:
        maps: The start.
        samples, held_out: To fit to, and to judge by.
        groups: For each head its set of keys.
    """
    of_heads = np.asarray(groups)
    sets = len(maps.key)
    moments = _moments(samples, of_heads)
    query, key = maps.query, maps.key
    least = np.bincount(of_heads, attention_loss(maps, held_out, groups), sets)
    for share in _SHARES:
        a, b = maps.query, maps.key
        for _ in range(_SWEEPS):
            a = _descended(a, b, samples, of_heads, moments, share, queries=True)
            b = _descended(a, b, samples, of_heads, moments, share, queries=False)
        new = _balanced(a, b, of_heads, moments)
        found = np.bincount(of_heads, attention_loss(new, held_out, groups), sets)
        better: Array = np.less(found, least)
        query = np.where(better[of_heads, None, None], new.query, query)
        key = np.where(better[:, None, None], new.key, key)
        least = np.minimum(found, least)
    chosen = ScoreMaps(query, key, 0.0)
    loss = float(np.mean(attention_loss(chosen, [*samples, *held_out], groups)))
    return replace(chosen, loss=loss, held_out=float(least.sum()) / len(groups))


def _wanted(sample: AttentionSample, groups: Sequence[int] | Array) -> Array:
    """The scores that are wanted, [H, n, m]."""
    query, key = (_single(own) for own in sample.wanted or (sample.query, sample.key))
    return np.asarray(query @ key[list(groups)].swapaxes(1, 2))


def _of_heads(sample: AttentionSample, groups: Sequence[int] | Array) -> tuple[Array, Array, Array]:
    query, key, probabilities = map(_single, (sample.query, sample.key, sample.probabilities))
    return query, key[list(groups)], probabilities


def _single(values: Array) -> Array:
    """In float32, unless they are more exact: scores are of models that compute in no more than that."""
    return values.astype(np.promote_types(values.dtype, np.float32), copy=False)


def _centred(scores: Array, p: Array) -> Array:
    """Scores around the mean of each query's under p."""
    return np.asarray(scores - np.sum(p * scores, axis=2, keepdims=True))


def _moments(samples: Sequence[AttentionSample], groups: Array) -> tuple[Array, Array, int]:
    """[H, d, d] of queries, and of keys around their means under p, per query; and how many these are."""
    size = samples[0].query.shape[2]
    queries, keys = np.zeros((len(groups), size, size)), np.zeros((len(groups), size, size))
    count = 0
    for sample in samples:
        q, k, p = _of_heads(sample, groups)
        real = np.asarray(p.any(axis=2))
        means = p @ k
        queries += (q * real[:, :, None]).swapaxes(1, 2) @ q
        keys += (k * p.sum(1)[:, :, None]).swapaxes(1, 2) @ k - means.swapaxes(1, 2) @ means
        count += int(real[0].sum())
    return queries / max(count, 1), keys / max(count, 1), count


def _descended(
    a: Array,
    b: Array,
    samples: Sequence[AttentionSample],
    groups: Array,
    moments: tuple[Array, Array, int],
    share: float,
    *,
    queries: bool,
) -> Array:
    """A or B after some steps of conjugate gradients, each head's or each set's on its own."""
    of_queries, of_keys, count = moments
    sets = len(b)

    def summed(forms: Array) -> Array:
        """What the heads of a set add up to, where the map is theirs together."""
        if queries:
            return forms
        total = np.zeros((sets, *forms.shape[1:]))
        np.add.at(total, groups, forms)
        return total

    if queries:
        fixed = b[groups]
        inner, outer = fixed @ of_keys @ fixed.swapaxes(1, 2), of_queries
    else:
        inner, outer = summed(a @ of_queries @ a.swapaxes(1, 2)), summed(of_keys)
    inner, outer = _ridged(inner), _ridged(outer)
    whole = np.eye(a.shape[2])

    def gradient(maps: Array, *, of_scores: bool) -> Array:
        """Half the gradient of the loss, of the whole or of its second order alone."""
        left, right = (maps if queries else a), (b[groups] if queries else maps[groups])
        change = left.swapaxes(1, 2) @ right - (whole if of_scores else 0.0)
        if queries:
            total = share * count * (right @ of_keys @ change.swapaxes(1, 2) @ of_queries)
        else:
            total = share * count * (left @ of_queries @ change @ of_keys)
        one, other = (own.astype(_single(samples[0].query).dtype) for own in (left, right))
        for sample in samples:
            q, k, p = _of_heads(sample, groups)
            scores = (q @ one.swapaxes(1, 2)) @ (other @ k.swapaxes(1, 2))
            pulled = p * _centred(scores - _wanted(sample, groups) if of_scores else scores, p)
            if queries:
                total += other @ ((pulled @ k).swapaxes(1, 2) @ q)
            else:
                total += one @ (q.swapaxes(1, 2) @ (pulled @ k))
        return summed(total)

    def conditioned(residual: Array) -> Array:
        half = np.linalg.solve(inner, residual)
        return np.asarray(np.linalg.solve(outer, half.swapaxes(1, 2)).swapaxes(1, 2))

    def product(x: Array, y: Array) -> Array:
        return np.asarray(np.einsum("hij,hij->h", x, y)[:, None, None])

    x = (a if queries else b).copy()
    residual = -gradient(x, of_scores=True)
    direction = conditioned(residual)
    size = product(residual, direction)
    for _ in range(_ITERATIONS):
        curved = gradient(direction, of_scores=False)
        curvature = product(direction, curved)
        length = np.where(curvature > 0, size / np.where(curvature > 0, curvature, 1.0), 0.0)
        x += length * direction
        residual = residual - length * curved
        z = conditioned(residual)
        previous, size = size, product(residual, z)
        direction = z + np.where(previous > 0, size / np.where(previous > 0, previous, 1.0), 0.0) * direction
    return x


def _ridged(forms: Array) -> Array:
    n = forms.shape[-1]
    means = np.trace(forms, axis1=1, axis2=2)[:, None, None] / n
    return np.asarray(forms + np.where(means > 0, _RIDGE * means, 1.0) * np.eye(n))


def _balanced(a: Array, b: Array, groups: Array, moments: tuple[Array, Array, int]) -> ScoreMaps:
    """The same products, the numbers of the mean query as large as those of the key."""
    queries = np.einsum("hrd,hde,hre->hr", a, moments[0], a, optimize=True)
    keys = np.einsum("hrd,hde,hre->hr", b[groups], moments[1], b[groups], optimize=True)
    totals = np.zeros((2, len(b), a.shape[1]))
    np.add.at(totals[0], groups, queries)
    np.add.at(totals[1], groups, keys)
    usable = (totals > 0).all(axis=0)
    scale = np.where(usable, totals[1] / np.where(usable, totals[0], 1.0), 1.0) ** 0.25
    return ScoreMaps(a * scale[groups][:, :, None], b / scale[:, :, None], 0.0)
