"""Block term decomposition: a grouped convolution between two changes of channel basis."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks, channels, common_refusal
from onnxdecomp.core.options import check_numbers
from onnxdecomp.core.steps import Convolve, pointwise
from onnxdecomp.decompositions.base import Decomposition, Refusal
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.decompositions.tucker import Tucker
from onnxdecomp.tensor.blas_threads import one_thread
from onnxdecomp.tensor.hooi import compress_inputs, hooi
from onnxdecomp.tensor.linalg import finite_groups, fraction_of, pooled, singular_values, stacked
from onnxdecomp.tensor.tenalg import mode_dot


@dataclass(frozen=True)
class Btd:
    """Sum of small Tucker terms over the channel modes (De Lathauwer 2008; Yunpeng et al. 2017).

    Per group the weight [T, S, *k] is a sum of B terms, each a core [r_out, r_in, *k] between bases
    [T, r_out] and [S, r_in]. The chain is a 1x1 convolution [g B r_in, S, 1…], a convolution
    [g B r_out, r_in, *k] in g B groups with the layer's strides, pads and dilations, and a 1x1 convolution
    [T, B r_out, 1…]. Beside Tucker's chain of the same channels the core costs a B-th of it. The terms are
    fitted one after the other to what the others leave, each by HOOI, until that stalls; the first pass is
    greedy, and exact at full ranks, for the terms' input bases then fill the whole space.

    Attributes:
        blocks: B, at most the channels of either side.
        tolerance: The passes over all terms end when the relative error falls by less than this.
        max_sweeps: At most so many passes.
    """

    name: ClassVar[str] = "btd"
    summary: ClassVar[str] = "block terms: 1x1, grouped core, 1x1 convolutions, each term fitted by HOOI"
    paper: ClassVar[str] = (
        "De Lathauwer 2008, doi:10.1137/070690729; Yunpeng et al. 2017, doi:10.24963/ijcai.2017/88"
    )
    rank_names: ClassVar[tuple[str, ...]] = ("out", "in")
    takes: ClassVar[tuple[str, ...]] = (
        "Conv 1-D/2-D/3-D, grouped",
        "ConvTranspose",
        "Gemm, MatMul, batched MatMul, 1x1 Conv, LSTM, GRU, RNN, Gather (as svd)",
    )

    blocks: int = 4
    tolerance: float = 1e-3
    max_sweeps: int = 10

    def __post_init__(self) -> None:
        check_numbers(self, blocks=1, tolerance=0, max_sweeps=0)

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if layer.conv is None or layer.is_matrix:
            return Svd().specialise(layer)
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        return self if self._count(layer) > 1 else Tucker().specialise(layer)

    def full_ranks(self, layer: Layer) -> Ranks:
        (t, s), k = channels(layer), math.prod(layer.kernel)
        inner = -(-min(s, t * k) // self._count(layer))
        return min(t, inner * k), inner

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        return tuple(fraction_of(full, fraction) for full in self.full_ranks(layer))

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        """The channels' singular values, those that the terms share pooled into one."""
        groups = finite_groups(layer)
        found = []
        for axis, full in enumerate(self.full_ranks(layer)):
            values = pooled(singular_values(w, axis) for w in groups)
            found.append(np.array([np.linalg.norm(part) for part in np.array_split(values, full)]))
        return tuple(found)

    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        """Both ranks at one fraction of the full ones, by bisection; each step is a whole fit."""
        groups = finite_groups(layer)
        norm = float(np.linalg.norm(groups))

        def meets(ranks: Ranks) -> bool:
            missed = [self._terms(w, ranks)[1] for w in groups]
            return math.hypot(*missed) <= error * norm

        steps = max(self.full_ranks(layer))

        def at(step: int) -> Ranks:
            return self.fraction_ranks(layer, step / steps)

        return at(1 + bisect_left(range(1, steps), True, key=lambda step: meets(at(step))))

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (out, inner), g, b = ranks, layer.groups, self._count(layer)
        t, s = channels(layer)
        ones = (1,) * len(layer.kernel)
        return (g * b * inner, s, *ones), (g * b * out, inner, *layer.kernel), (g * t, b * out, *ones)

    @one_thread()
    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        parts: list[list[Array]] = []
        for w in finite_groups(layer):
            bases_out, cores, bases_in = zip(*self._terms(w, ranks)[0], strict=True)
            parts.append(
                [np.concatenate([b.T for b in bases_in]), np.concatenate(cores), np.hstack(bases_out)]
            )
        shapes = self.shapes(layer, ranks)
        return tuple(stacked(p, s) for p, s in zip(zip(*parts, strict=True), shapes, strict=True))

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        assert layer.conv is not None
        first, core, last = factors
        g, d = layer.groups, len(layer.kernel)
        spec = replace(layer.conv, groups=g * self._count(layer))
        steps = (pointwise(first, g, d, "first"), Convolve(core, spec, "core"), pointwise(last, g, d, "last"))
        return Chain(steps, layer.bias, layer.inputs, g)

    def _count(self, layer: Layer) -> int:
        return min(self.blocks, *channels(layer))

    def _terms(self, w: Array, ranks: Ranks) -> tuple[list[tuple[Array, Array, Array]], float]:
        """The terms (A, core, B) of one group, and the norm of what they leave.

        All of them together lie in a Tucker tensor of B times the ranks, in whose bases they are looked for.
        """
        count = min(self.blocks, *w.shape[:2])
        total = float(np.linalg.norm(w))
        outer = tuple(min(n, count * r) for n, r in zip(w.shape, ranks, strict=False))
        left, right = hooi(w, outer, self.tolerance, self.max_sweeps)
        inside = compress_inputs(mode_dot(w, left, 0, transpose=True), right)
        terms: list[tuple[Array, Array, Array]] = []
        rest, error = inside, math.inf
        for _ in range(max(1, self.max_sweeps)):
            for index in range(count):
                aim = rest + _tensor(terms[index]) if index < len(terms) else rest
                a, b = hooi(aim, ranks, self.tolerance, self.max_sweeps)
                term = (a, compress_inputs(mode_dot(aim, a, 0, transpose=True), b), b)
                terms[index : index + 1] = [term]
                rest = aim - _tensor(term)
            previous, error = error, float(np.linalg.norm(rest)) / total if total else 0.0
            if previous - error < self.tolerance:
                break
        found = [(left @ a, core, right @ b) for a, core, b in terms]
        return found, float(np.linalg.norm(sum((-_tensor(term) for term in found), w)))


def _tensor(term: tuple[Array, Array, Array]) -> Array:
    a, core, b = term
    return mode_dot(compress_inputs(core, b.T), a, 0)
