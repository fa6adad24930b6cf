"""The first factor that siblings have in common, fitted to what they see.

With rows x of the activation, wanted outputs y_i and B_i A in the place of the weights, the loss is

    sum over i of w_i E |y_i - B_i A x|² / E |y_i|²,

each over its energy, so that a large output does not drown the others. With L_i the best weights and G the
second moment of x, the best A at every rank are the top eigenvectors of G^½ (sum of w_i L_iT L_i) G^½, times
G^-½: reduced-rank regression (Izenman 1975) of all outputs on one input. Convolutions of different kernels
see different rows; there G is the covariance of the channels, averaged over the kernels' positions, and the
loss is brought down from that start by turns: the last factors by their normal equations, the first one by
conjugate gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.decompositions.shared import Shared, as_first, as_last, by_channel
from onnxdecomp.fitting.als import solve_last
from onnxdecomp.fitting.fit import Fit, better_of, dense_rows
from onnxdecomp.fitting.moments import Moments, merged
from onnxdecomp.fitting.quadratic_loss import Problem, as_rows, problem, solved_positive
from onnxdecomp.fitting.strengths import SHRINKAGES
from onnxdecomp.tensor.blas_threads import one_thread, threads_for

_FLOOR = 1e-9
"""Of the largest eigenvalue: below it a direction of the input counts as never seen."""

_SWEEPS, _ITERATIONS = 3, 8
"""Turns over the factors of convolutions, and of conjugate gradients in each."""

_FITTED, _LEAST = 6, 1e-12
"""Ranks of convolutions at which a curve is computed, and the least loss that scales it."""

_WORK = 4e9
"""Multiplications of an iteration of conjugate gradients, up to which they are done."""


@dataclass(frozen=True, eq=False)
class SiblingProblem:
    """The quadratics of siblings and what each of them counts.

    Attributes:
        layers: They read the same S channels or features.
        problems: Of each of them.
        weights: What the relative loss of each counts, above 0.
    """

    layers: tuple[Layer, ...]
    problems: tuple[Problem, ...]
    weights: tuple[float, ...]

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Of each layer, the weight over the energy: what its own loss counts."""
        energies = [posed.energy or posed.pull for posed in self.problems]
        return tuple(w / e if e > 0 else 0.0 for w, e in zip(self.weights, energies, strict=True))

    @property
    def is_closed(self) -> bool:
        """Whether the eigenvectors are the optimum: of matrices, which all see the same rows."""
        return all(layer.is_matrix for layer in self.layers)

    @cached_property
    def covariance(self) -> Array:
        """G [S, S]; of convolutions that of the channels, averaged."""
        s = self.layers[0].inputs
        return np.asarray(np.mean([_covariance(posed, s) for posed in self.problems], axis=0))

    @cached_property
    def directions(self) -> Array:
        """The first factors of all ranks, [S, S]: the top rows, of which each gives outputs of variance 1."""
        s = self.layers[0].inputs
        values, vectors = _eigh(self.covariance)
        values = np.sqrt(np.maximum(values, _FLOOR * values[-1]))
        values = np.where(values > 0, values, 1.0)
        colour, whiten = vectors * values @ vectors.T, vectors / values @ vectors.T
        spread = np.zeros((s, s))
        for posed, layer, share in zip(self.problems, self.layers, self.shares, strict=True):
            rows = by_channel(posed.best.reshape(layer.weight.shape)) @ colour
            spread += share * (rows.T @ rows)
        return np.ascontiguousarray(_eigh(spread)[1][:, ::-1].T @ whiten)

    def first(self, rank: int) -> Array:
        """The best first factor found, [rank, S]."""
        found = self.directions[:rank]
        if self.is_closed:
            return found
        for _ in range(_SWEEPS):
            lasts = [_last_rows(self.chain(found, k), layer) for k, layer in enumerate(self.layers)]
            better = _descended(self, found, lasts)
            if better is None:
                break
            found = better
        return found

    def chain(self, first: Array, place: int) -> Chain:
        """The layer's chain of the first factor [rank, S] and the best last one; its bias is not touched."""
        layer = self.layers[place]
        blank = np.zeros((layer.weight.size // layer.inputs, len(first)))
        return solve_last(_chain(layer, first, blank), self.problems[place])

    def losses(self, first: Array) -> tuple[float, ...]:
        """The relative loss of each layer with the first factor [rank, S]."""
        return tuple(
            max(0.0, posed.relative(dense_rows(self.chain(first, place), self.layers[place])))
            for place, posed in enumerate(self.problems)
        )

    def curve(self, ranks: Sequence[int]) -> list[tuple[float, ...]]:
        """The relative loss of each layer at each of the ranks, of convolutions without further turns.

        Of these it is computed at a few ranks, which scale the shape that the covariance of channels gives.
        """
        tails = np.stack([self._tail(place) for place in range(len(self.layers))], axis=1)
        found = tails[list(ranks)]
        if not self.is_closed:
            rising = sorted(ranks)
            places = np.linspace(0, len(rising) - 1, min(len(rising), _FITTED)).round().astype(int)
            fitted = [rising[place] for place in places]
            exact = np.array([self.losses(self.directions[:rank]) for rank in fitted])
            ratios = np.log(np.maximum(exact, _LEAST) / np.maximum(tails[fitted], _LEAST))
            scales = [np.interp(ranks, fitted, column) for column in ratios.T]
            found = np.maximum(found, _LEAST) * np.exp(np.stack(scales, axis=1))
        return [tuple(row) for row in found.tolist()]

    def _tail(self, place: int) -> Array:
        """The layer's relative loss at every rank from 0 on, [S + 1], G being the channels' covariance."""
        posed, layer = self.problems[place], self.layers[place]
        best = by_channel(posed.best.reshape(layer.weight.shape))
        seen = np.square(best @ (self.covariance @ self.directions.T)).sum(axis=0)
        left = np.append(np.cumsum(seen[::-1])[::-1], 0.0)
        whole = posed.energy or posed.pull or 1.0
        return np.asarray(np.maximum(posed.loss(posed.best) + left, 0.0) / whole)


def _chain(layer: Layer, first: Array, last: Array) -> Chain:
    """The chain of a first factor [rank, S] and the rows [T times the kernel's size, rank] of a last one."""
    return Shared().assemble(layer, (as_first(first, layer), as_last(last, layer)))


def _last_rows(chain: Chain, layer: Layer) -> Array:
    """The last factor as `_chain` takes it."""
    last = chain.weighted[-1].weight
    return last.T if layer.conv is None else by_channel(last)


def _covariance(posed: Problem, channels: int) -> Array:
    """The second moment of the channels [S, S], averaged over the kernel's positions."""
    (second,) = posed.second
    k = len(second) // channels
    return np.asarray(np.einsum("skqk->sq", second.reshape(channels, k, channels, k)) / k)


def _eigh(matrix: Array) -> tuple[Array, Array]:
    with threads_for(len(matrix)):
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return values, vectors


def _descended(posed: SiblingProblem, first: Array, lasts: Sequence[Array]) -> Array | None:
    """The first factor after conjugate gradients, the last ones [T times the kernel's size, rank] given.

    None where that is too much work.
    """
    s = first.shape[1]
    if sum(own.cross.shape[1] * own.cross.shape[2] ** 2 for own in posed.problems) > _WORK:
        return None

    def dense(a: Array, b: Array, own: Problem) -> Array:
        t = own.cross.shape[1]
        return (b @ a).reshape(t, -1, s).swapaxes(1, 2).reshape(1, t, -1)

    def adjoint(rows: Array, b: Array) -> Array:
        t = rows.shape[1]
        return np.asarray(b.T @ rows.reshape(t, s, -1).swapaxes(1, 2).reshape(-1, s))

    def gathered(parts: Sequence[Array]) -> Array:
        found = np.zeros_like(first)
        for share, rows, b in zip(posed.shares, parts, lasts, strict=True):
            found += share * adjoint(rows, b)
        return found

    pairs = list(zip(lasts, posed.problems, strict=True))
    found = first.copy()
    residual = -gathered([own.gradient(dense(found, b, own)) for b, own in pairs])
    direction, size = residual, float(np.vdot(residual, residual))
    for _ in range(_ITERATIONS):
        curved = gathered([dense(direction, b, own) @ own.second for b, own in pairs])
        curvature = float(np.vdot(direction, curved))
        if not curvature > 0:
            break
        found = found + size / curvature * direction
        residual = residual - size / curvature * curved
        previous, size = size, float(np.vdot(residual, residual))
        direction = residual + size / previous * direction
    return found


@one_thread()
def fit_first(
    layers: Sequence[Layer],
    halves: Sequence[tuple[Moments, Moments | None]],
    rank: int,
    *,
    weights: Sequence[float] = (),
    centred: Sequence[bool],
    shrinkages: Sequence[float] = SHRINKAGES,
) -> Array:
    """The first factor [rank, S] of siblings, of least loss on what they see, in the layers' dtype.

    Args:
        layers: That take the method, and read the same activation.
        halves: Moments of each layer's rows, and of held-out ones, as for `fitting.fit`.
        rank: From 1 to S.
        weights: What each layer's relative loss counts; all alike by default.
        centred: Of each layer, whether its bias takes the means (see `fitting.fit`).
        shrinkages: Strengths to choose among by the held-out rows; with none the first is taken.
    """
    counts = tuple(weights) or (1.0,) * len(layers)
    rows = [as_rows(layer.weight, layer) for layer in layers]

    def posed(moments: Sequence[Moments], shrinkage: float) -> SiblingProblem:
        own = (
            problem(of, row, shrinkage, centred=middle)
            for of, row, middle in zip(moments, rows, centred, strict=True)
        )
        return SiblingProblem(tuple(layers), tuple(own), counts)

    strength = shrinkages[0]
    held = [half for _, half in halves if half is not None]
    if len(held) == len(halves):
        judge, least = posed(held, 0.0), math.inf
        for candidate in shrinkages:
            tried = posed([train for train, _ in halves], candidate)
            first = tried.directions[:rank]
            outside = sum(
                share * own.loss(dense_rows(tried.chain(first, place), layers[place]))
                for place, (share, own) in enumerate(zip(judge.shares, judge.problems, strict=True))
            )
            if outside < least:
                strength, least = candidate, outside
    everything = posed([merged(*half) for half in halves], strength)
    first = everything.first(rank)
    chains = [everything.chain(first, place) for place in range(len(layers))]
    norm = float(np.linalg.norm(first))
    other = float(np.mean([np.linalg.norm(chain.weighted[-1].weight) for chain in chains]))
    balanced = first * math.sqrt(other / norm) if norm > 0 and other > 0 else first
    return balanced.astype(layers[0].weight.dtype)


@one_thread()
def fit_last(
    layer: Layer,
    first: Array,
    train: Moments,
    held_out: Moments | None = None,
    *,
    centred: bool = True,
    shrinkages: Sequence[float] = SHRINKAGES,
) -> Fit:
    """The layer's chain with its first factor [rank, S] given: the last one by least squares.

    Args:
        layer, train, held_out, centred, shrinkages: As for `fitting.fit`.
        first: As `fit_first` gives it.
    """
    weight = as_rows(layer.weight, layer)
    plain = nearest(layer, first)
    strength, outside = shrinkages[0], None
    if held_out is not None:
        judge = problem(held_out, weight, centred=centred)
        for candidate in shrinkages:
            tried = solve_last(plain, problem(train, weight, candidate, centred=centred))
            found = judge.relative(dense_rows(tried, layer))
            if outside is None or found < outside:
                strength, outside = candidate, found
    everything = merged(train, held_out)
    fitted = solve_last(plain, problem(everything, weight, strength, centred=centred))
    judged = problem(everything, weight, centred=centred)
    return better_of(fitted, plain, layer, judged, strength, outside, centred=centred)


@one_thread()
def refit_last(found: Fit, layer: Layer, moments: Moments, *, centred: bool = True) -> Fit:
    """The fit carried on with other wanted outputs, the first factor as it is."""
    posed = problem(moments, as_rows(layer.weight, layer), found.shrinkage, centred=centred)
    chain = solve_last(found.chain, posed)
    if centred:
        chain = replace(chain, bias=posed.bias(dense_rows(chain, layer)))
    return replace(found, chain=chain)


def nearest(layer: Layer, first: Array) -> Chain:
    """The layer's chain with its first factor [rank, S] given that is nearest to its weight."""
    a = first.astype(np.float64)
    gram = a @ a.T
    ridge = 1e-12 * float(np.trace(gram)) / len(gram)
    weight = by_channel(layer.weight.astype(np.float64))
    last = solved_positive(gram + (ridge or 1.0) * np.eye(len(gram)), a @ weight.T).T
    return _chain(layer, a, last)
