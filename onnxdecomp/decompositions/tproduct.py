"""t-product: truncated singular value decompositions of the frontal slices under a cosine transform."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks, channels, common_refusal
from onnxdecomp.core.steps import (
    BlockMatMul,
    Convolve,
    MatMul,
    RegroupSpatial,
    Reshape,
    Step,
    Transpose,
    pointwise,
)
from onnxdecomp.decompositions.base import Decomposition, Refusal, SingleRank
from onnxdecomp.errors import UsageError
from onnxdecomp.tensor.linalg import (
    finite_groups,
    left_basis,
    pooled,
    singular_values,
    stacked,
    two_factors,
)
from onnxdecomp.tensor.tenalg import mode_dot, partial_unfold

_MOST_SLICES = 16
"""The automatic number of slices is at most this, where a dimension has such a divisor."""


@dataclass(frozen=True)
class Slicing:
    """Which side's channels are m = sliced / n in n slices, and what a slice's other side is.

    Attributes:
        side: "in" where it is the inputs that are sliced, "out" where it is the outputs.
        count: n, the slices.
        height: m, the sliced channels (of a group) in one slice.
        width: All the rest of the weight (of a group): the other side's channels times the kernel.
    """

    side: Literal["in", "out"]
    count: int
    height: int
    width: int

    @property
    def full(self) -> int:
        return min(self.height, self.width)

    def macs(self, rank: float) -> float:
        """Multiplications per position, of a group, as if the convolution had no strides.

        The transform takes n of them for each sliced channel, the slices' bases r, and the product with
        all of the rest n r for each of it.
        """
        return self.count * (self.height * (self.count + rank) + rank * self.width)


@dataclass(frozen=True)
class Tproduct(SingleRank):
    """Truncated t-SVD of the weight as a third-order tensor (Kilmer and Martin 2011, Kilmer et al. 2013).

    One side's channels are sliced: S = m n (or T = m n), and the weight is the tensor [m, T K, n] (or
    [m, S K, n]) with K kernel positions. An orthonormal real transform along the third mode gives n
    frontal slices, and each is replaced by its truncated singular value decomposition of rank r. That is
    the best approximation of tubal rank r in the Frobenius norm (Kilmer et al. 2021, Theorem 3.7), at
    r = m (or the slices' width, if that is smaller) exact. All slices have one rank. One threshold for
    the singular values of all (t-SVDII) would give each its own, but the block-diagonal factor would have
    to be padded to the largest: at equal parameters that was no better on trained layers.

    As y = Σ_k Ŵ_k x̂_k, the inputs in slices take a product with the transform [n, n], a
    block-diagonal one [n, m, r] and a dense one [n r, T]; the outputs in slices the same in the other
    order, [S, n r], [n, r, m] and the inverse transform. n² + m n r + n r T parameters. Folding the
    transform into the block-diagonal factor would fill its zeros: n times its parameters.

    Linear: input s' n + k is in slice k, so that neighbours are transformed. Convolution, per group:
    input s' + m k is, so that the transform is a 1x1 convolution of n channels at m times the
    positions, the block-diagonal factor a grouped 1x1 one [g n r, m, 1…] and the dense factor the
    k-sized one [T, n r, *k] or [g n r, S, *k] with the layer's attributes.

    Attributes:
        slices: n, a divisor of S or T; 0 takes the divisor up to 16 that costs least at half the full
            rank. Which side is sliced is decided by the same cost.
        transform: "dct" is the orthonormal DCT-II (Newman et al. 2018 in real arithmetic); "data" the
            left singular vectors of the tensor's third unfolding (Kilmer et al. 2021): it costs the same
            and puts as much of the weight as possible into few slices.
    """

    name: ClassVar[str] = "tproduct"
    summary: ClassVar[str] = "t-SVD: low rank per frontal slice under a discrete cosine transform"
    paper: ClassVar[str] = (
        "Kilmer and Martin 2011, doi:10.1016/j.laa.2010.09.020; Kilmer et al. 2013, doi:10.1137/110837711; "
        "Newman et al. 2018, arXiv:1811.06569; Kilmer et al. 2021, doi:10.1073/pnas.2015851118"
    )
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    takes: ClassVar[tuple[str, ...]] = (
        "Conv 1-D/2-D/3-D, grouped",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "LSTM, GRU, RNN, Gather (where the other side is sliced)",
    )

    slices: int = 0
    transform: Literal["dct", "data"] = "dct"

    def __post_init__(self) -> None:
        if self.slices < 0 or self.slices == 1:
            raise UsageError(f"tproduct: slices {self.slices}: give 2 or more, or 0 for automatic")
        if self.transform not in ("dct", "data"):
            raise UsageError(f"tproduct: transform {self.transform!r}: give dct or data")

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if layer.is_stack:
            return Refusal("a stack of matrices: use svd")
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        if not self._slicings(layer):
            t, s = channels(layer)
            if self.slices:
                return Refusal(
                    f"neither {s} inputs nor {t} outputs make {self.slices} slices of rank 2 or more"
                )
            return Refusal(f"neither {s} inputs nor {t} outputs make slices of rank 2 or more: use svd")
        return self

    def full_ranks(self, layer: Layer) -> Ranks:
        return (self.slicing(layer).full,)

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        slices = self._frontal(layer)[1]
        return (pooled(singular_values(slab) for slab in slices.reshape(-1, *slices.shape[2:])),)

    def parts(self, layer: Layer) -> int:
        return self.slicing(layer).count

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (r,), g, cut = ranks, layer.groups, self.slicing(layer)
        n, m = cut.count, cut.height
        t, s = channels(layer)
        if layer.conv is None:
            if cut.side == "in":
                return (n, n), (n, m, r), (n * r, t)
            return (s, n * r), (n, r, m), (n, n)
        ones = (1,) * len(layer.kernel)
        if cut.side == "in":
            return (g * n, n, *ones), (g * n * r, m, *ones), (g * t, n * r, *layer.kernel)
        return (g * n * r, s, *layer.kernel), (g * n * m, r, *ones), (g * n, n, *ones)

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        (r,), g, cut = ranks, layer.groups, self.slicing(layer)
        n = cut.count
        transform, slices = self._frontal(layer)
        pairs = [[two_factors(slab, r) for slab in group] for group in slices]
        # [g, n, m, r] and [g, n, r, others, K]
        bases = np.stack([np.stack([a for a, _ in group]) for group in pairs])
        rest = np.stack([np.stack([b for _, b in group]) for group in pairs])
        rest = rest.reshape(g, n, r, -1, math.prod(layer.kernel))
        if layer.conv is None:
            # x @ transform.T goes to the slices, y @ transform comes back from them.
            transform = transform.T if cut.side == "in" else transform
            blocks = bases[0] if cut.side == "in" else bases[0].transpose(0, 2, 1)
            dense = rest[0, ..., 0]
            dense = dense.reshape(n * r, -1) if cut.side == "in" else dense.reshape(n * r, -1).T
        elif cut.side == "in":
            transform = np.tile(transform, (g, 1))
            blocks = bases.transpose(0, 1, 3, 2)
            dense = rest.transpose(0, 3, 1, 2, 4)
        else:
            transform = np.tile(transform.T, (g, 1))
            blocks, dense = bases, rest
        parts = (transform, blocks, dense) if cut.side == "in" else (dense, blocks, transform)
        return tuple(stacked([p], shape) for p, shape in zip(parts, self.shapes(layer, ranks), strict=True))

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        steps = self._linear(layer, factors) if layer.conv is None else self._convolutions(layer, factors)
        return Chain(steps, layer.bias, layer.inputs, layer.groups)

    def _linear(self, layer: Layer, factors: Factors) -> tuple[Step, ...]:
        cut = self.slicing(layer)
        n, m = cut.count, cut.height
        if cut.side == "in":
            transform, blocks, dense = factors
            r = blocks.shape[2]
            return (
                Reshape((m * n,), (m, n)),
                MatMul(transform, "transform"),
                Transpose((1, 0)),
                BlockMatMul(blocks, "slices"),
                Reshape((n, r), (n * r,)),
                MatMul(dense, "last"),
            )
        dense, blocks, transform = factors
        r = blocks.shape[1]
        return (
            MatMul(dense, "first"),
            Reshape((n * r,), (n, r)),
            BlockMatMul(blocks, "slices"),
            Transpose((1, 0)),
            MatMul(transform, "transform"),
            Reshape((m, n), (m * n,)),
        )

    def _convolutions(self, layer: Layer, factors: Factors) -> tuple[Step, ...]:
        assert layer.conv is not None
        g, d, n = layer.groups, len(layer.kernel), self.slicing(layer).count
        transform, blocks, dense = factors if self.slicing(layer).side == "in" else factors[::-1]
        middle = pointwise(blocks, g * n, d, "slices")
        sliced = layer.inputs if self.slicing(layer).side == "in" else layer.outputs
        around = (RegroupSpatial(g * n), pointwise(transform, g, d, "transform"), RegroupSpatial(sliced))
        if self.slicing(layer).side == "in":
            return (*around, middle, Convolve(dense, layer.conv, "last"))
        return (Convolve(dense, layer.conv, "first"), middle, *around)

    def slicing(self, layer: Layer) -> Slicing:
        """The cheapest slicing at half its full rank; of a layer that is not refused."""
        return min(self._slicings(layer), key=lambda cut: cut.macs(cut.full / 2))

    def _slicings(self, layer: Layer) -> list[Slicing]:
        """All that can reduce anything: with a slice's rank above 1."""
        (t, s), k = channels(layer), math.prod(layer.kernel)
        sides: tuple[tuple[Literal["in", "out"], int, int], ...] = (("in", s, t * k), ("out", t, s * k))
        cuts = [Slicing(side, n, size // n, rest) for side, size, rest in sides for n in self._counts(size)]
        return [cut for cut in cuts if cut.full > 1]

    def _counts(self, size: int) -> list[int]:
        """The numbers of slices that may be taken of so many channels."""
        if self.slices:
            return [self.slices] if size % self.slices == 0 else []
        few = [n for n in range(2, min(size, _MOST_SLICES + 1)) if size % n == 0]
        least = next((n for n in range(_MOST_SLICES + 1, math.isqrt(size) + 1) if size % n == 0), None)
        return few or ([] if least is None else [least])

    def _frontal(self, layer: Layer) -> tuple[Array, Array]:
        """The transform [n, n] and the slices [groups, n, m, others K], in the weight's dtype."""
        cut = self.slicing(layer)
        n, m = cut.count, cut.height
        weight = finite_groups(layer)
        sliced = partial_unfold(weight, 1 if cut.side == "in" else 0)
        if layer.conv is None:
            tensor = sliced.reshape(-1, m, n, cut.width).swapaxes(1, 2)
        else:
            tensor = sliced.reshape(-1, n, m, cut.width)
        transform = dct(n) if self.transform == "dct" else left_basis(tensor, 1)[0].T
        transform = transform.astype(weight.dtype)
        return transform, mode_dot(tensor, transform, 1)


def dct(n: int) -> Array:
    """The orthonormal DCT-II [n, n] in float64: row k is the cosine of k half waves."""
    k, place = np.arange(n)[:, None], np.arange(n)[None, :]
    matrix = np.cos(np.pi * k * (2 * place + 1) / (2 * n)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix
