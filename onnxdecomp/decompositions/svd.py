"""SVD: a matrix as the product of two thin ones, a convolution as two convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks, channels, common_refusal
from onnxdecomp.core.steps import Convolve, MatMul, pointwise
from onnxdecomp.decompositions.base import Decomposition, Refusal, SingleRank
from onnxdecomp.tensor.linalg import (
    finite_groups,
    pooled,
    singular_values,
    stacked,
    tails,
    two_factors,
)

Order = Literal["kernel-first", "channel-first"]


@dataclass(frozen=True)
class Svd(SingleRank):
    """Truncated singular value decomposition of the weight as a matrix.

    Linear [T, S]: factors [S, r] and [r, T], two MatMuls (Girshick 2015). A stack of matrices [*stack, T, S]
    has factors [*stack, S, r] and [*stack, r, T] with one rank for all.

    Convolution [T, S/g, *k], per group: kernel-first is the k-sized convolution to g r channels and a
    1x1 one to T (factors [g r, S/g, *k] and [T, r, 1…]; Denton et al. 2014, Zhang et al. 2015);
    channel-first is a 1x1 to g r channels, then the k-sized one (factors [g r, S/g, 1…] and
    [T, r, *k]). Best at its rank in the Frobenius norm (Eckart and Young 1936).

    Attributes:
        order: Which of the two comes first in a convolution; "auto" takes the one whose matrix has the
            smaller full rank (above 1) and, where these are equal, the one that convolves fewer
            positions: the k-sized step has the strides, so it is the first of a convolution and the last
            of a transposed one.
    """

    name: ClassVar[str] = "svd"
    summary: ClassVar[str] = "two thin factors by truncated singular value decomposition"
    paper: ClassVar[str] = (
        "Denton et al. 2014, arXiv:1404.0736; Girshick 2015, arXiv:1504.08083; "
        "Zhang et al. 2015, arXiv:1505.06798"
    )
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    takes: ClassVar[tuple[str, ...]] = (
        "Conv 1-D/2-D/3-D, grouped",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "batched MatMul",
        "LSTM, GRU, RNN",
        "Gather",
    )

    order: Literal["auto", "kernel-first", "channel-first"] = "auto"

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        return Refusal("a full rank of 1: nothing to reduce") if self._full(layer) < 2 else self

    def full_ranks(self, layer: Layer) -> Ranks:
        return (self._full(layer),)

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        axis = 0 if self.order_for(layer) == "kernel-first" else 1
        return (pooled(singular_values(w, axis) for w in finite_groups(layer)),)

    def rank_curve(self, layer: Layer, ranks: Sequence[Ranks]) -> Array:
        return tails(self.spectra(layer), ranks)

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (r,) = ranks
        if layer.conv is None:
            *stack, t, s = layer.weight.shape
            return (*stack, s, r), (*stack, r, t)
        g, ones = layer.groups, (1,) * len(layer.kernel)
        s = layer.weight.shape[1]
        if self.order_for(layer) == "kernel-first":
            return (g * r, s, *layer.kernel), (layer.outputs, r, *ones)
        return (g * r, s, *ones), (layer.outputs, r, *layer.kernel)

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        (r,) = ranks
        groups = finite_groups(layer)
        kernel_first = self.order_for(layer) == "kernel-first"
        firsts, lasts = [], []
        for w in groups:
            t, s = w.shape[:2]
            if kernel_first:
                last, first = two_factors(w.reshape(t, -1), r)
            else:
                # [T K, S]: the second factor convolves, so the kernel stays with the outputs.
                last, first = two_factors(np.moveaxis(w, 1, -1).reshape(-1, s), r)
                last = np.moveaxis(last.reshape(t, *w.shape[2:], r), -1, 1)
            firsts.append(first)
            lasts.append(last)
        if layer.conv is None:
            firsts = [first.T for first in firsts]
            lasts = [last.T for last in lasts]
        shapes = self.shapes(layer, ranks)
        return stacked(firsts, shapes[0]), stacked(lasts, shapes[1])

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        first, last = factors
        if layer.conv is None:
            return Chain((MatMul(first, "first"), MatMul(last, "last")), layer.bias, layer.inputs)
        g, d = layer.groups, len(layer.kernel)
        if self.order_for(layer) == "kernel-first":
            # Zero padding stays exact: the bias is added only at the end.
            steps = (Convolve(first, layer.conv, "first"), pointwise(last, g, d, "last"))
        else:
            steps = (pointwise(first, g, d, "first"), Convolve(last, layer.conv, "last"))
        return Chain(steps, layer.bias, layer.inputs, g)

    def order_for(self, layer: Layer) -> Order:
        """The order of the two steps on this layer."""
        if layer.conv is None:
            return "kernel-first"
        if self.order != "auto":
            return self.order
        kernel_first, channel_first = (_full_rank(layer, o) for o in ("kernel-first", "channel-first"))
        if min(kernel_first, channel_first) == 1:  # one channel on that side: nothing to reduce there
            return "kernel-first" if kernel_first > 1 else "channel-first"
        if kernel_first == channel_first:
            return "channel-first" if layer.conv.transposed else "kernel-first"
        return "kernel-first" if kernel_first < channel_first else "channel-first"

    def _full(self, layer: Layer) -> int:
        return _full_rank(layer, self.order_for(layer))


def _full_rank(layer: Layer, order: str) -> int:
    t, s = channels(layer)
    k = math.prod(layer.kernel)
    return min(t, s * k) if order == "kernel-first" else min(t * k, s)
