"""Starts: factors from which the alternation sets out, by the method's own plain fit.

A plain fit knows the Frobenius norm only. Where the chain's first step reads the layer's channels as they
are, they can be whitened before and coloured afterwards: the norm then is the loss, exactly for a linear
layer and up to the correlation between kernel positions for a convolution.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer, Ranks
from onnxdecomp.core.steps import Convolve, MatMul, Step
from onnxdecomp.decompositions.base import Decomposition, outline
from onnxdecomp.fitting.quadratic_loss import Problem


def whitened_start(
    method: Decomposition, layer: Layer, ranks: Ranks, problem: Problem, seed: int
) -> Chain | None:
    """The chain of the plain fit of the best weight with its input channels whitened.

    None where the chain's first step does not read all channels (of a group) at once.
    """
    groups, s = layer.groups, layer.inputs // layer.groups
    if not reads_channels(method, layer, ranks):
        return None
    moved, whiten = whitened(layer, problem)
    chain = method.assemble(moved, method.fit(moved, ranks, seed))
    first = chain.steps[0]
    assert isinstance(first, MatMul | Convolve)
    own = first.weight.astype(np.float64)
    if isinstance(first, MatMul):
        weight: Array = whiten[0] @ own
    else:
        t, _, *kernel = own.shape
        own = own.reshape(groups, t // groups, s, -1)
        weight = np.einsum("gtsk,gsq->gtqk", own, whiten, optimize=True).reshape(t, s, *kernel)
    return replace(chain, steps=(first.with_weight(weight), *chain.steps[1:]))


def whitened(layer: Layer, problem: Problem) -> tuple[Layer, Array]:
    """The layer with the best weight, its input channels whitened, and what whitens them, [g, S/g, S/g]."""
    white, whiten = problem.white(layer.inputs // layer.groups)
    white = white.reshape(layer.weight.shape)
    with np.errstate(over="ignore"):
        fits = np.isfinite(white.astype(layer.weight.dtype)).all()
    kind = layer.weight.dtype if fits else np.dtype(np.float64)
    return replace(layer, weight=np.ascontiguousarray(white.astype(kind))), whiten


def reads_channels(method: Decomposition, layer: Layer, ranks: Ranks) -> bool:
    """Whether a whitened plain fit is possible: the chain's first step reads the channels of each group."""
    first = outline(method, layer, ranks).steps[0]
    return _reads_channels(first, layer.inputs // layer.groups, layer.groups)


def _reads_channels(first: Step, channels: int, groups: int) -> bool:
    """Whether a chain's first step reads all channels of each group, as they are."""
    if isinstance(first, MatMul):
        return not first.is_stack and first.inputs == channels
    if isinstance(first, Convolve):
        return first.spec.groups == groups and first.inputs == channels * groups
    return False


def plain_start(method: Decomposition, layer: Layer, ranks: Ranks, weight: Array, seed: int) -> Chain:
    """The chain of the plain fit of a weight [g, T/g, D] in the layer's place."""
    moved = replace(layer, weight=weight.reshape(layer.weight.shape).astype(layer.weight.dtype))
    return method.assemble(moved, method.fit(moved, ranks, seed))


def reduced_start(like: Chain, layer: Layer, problem: Problem) -> Chain | None:
    """The best chain of two factors, of which the first reads a whole row and the second mixes channels.

    Reduced-rank regression (Izenman 1975): with L the best weight, the top eigenvectors U of L G LT give
    U (UT L). None where the chain is of another form; `like` says which, and has the ranks.
    """
    rank = _reduced_rank(like, problem)
    if rank is None:
        return None
    basis = problem.modes(rank)  # [g, T/g, r]
    inner = basis.swapaxes(1, 2) @ problem.best
    first, last = like.weighted
    if basis.shape[2] < rank:  # more than the outputs: nothing is gained by the rest
        return None
    return replace(like, steps=(first.with_rows(inner), last.with_rows(basis)))


def reduced_losses(like: Chain, problem: Problem) -> Array | None:
    """The relative loss of `reduced_start` at every rank, [ranks + 1], from rank 0 on.

    None where the chain is of another form.
    """
    if _reduced_rank(like, problem) is None:
        return None
    best = problem.best
    products = best @ problem.second
    inner = problem.modes().swapaxes(1, 2) @ best
    seen = np.sum((inner @ problem.second) * inner, axis=2).sum(axis=0)  # of each mode, over the groups
    left = float(np.sum(products * best)) - np.concatenate([[0.0], np.cumsum(seen)])
    whole = problem.energy or problem.pull
    losses = problem.loss(best) + np.maximum(left, 0.0)
    return np.maximum(losses, 0.0) / whole if whole > 0 else np.zeros_like(losses)


def _reduced_rank(like: Chain, problem: Problem) -> int | None:
    """The rank of a chain of the form of `reduced_start`, or None where it is of another."""
    groups, _, d = problem.cross.shape
    pair = pair_of(like, groups, d)
    return None if pair is None else int(pair[0].shape[1])


def pair_of(chain: Chain, groups: int, d: int) -> tuple[Array, Array] | None:
    """The rows [g, r, D] and [g, T/g, r] of two factors whose product is the dense weight, or None."""
    pair = [step.rows() for step in chain.weighted]
    if len(chain.steps) != 2 or len(pair) != 2:
        return None
    first, last = pair
    if first is None or last is None or first.shape[::2] != (groups, d):
        return None
    return (first, last) if last.shape[::2] == (groups, first.shape[1]) else None
