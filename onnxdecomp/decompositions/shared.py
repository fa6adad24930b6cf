"""Shared: layers that read one input have their first factor in common, and a second one each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks, common_refusal
from onnxdecomp.core.steps import Convolve, MatMul, pointwise
from onnxdecomp.decompositions.base import Decomposition, Refusal, SingleRank
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.tensor.linalg import finite_groups, left_basis, tails, two_factors

_SVD = Svd(order="channel-first")


@dataclass(frozen=True)
class Shared(SingleRank):
    """One first factor for siblings, layers that read the same activation: their stacked weights' SVD.

    Of matrices [T_i, S] the factors are [S, r], which all have, and [r, T_i]; of convolutions
    [T_i, S, *k_i] a pointwise one [r, S, 1…], which all have, and [T_i, r, *k_i]: Tucker's basis of the input
    channels (Tucker 1966), one for all. The first factor is stored, computed and emitted once. As a
    method of one layer it is the SVD whose first factor reads the channels: `sibling_factors` has several.

    Ranks count up to min(S, the T_i times the sizes of their kernels together), which a layer alone does not
    know: `fit` takes any from 1 to S.

    Attributes:
        weight: What the layer's relative loss counts beside that of the others, above 0. A search has it say
            what the loss does to the output.
    """

    name: ClassVar[str] = "shared"
    summary: ClassVar[str] = "one first factor for all layers that read one input, by the SVD of their stack"
    paper: ClassVar[str] = (
        "Tucker 1966, doi:10.1007/BF02289464; Izenman 1975, doi:10.1016/0047-259X(75)90042-1; "
        "Wang et al. 2024, arXiv:2410.03765"
    )
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    takes: ClassVar[tuple[str, ...]] = (
        "several Conv 1-D/2-D/3-D or ConvTranspose",
        "several Gemm, MatMul, LSTM, GRU, RNN",
    )

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight={self.weight:g}: give a number above 0")

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        if layer.is_stack:
            return Refusal("a stack of matrices")
        if layer.lookup:
            return Refusal("a lookup: its input is no activation")
        if layer.groups > 1:
            return Refusal("its groups read different channels")
        return Refusal("a single input: nothing to reduce") if layer.inputs < 2 else self

    def full_ranks(self, layer: Layer) -> Ranks:
        return (min(layer.inputs, layer.weight.size // layer.inputs),)

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        return _SVD.spectra(layer)

    def rank_curve(self, layer: Layer, ranks: Sequence[Ranks]) -> Array:
        """See Truncating."""
        return tails(self.spectra(layer), ranks)

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        return _SVD.shapes(layer, ranks)

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        first, (last,) = sibling_factors([layer], ranks[0])
        return first, last

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        first, last = factors
        if layer.conv is None:
            return Chain((MatMul(first, "shared"), MatMul(last, "last")), layer.bias, layer.inputs)
        steps = (pointwise(first, 1, len(layer.kernel), "shared"), Convolve(last, layer.conv, "last"))
        return Chain(steps, layer.bias, layer.inputs)


def sibling_factors(
    layers: Sequence[Layer], rank: int, counts: Sequence[float] = ()
) -> tuple[Array, tuple[Array, ...]]:
    """The first factor of all the layers and the last one of each, as `Shared.assemble` takes them.

    The best in the sum of the layers' squared relative errors (Eckart and Young 1936, of the stacked weights,
    each over its norm), in the first layer's dtype.

    Args:
        layers: That take the method and read the same input of S channels or features.
        rank: From 1 to S; what it has above the stack's own rank is zeros.
        counts: What the squared relative error of each layer counts; all alike by default.

    Raises:
        onnxdecomp.errors.ModelError: A weight holds NaN or infinite values.
    """
    weights = [by_channel(finite_groups(layer)[0]) for layer in layers]
    norms = _norms(weights, counts)
    stack = _stack(weights, norms)
    last, first = two_factors(stack, min(rank, *stack.shape))
    missing = rank - len(first)
    first, last = np.pad(first, ((0, missing), (0, 0))), np.pad(last, ((0, 0), (0, missing)))
    # The norms of the two sides are about equal, as those of two factors are.
    scale = np.exp(np.mean(np.log(norms)) / 2)
    ends = np.cumsum([len(weight) for weight in weights])[:-1]
    lasts = tuple(
        as_last((rows * (norm / scale)).astype(stack.dtype), layer)
        for rows, norm, layer in zip(np.split(last, ends), norms, layers, strict=True)
    )
    return as_first((first * scale).astype(stack.dtype), layers[0]), lasts


def sibling_errors(
    layers: Sequence[Layer], ranks: Sequence[int], counts: Sequence[float] = ()
) -> list[tuple[float, ...]]:
    """The squared relative error of each layer's weight at each of the ranks of `sibling_factors`."""
    weights = [by_channel(finite_groups(layer)[0]) for layer in layers]
    stack = _stack(weights, _norms(weights, counts))
    basis, _ = left_basis(np.ascontiguousarray(stack.T))  # [S, at most S]
    found = []
    for rows in np.split(stack, np.cumsum([len(weight) for weight in weights])[:-1]):
        seen = np.square(rows.astype(np.float64) @ basis).sum(axis=0)
        energy = np.square(rows, dtype=np.float64).sum()
        left = energy - np.concatenate([[0.0], np.cumsum(seen)])
        found.append(np.maximum(left, 0.0) / (energy or 1.0))
    return [tuple(float(own[min(rank, len(own) - 1)]) for own in found) for rank in ranks]


def whole(layers: Sequence[Layer]) -> Layer:
    """The siblings as one linear layer, [sum of the T_i times their kernels' sizes, S], each over its norm.

    It has their ranks, and the spectrum that decides them.
    """
    weights = [by_channel(layer.weight) for layer in layers]
    stack = _stack(weights, _norms(weights))
    return replace(layers[0], weight=stack, bias=None, conv=None, input_shape=None, output_shape=None)


def _norms(weights: Sequence[Array], counts: Sequence[float] = ()) -> list[np.float64]:
    """What each is divided by in the stack; of float64, whose range the squares do not leave."""
    counts = counts or (1.0,) * len(weights)
    return [
        np.float64((np.linalg.norm(weight.astype(np.float64)) or 1.0) / math.sqrt(count))
        for weight, count in zip(weights, counts, strict=True)
    ]


def _stack(weights: Sequence[Array], norms: Sequence[np.float64]) -> Array:
    parts = [(w / norm).astype(w.dtype) for w, norm in zip(weights, norms, strict=True)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def by_channel(weight: Array) -> Array:
    """A canonical weight [T, S, *k] as [T times the kernel's size, S]."""
    return np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1])


def as_first(matrix: Array, layer: Layer) -> Array:
    """The first factor of a matrix [r, S]."""
    if layer.conv is None:
        return np.ascontiguousarray(matrix.T)
    return matrix.reshape(*matrix.shape, *(1,) * len(layer.kernel))


def as_last(rows: Array, layer: Layer) -> Array:
    """The last factor of a matrix [T times the kernel's size, r], the inverse of `by_channel`."""
    if layer.conv is None:
        return np.ascontiguousarray(rows.T)
    shaped = rows.reshape(layer.outputs, *layer.kernel, rows.shape[1])
    return np.ascontiguousarray(np.moveaxis(shaped, -1, 1))
