"""Tucker-2: a convolution between two changes of channel basis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks, channels, common_refusal
from onnxdecomp.core.options import check_numbers
from onnxdecomp.core.steps import Convolve, Step, pointwise
from onnxdecomp.decompositions.base import Decomposition, Refusal
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.tensor.blas_threads import one_thread
from onnxdecomp.tensor.hooi import compress_inputs, hooi
from onnxdecomp.tensor.linalg import (
    finite_groups,
    fraction_of,
    left_basis,
    pooled,
    singular_values,
    stacked,
    tails,
)
from onnxdecomp.tensor.tenalg import mode_dot, multi_mode_dot


@dataclass(frozen=True)
class Tucker:
    """Tucker decomposition of the two channel modes, the kernel left as it is (Kim et al. 2016).

    Per group the weight [T, S, *k] is a core [r_out, r_in, *k] between orthonormal bases [T, r_out] and
    [S, r_in]. The chain is a 1x1 convolution [g r_in, S, 1…], the core [g r_out, r_in, *k] with the
    layer's strides, pads and dilations, and a 1x1 convolution [T, r_out, 1…]. The fit starts from the
    HOSVD (De Lathauwer et al. 2000) and is improved by alternating (HOOI) until it stalls. The bases
    are eigenvectors of Gram matrices, and each update sees the weight already compressed along the
    other mode.

    Attributes:
        sides: "auto" leaves out the 1x1 convolution of a side whose rank is its number of channels (its
            basis would be a mere rotation), unless both are; "both" always keeps both.
        tolerance: The alternation ends when the relative error falls by less than this.
        max_sweeps: At most so many alternations.
    """

    name: ClassVar[str] = "tucker"
    summary: ClassVar[str] = "Tucker-2: 1x1, core, 1x1 convolutions, fitted by HOOI"
    paper: ClassVar[str] = "Kim et al. 2016, arXiv:1511.06530"
    rank_names: ClassVar[tuple[str, ...]] = ("out", "in")
    takes: ClassVar[tuple[str, ...]] = (
        "Conv 1-D/2-D/3-D, grouped",
        "ConvTranspose",
        "Gemm, MatMul, batched MatMul, 1x1 Conv, LSTM, GRU, RNN, Gather (as svd)",
    )

    sides: Literal["auto", "both"] = "auto"
    tolerance: float = 5e-4
    max_sweeps: int = 20

    def __post_init__(self) -> None:
        check_numbers(self, tolerance=0, max_sweeps=0)

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if layer.conv is None or layer.is_matrix:
            return Svd().specialise(layer)
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        return Refusal("full ranks of 1: nothing to reduce") if max(self.full_ranks(layer)) < 2 else self

    def full_ranks(self, layer: Layer) -> Ranks:
        t, s = channels(layer)
        k = math.prod(layer.kernel)
        return min(t, s * k), min(s, t * k)

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        return tuple(fraction_of(full, fraction) for full in self.full_ranks(layer))

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        groups = finite_groups(layer)
        return tuple(pooled(singular_values(w, axis) for w in groups) for axis in (0, 1))

    def rank_curve(self, layer: Layer, ranks: Sequence[Ranks]) -> Array:
        return tails(self.spectra(layer), ranks)

    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        """The cheapest ranks whose HOSVD meets the error; the HOOI that `fit` makes of it loses less.

        In the HOSVD bases a truncation loses exactly the squares of the core that it cuts off, so one
        table of cumulative sums knows the error of every pair of ranks.
        """
        t, s = channels(layer)
        energy = np.zeros((t, s))
        for w in finite_groups(layer):
            # Directions beyond the other side's size have nothing in them.
            a, b = (left_basis(w, axis, min(n, w.size // n))[0] for axis, n in ((0, t), (1, s)))
            core = multi_mode_dot(w, [a.astype(w.dtype), b.astype(w.dtype)], modes=(0, 1), transpose=True)
            core = core.reshape(*core.shape[:2], -1)
            energy[: len(core), : core.shape[1]] += np.einsum("tsk,tsk->ts", core, core, dtype=np.float64)
        # Summed from the far end, the small losses do not drown in the large total.
        lost = np.zeros((t + 1, s + 1))
        corner = np.cumsum(np.cumsum(energy[::-1, ::-1], 0), 1)[::-1, ::-1]
        lost[:t, :s] = corner
        lost = lost[:, :1] + lost[:1, :] - lost
        out, inner = np.arange(t + 1)[:, None], np.arange(s + 1)[None, :]
        cost = out * t + inner * s + out * inner * math.prod(layer.kernel)
        allowed = (lost <= error**2 * corner[0, 0]) & (out >= 1) & (inner >= 1)
        allowed[-1, -1] = True
        best = np.unravel_index(np.argmin(np.where(allowed, cost, np.inf)), cost.shape)
        full = self.full_ranks(layer)
        return min(int(best[0]), full[0]), min(int(best[1]), full[1])

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (out, inner), g = ranks, layer.groups
        t, s = channels(layer)
        ones = (1,) * len(layer.kernel)
        keep_out, keep_in = self._sides(layer, ranks)
        shapes = [(g * out, inner, *layer.kernel)]
        if keep_in:
            shapes.insert(0, (g * inner, s, *ones))
        if keep_out:
            shapes.append((g * t, out, *ones))
        return tuple(shapes)

    @one_thread()
    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        keep_out, keep_in = self._sides(layer, ranks)
        parts: list[list[Array]] = []
        for w in finite_groups(layer):
            if keep_out and keep_in:
                a, b = hooi(w, ranks, self.tolerance, self.max_sweeps)
                parts.append([b.T, compress_inputs(mode_dot(w, a, 0, transpose=True), b), a])
            elif keep_out:
                a = left_basis(w, 0, ranks[0])[0].astype(w.dtype)
                parts.append([mode_dot(w, a, 0, transpose=True), a])
            else:
                b = left_basis(w, 1, ranks[1])[0].astype(w.dtype)
                parts.append([b.T, compress_inputs(w, b)])
        shapes = self.shapes(layer, ranks)
        return tuple(stacked(p, s) for p, s in zip(zip(*parts, strict=True), shapes, strict=True))

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        assert layer.conv is not None
        g, d = layer.groups, len(layer.kernel)
        core = next(i for i, f in enumerate(factors) if f.shape[2:] == layer.kernel)
        labels = ("core",) if len(factors) == 1 else ("first", "core", "last")[1 - core :]
        steps: list[Step] = [
            Convolve(factor, layer.conv, label) if i == core else pointwise(factor, g, d, label)
            for i, (factor, label) in enumerate(zip(factors, labels, strict=False))
        ]
        return Chain(tuple(steps), layer.bias, layer.inputs, g)

    def _sides(self, layer: Layer, ranks: Ranks) -> tuple[bool, bool]:
        """Whether the 1x1 convolutions of the (output, input) side are there."""
        keep = tuple(r < c for r, c in zip(ranks, channels(layer), strict=True))
        return (keep[0], keep[1]) if self.sides == "auto" and any(keep) else (True, True)
