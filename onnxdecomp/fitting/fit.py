"""Fitting one layer: the start, the alternation, the shrinkage, the bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer, Ranks
from onnxdecomp.decompositions.base import Decomposition, outline, quick
from onnxdecomp.fitting.als import ITERATIONS, alternate
from onnxdecomp.fitting.initialization import pair_of, plain_start, reduced_start, whitened_start
from onnxdecomp.fitting.moments import Moments, features, merged
from onnxdecomp.fitting.quadratic_loss import Problem, as_rows, problem
from onnxdecomp.fitting.strengths import SHRINKAGES, Trial, chosen, growth, tried
from onnxdecomp.tensor.blas_threads import one_thread

SWEEPS = 6
"""Rounds of the alternation over all factors, at most."""

_FEW = 6
"""Iterations where fits are only compared with each other."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Factors fitted to what a layer sees.

    Attributes:
        chain: In float64, with the bias that goes with it.
        loss: E |y - What x|² over E |y|², y centred, on all rows.
        plain_loss: The same of the plain fit, to the weight alone; its bias is corrected too. Infinite where
            there was none.
        held_out: The loss on held-out rows of a fit to the others, or None where none were held out.
        shrinkage: The strength chosen.
    """

    chain: Chain
    loss: float
    plain_loss: float
    held_out: float | None
    shrinkage: float


@one_thread()
def fit(
    method: Decomposition,
    layer: Layer,
    ranks: Ranks,
    train: Moments,
    held_out: Moments | None = None,
    *,
    seed: int = 0,
    sweeps: int = SWEEPS,
    shrinkages: Sequence[float] = SHRINKAGES,
    centred: bool = True,
) -> Fit:
    """The factors of least loss at these ranks, never of more than the plain fit's.

    In a single sweep, where fits are only compared with each other, the plain fit is made where no other
    start is known.

    Args:
        method, layer, ranks: As for `Decomposition.fit`; the layer's weight must be no stack of matrices.
        train, held_out: Moments of the layer's rows. Each strength of the shrinkage is fitted to the first
            and judged by the second; the one that is best there is fitted to all.
        seed: Of a method that starts at random.
        sweeps: Of the alternation.
        shrinkages: Strengths to choose among; with no held-out rows the first is taken.
        centred: Give the means to the bias; else the layer's own bias stays and the wanted outputs are
            without it.

    Raises:
        onnxdecomp.errors.ModelError: The weight holds NaN or infinite values.
    """
    weight = as_rows(layer.weight, layer)
    hasty = sweeps == 1
    # The plain fit is hardly ever the better start, so no time is spent on its last percent.
    plain = None if hasty else plain_start(quick(method), layer, ranks, weight, seed)
    method = quick(method) if hasty else method
    strength, outside, best = shrinkages[0], None, None

    def improved(moments: Moments, shrinkage: float, start: Chain | None, sweeps: int) -> Chain:
        # What is solved on the way may be as large as a vocabulary, and is let go of.
        posed = problem(moments, weight, shrinkage, centred=centred)
        start = start or _start(method, layer, ranks, posed, seed, plain)
        return _improved(start, layer, posed, sweeps=sweeps)

    if held_out is not None:
        judge = problem(held_out, weight, centred=centred)
        # What was fitted at one strength starts the fit at the next.
        chains: list[Chain] = []

        def trial(candidate: float) -> Trial:
            chains.append(improved(train, candidate, chains[-1] if chains else None, 1))
            dense = dense_rows(chains[-1], layer)
            return Trial(candidate, judge.about(dense), growth(dense, weight))

        trials = list(tried(shrinkages, trial))
        if (taken := chosen(trials)) is not None:
            strength, outside, best = taken.strength, taken.loss, chains[trials.index(taken)]
        del judge
    everything = merged(train, held_out)
    fitted = improved(everything, strength, best, sweeps)
    judged = problem(everything, weight, centred=centred)
    return better_of(fitted, plain, layer, judged, strength, outside, centred=centred)


def better_of(
    fitted: Chain,
    plain: Chain | None,
    layer: Layer,
    judged: Problem,
    strength: float,
    outside: float | None,
    *,
    centred: bool,
) -> Fit:
    """The fitted chain, or the plain one where that loses less, with the bias that goes with it.

    Args:
        fitted, plain, layer: The chains, None where there is no plain one, and the layer that they are for.
        judged: The loss on all rows, without shrinkage.
        strength, outside: The shrinkage chosen, and the loss on held-out rows, of the fitted chain.
        centred: As for `fit`.
    """
    dense, plain_loss = dense_rows(fitted, layer), math.inf
    loss = judged.relative(dense)
    if plain is not None:
        plainly = dense_rows(plain, layer)
        plain_loss = judged.relative(plainly)
        if not loss <= plain_loss:
            fitted, dense, loss = plain, plainly, plain_loss
    if centred:
        fitted = replace(fitted, bias=judged.bias(dense))
    return Fit(fitted, loss, plain_loss, outside, strength)


@one_thread()
def refit(found: Fit, layer: Layer, moments: Moments, *, centred: bool = True, sweeps: int = 4) -> Fit:
    """The fit carried on with other wanted outputs, at the strength that it chose."""
    posed = problem(moments, as_rows(layer.weight, layer), found.shrinkage, centred=centred)
    chain = _improved(found.chain, layer, posed, sweeps=sweeps)
    if centred:
        chain = replace(chain, bias=posed.bias(dense_rows(chain, layer)))
    return replace(found, chain=chain)


@one_thread()
def sketch(
    method: Decomposition, layer: Layer, ranks: Ranks, posed: Problem, *, seed: int = 0
) -> tuple[Chain, float]:
    """A fit good enough to compare methods and ranks by: the start and one short sweep; with its loss."""
    start = _start(quick(method), layer, ranks, posed, seed)
    chain = _improved(start, layer, posed, sweeps=1)
    return chain, max(0.0, posed.relative(dense_rows(chain, layer)))


def stored(chain: Chain, layer: Layer) -> Chain:
    """The chain in the layer's own working type, the norms of its factors balanced."""
    norms = {step: float(np.linalg.norm(step.weight)) for step in chain.weighted}
    mean = float(np.exp(np.mean(np.log(list(norms.values()))))) if all(norms.values()) else 0.0
    scales = {step: mean / norm if mean else 1.0 for step, norm in norms.items()}
    return in_working_type(chain.with_weights(lambda step: step.weight * scales[step]), layer)


def in_working_type(chain: Chain, layer: Layer) -> Chain:
    """The chain in the layer's own working type, its factors as they are."""
    kind = layer.weight.dtype
    cast = chain.with_weights(lambda step: step.weight.astype(kind))
    return replace(cast, bias=None if chain.bias is None else chain.bias.astype(kind))


def _improved(chain: Chain, layer: Layer, posed: Problem, *, sweeps: int) -> Chain:
    """The chain of less loss; the best of its form where that is known without a search."""
    best = reduced_start(chain, layer, posed)
    if best is not None:
        return best
    return alternate(chain, posed, sweeps=sweeps, iterations=_FEW if sweeps == 1 else ITERATIONS)


def _start(
    method: Decomposition, layer: Layer, ranks: Ranks, posed: Problem, seed: int, plain: Chain | None = None
) -> Chain:
    """The best of the starts that the chain's form allows; the plain one is made where it is the only one."""
    if (reduced := reduced_start(outline(method, layer, ranks), layer, posed)) is not None:
        return reduced
    whitened = whitened_start(method, layer, ranks, posed, seed)
    if whitened is None:
        return plain or plain_start(method, layer, ranks, as_rows(layer.weight, layer), seed)
    if plain is None:
        return whitened
    return min((whitened, plain), key=lambda chain: posed.loss(dense_rows(chain, layer)))


def dense_rows(chain: Chain, layer: Layer) -> Array:
    """The chain's dense weight as [g, T/g, D]."""
    if (pair := pair_of(chain, layer.groups, features(layer))) is not None:
        first, last = pair  # their product, at less than unit impulses through both
        return np.asarray(last.astype(np.float64) @ first)
    return as_rows(chain.dense(), layer)
