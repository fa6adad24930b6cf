"""Block tensor train: a matrix as two block-diagonal ones with a permutation between (Monarch)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks, channels, common_refusal
from onnxdecomp.core.steps import (
    BlockMatMul,
    Convolve,
    MatMul,
    PermuteChannels,
    Reshape,
    Step,
    Transpose,
    pointwise,
)
from onnxdecomp.decompositions.base import Decomposition, Refusal, SingleRank
from onnxdecomp.errors import UsageError
from onnxdecomp.tensor.linalg import finite_groups

_AT_ONCE = 1 << 20
"""Elements of the blocks that are in float64 at a time."""


@dataclass(frozen=True)
class Btt(SingleRank):
    """W = L P R with block-diagonal L and R and a permutation P of what is between them.

    The block tensor train of Qiu et al. (2024); at rank 1 the Monarch matrix of Dao et al. (2022). The T
    outputs are cut into c blocks of p and the S inputs into b blocks of q. R has the blocks [c r, q], one
    for each block of inputs, and L the blocks [p, b r], one for each block of outputs; P brings the r
    channels that R_k computes for L_j to it. So the p x q part of W that joins inputs k and outputs j has
    rank r, and each is approximated by its own truncated singular value decomposition: together the
    best approximation in the Frobenius norm (the projection of Dao et al. 2022, for any r).

    It has r (b T + c S) parameters and as many multiplications per row: where b = c, those of an SVD of
    rank b r. One block of each is the SVD. The full rank is min(p, q), and a fraction is one of it.

    Linear: factors [b, q, c r] and [c, b r, p]. 1x1 convolution, per group: grouped convolutions
    [g b c r, q, 1…] and [T, b r, 1…].

    Attributes:
        blocks: b and c are the largest divisors of S and T that are at most this; 0 takes at most their
            square roots.
        layout: Which inputs form a block. "monarch" takes every b-th input, so that tensor trains of two
            cores and Kronecker products are such matrices, and permutes the inputs first; "blocks" takes
            q neighbours, which saves that permutation (a block low-rank matrix). The outputs of a block
            are neighbours in either.
    """

    name: ClassVar[str] = "btt"
    summary: ClassVar[str] = "block tensor train (Monarch): two block-diagonal factors and a permutation"
    paper: ClassVar[str] = "Dao et al. 2022, arXiv:2204.00595; Qiu et al. 2024, arXiv:2406.06248"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    takes: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul", "1x1 Conv and ConvTranspose, grouped")

    blocks: int = 0
    layout: Literal["monarch", "blocks"] = "monarch"

    def __post_init__(self) -> None:
        if self.blocks < 0:
            raise UsageError(f"btt: {self.blocks} blocks: give 2 or more, or 0 for automatic")

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if layer.is_stack:
            return Refusal("a stack of matrices: use svd")
        if layer.conv is not None and not layer.is_matrix:
            return Refusal("a kernel of several positions: use tucker")
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        b, _, c, _ = self.sizes(layer)
        if b == c == 1:
            t, s = channels(layer)
            return Refusal(f"a {t} x {s} matrix has no blocks of equal size: use svd")
        return Refusal("a full rank of 1: nothing to reduce") if self.full_ranks(layer)[0] < 2 else self

    def full_ranks(self, layer: Layer) -> Ranks:
        _, q, _, p = self.sizes(layer)
        return (min(p, q),)

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        """The blocks' singular values, root sums of squares over all blocks."""
        parts = self._parts(layer)
        squares = np.zeros(min(parts.shape[1:]))
        for chunk in _chunks(parts):
            squares += np.maximum(np.linalg.eigvalsh(_gram(_wide(chunk)))[:, ::-1], 0).sum(0)
        return (np.sqrt(squares),)

    def parts(self, layer: Layer) -> int:
        b, _, c, _ = self.sizes(layer)
        return b * c

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (r,), (b, q, c, p) = ranks, self.sizes(layer)
        if layer.conv is None:
            return (b, q, c * r), (c, b * r, p)
        g, ones = layer.groups, (1,) * len(layer.kernel)
        return (g * b * c * r, q, *ones), (g * c * p, b * r, *ones)

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        (r,), (b, q, c, p) = ranks, self.sizes(layer)
        fitted = [_block_factors(chunk, r) for chunk in _chunks(self._parts(layer))]
        left = np.concatenate([u for u, _ in fitted]).reshape(-1, c, b, p, r)
        right = np.concatenate([v for _, v in fitted]).reshape(-1, c, b, r, q)
        if layer.conv is None:
            first, last = right[0].transpose(1, 3, 0, 2), left[0].transpose(0, 1, 3, 2)
        else:
            first, last = right.swapaxes(1, 2), left.transpose(0, 1, 3, 2, 4)
        shapes = self.shapes(layer, ranks)
        return np.ascontiguousarray(first).reshape(shapes[0]), np.ascontiguousarray(last).reshape(shapes[1])

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        steps = self._linear(layer, *factors) if layer.conv is None else self._convolutions(layer, *factors)
        return Chain(steps, layer.bias, layer.inputs, layer.groups)

    def sizes(self, layer: Layer) -> tuple[int, int, int, int]:
        """b blocks of q inputs and c blocks of p outputs, of one group."""
        t, s = channels(layer)
        b, c = (_block_count(n, self.blocks or math.isqrt(n)) for n in (s, t))
        return b, s // b, c, t // c

    def _parts(self, layer: Layer) -> Array:
        """The blocks of W [g c b, p, q]: all of the first block of outputs, then those of the next."""
        b, q, c, p = self.sizes(layer)
        groups = finite_groups(layer)
        inputs, axes = ((q, b), (0, 1, 4, 2, 3)) if self.layout == "monarch" else ((b, q), (0, 1, 3, 2, 4))
        return groups.reshape(len(groups), c, p, *inputs).transpose(axes).reshape(-1, p, q)

    def _linear(self, layer: Layer, first: Array, last: Array) -> tuple[Step, ...]:
        b, q, c, p = self.sizes(layer)
        r = last.shape[1] // b
        steps: list[Step] = []
        if b > 1:
            strided = self.layout == "monarch"
            steps.append(Reshape((b * q,), (q, b) if strided else (b, q)))
            steps += [Transpose((1, 0))] if strided else []
        steps.append(BlockMatMul(first, "first") if b > 1 else MatMul(first[0], "first"))
        state: tuple[int, ...] = (b, c * r) if b > 1 else (c * r,)
        if b > 1 and c > 1:
            if r > 1:
                steps.append(Reshape(state, (b, c, r)))
                steps.append(Transpose((1, 0, 2)))
                state = (c, b, r)
            else:
                steps.append(Transpose((1, 0)))
                state = (c, b)
        between = (c, b * r) if c > 1 else (b * r,)
        steps += [Reshape(state, between)] if state != between else []
        if c == 1:
            return (*steps, MatMul(last[0], "last"))
        return (*steps, BlockMatMul(last, "last"), Reshape((c, p), (c * p,)))

    def _convolutions(self, layer: Layer, first: Array, last: Array) -> tuple[Step, ...]:
        assert layer.conv is not None
        (b, q, c, _), g, d = self.sizes(layer), layer.groups, len(layer.kernel)
        r = last.shape[1] // b
        # A stride belongs where it saves positions: first in a convolution, last in a transposed one.
        before = pointwise(first, g * b, d, "first")
        after = pointwise(last, g * c, d, "last")
        if layer.conv.transposed:
            after = Convolve(after.weight, replace(layer.conv, groups=g * c), "last")
        else:
            before = Convolve(before.weight, replace(layer.conv, groups=g * b), "first")
        steps: list[Step] = [before]
        if b > 1 and self.layout == "monarch":
            steps.insert(0, _permute(g, (q, b), (1, 0), "blocks"))
        if b > 1 and c > 1:
            steps.append(_permute(g, (b, c, r), (1, 0, 2), "permutation"))
        return (*steps, after)


def _block_count(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`."""
    return next(d for d in range(min(most, n), 0, -1) if n % d == 0)


def _permute(groups: int, sizes: tuple[int, ...], perm: tuple[int, ...], label: str) -> PermuteChannels:
    """Per group, read the channels as axes of these sizes and transpose them."""
    channels_ = np.arange(groups * math.prod(sizes)).reshape(groups, *sizes)
    order = channels_.transpose(0, *(axis + 1 for axis in perm)).ravel()
    return PermuteChannels(tuple(order.tolist()), label)


def _chunks(parts: Array) -> list[Array]:
    """Views of [m, p, q] along m, of a bounded size."""
    step = max(1, _AT_ONCE // (parts.shape[1] * parts.shape[2]))
    return [parts[start : start + step] for start in range(0, len(parts), step)]


def _wide(parts: Array) -> Array:
    """The blocks with the shorter axis first."""
    return parts if parts.shape[1] <= parts.shape[2] else parts.swapaxes(1, 2)


def _gram(parts: Array) -> Array:
    """M Mᵀ of every block, in float64."""
    wide = parts.astype(np.float64)
    return np.asarray(wide @ wide.swapaxes(1, 2))


def _block_factors(parts: Array, rank: int) -> tuple[Array, Array]:
    """The best A [m, p, rank] B [m, rank, q] of every block, singular values shared: see two_factors."""
    if parts.shape[1] > parts.shape[2]:
        b, a = _block_factors(parts.swapaxes(1, 2), rank)
        return a.swapaxes(1, 2), b.swapaxes(1, 2)
    basis = np.linalg.eigh(_gram(parts))[1][:, :, ::-1][:, :, :rank]
    peak = np.take_along_axis(basis, np.abs(basis).argmax(axis=1, keepdims=True), axis=1)
    basis = (basis * np.where(peak < 0, -1.0, 1.0)).astype(parts.dtype)
    rows = basis.swapaxes(1, 2) @ parts
    # Bounded below, so that dividing by the scale of a vanishing component is harmless.
    scale = np.sqrt(np.sqrt(np.einsum("mrq,mrq->mr", rows, rows, dtype=np.float64)))
    top = scale.max(axis=1, keepdims=True)
    scale = np.where(top > 0, np.maximum(scale, 1e-4 * top), 1.0).astype(parts.dtype)
    return basis * scale[:, None, :], rows / scale[:, :, None]
