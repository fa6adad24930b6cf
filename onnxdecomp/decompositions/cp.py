"""CP: a convolution as a 1x1, a depthwise and a 1x1 convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, ConvSpec, Factors, Layer, Ranks, channels, common_refusal
from onnxdecomp.core.options import check_numbers
from onnxdecomp.core.steps import Convolve, pointwise
from onnxdecomp.decompositions.base import Decomposition, Refusal
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.tensor.blas_threads import one_thread
from onnxdecomp.tensor.cp_als import alternate, as_double, balanced, distance
from onnxdecomp.tensor.cp_stability import stabilise
from onnxdecomp.tensor.hooi import compress_inputs, hooi
from onnxdecomp.tensor.linalg import (
    finite_groups,
    fraction_of,
    left_basis,
    pooled,
    singular_values,
    stacked,
    tail_rank,
    two_factors,
)
from onnxdecomp.tensor.tenalg import cp_to_tensor, mode_dot, unfold

_MAX_FULL_RANK = 1 << 16
_POLISH = 3
"""Sweeps on the whole weight after those on the compressed one."""
_MIN_SWEEPS = 5
_NOISE = 0.02
"""Noise in the start, relative to each column's root mean square."""
_SMALL = 1 << 13
"""Elements of a tensor up to which several starts take less than a second."""


@dataclass(frozen=True)
class Cp:
    """Canonical polyadic decomposition over outputs, inputs and kernel positions (Lebedev et al. 2015).

    Per group W[t, s, p] = Σ_r A[t, r] B[s, r] C[p, r]. The chain is a 1x1 convolution [g R, S, 1…], a
    depthwise one [g R, 1, *k] with the layer's strides, pads and dilations, and a 1x1 one [T, R, 1…].
    With `split_kernel` each spatial axis is a mode of its own, as in the paper, and there is one
    depthwise convolution per axis longer than 1; that spans a subset of the former.

    The fit compresses both channel modes with Tucker where R is smaller (CANDELINC: Carroll et al. 1980,
    Bro and Andersson 1998), starts from the R strongest singular triples of the kernel's rotated slices
    (an orthogonal, hence stable start) with
    some noise, and runs alternating least squares in float64. In between and at the end an
    error-preserving correction (Phan et al. 2020, arXiv:2008.05441) gives up to half a hundredth of the
    error for the factors of least sensitivity, so that no components grow to cancel each other: see
    onnxdecomp/tensor/cp_stability.py. The full rank, where one mode is copied and the others are one-hot, is
    constructed, not fitted. The seed draws the noise in the start, nothing else. The fit of a small tensor at
    a large rank depends on it by some percent of its error, so the best of several is taken there.

    Attributes:
        split_kernel: One depthwise convolution per spatial axis.
        tolerance: The alternation ends when a sweep lowers the relative error by less than this part.
        max_sweeps: At most so many sweeps.
        effort: Multiply-adds that the sweeps on one layer may take, in units of 10^9; on a large layer
            at a large rank they cut the number of sweeps, never below 5.
        starts: Tensors of up to 8192 elements (of one group) are fitted from so many starts; with one,
            corrections on the way are shorter, too.
    """

    name: ClassVar[str] = "cp"
    summary: ClassVar[str] = "canonical polyadic: 1x1, depthwise, 1x1 convolutions"
    paper: ClassVar[str] = "Lebedev et al. 2015, arXiv:1412.6553; Phan et al. 2020, arXiv:2008.05441"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    takes: ClassVar[tuple[str, ...]] = (
        "Conv 1-D/2-D/3-D, grouped",
        "ConvTranspose",
        "Gemm, MatMul, batched MatMul, 1x1 Conv, LSTM, GRU, RNN, Gather (as svd)",
    )

    split_kernel: bool = False
    tolerance: float = 1e-3
    max_sweeps: int = 50
    effort: float = 40.0
    starts: int = 4

    def __post_init__(self) -> None:
        check_numbers(self, tolerance=0, max_sweeps=0, effort=0, starts=1)

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if layer.conv is None or layer.is_matrix:
            return Svd().specialise(layer)
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        (full,) = self.full_ranks(layer)
        if full > _MAX_FULL_RANK:
            return Refusal(f"a full rank of {full}, above {_MAX_FULL_RANK}: use tucker")
        return Refusal("a full rank of 1: nothing to reduce") if full < 2 else self

    def quick(self) -> Decomposition:
        """From a single start."""
        return replace(self, starts=1)

    def full_ranks(self, layer: Layer) -> Ranks:
        modes = self._modes(layer)
        return (math.prod(modes) // max(modes),)

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        """Below 1, the R whose factors hold that fraction of the weight's parameters; 1 is full."""
        (full,) = self.full_ranks(layer)
        if fraction >= 1:
            return (full,)
        modes = self._modes(layer)
        return (fraction_of(full, fraction * math.prod(modes) / sum(modes) / full),)

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        """Of the output and the input mode: one rank must serve both, so rules take the larger."""
        groups = finite_groups(layer)
        return tuple(pooled(singular_values(w, axis) for w in groups) for axis in (0, 1))

    @one_thread()
    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        """Bisection to within 3 %, each step a whole fit: seconds to minutes on a large layer."""
        (full,) = self.full_ranks(layer)
        groups, modes = finite_groups(layer), self._modes(layer)
        low = min(full, max(tail_rank(values, error) for values in self.spectra(layer)))

        def meets(rank: int) -> bool:
            fitted = [self._fit(w.reshape(modes), rank, full) for w in groups]
            missed = np.stack([cp_to_tensor(f) for f in fitted]) - groups.reshape(-1, *modes)
            return float(np.linalg.norm(missed)) <= error * float(np.linalg.norm(groups))

        if meets(low):
            return (low,)
        high = low
        while high < full:
            high = min(full, 2 * high)
            if high == full or meets(high):
                break
            low = high
        while high - low > max(1, high * 3 // 100):
            middle = (low + high) // 2
            low, high = (low, middle) if meets(middle) else (middle, high)
        return (high,)

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (r,), g, d = ranks, layer.groups, len(layer.kernel)
        t, s = channels(layer)
        ones = (1,) * d
        depthwise = [(g * r, 1, *kernel) for kernel, _ in self._depthwise(layer)]
        return (g * r, s, *ones), *depthwise, (g * t, r, *ones)

    @one_thread()
    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        (r,), (full,) = ranks, self.full_ranks(layer)
        modes = self._modes(layer)
        fitted = [self._fit(w.reshape(modes), r, full, seed) for w in finite_groups(layer)]
        # Convolution weights: the depthwise steps follow the inputs' one, the outputs' is the last.
        last, *others = zip(*fitted, strict=True)
        parts = [[f.T for f in factor] for factor in others] + [list(last)]
        shapes = self.shapes(layer, ranks)
        dtype = layer.weight.dtype
        return tuple(stacked(p, s).astype(dtype, copy=False) for p, s in zip(parts, shapes, strict=True))

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        g, d = layer.groups, len(layer.kernel)
        first, *middle, last = factors
        labels = ["depthwise"] if len(middle) == 1 else [f"depthwise{i + 1}" for i in range(len(middle))]
        depthwise = [
            Convolve(w, replace(spec, groups=w.shape[0]), label)
            for w, (_, spec), label in zip(middle, self._depthwise(layer), labels, strict=True)
        ]
        steps = (pointwise(first, g, d, "first"), *depthwise, pointwise(last, g, d, "last"))
        return Chain(steps, layer.bias, layer.inputs, g)

    def _modes(self, layer: Layer) -> tuple[int, ...]:
        """Sizes of the modes: outputs, inputs, and the kernel as one mode or by axes."""
        kernels = (math.prod(kernel) for kernel, _ in self._depthwise(layer))
        return (*channels(layer), *kernels)

    def _depthwise(self, layer: Layer) -> list[tuple[tuple[int, ...], ConvSpec]]:
        """The kernel and the attributes of each depthwise step."""
        assert layer.conv is not None
        kernel = layer.kernel
        long = [axis for axis, size in enumerate(kernel) if size > 1]
        if not self.split_kernel or len(long) < 2:
            return [(kernel, layer.conv)]
        # An axis of length 1 has no step, but may have a stride or pads: the first step takes them.
        rest = [axis for axis in range(len(kernel)) if axis not in long]
        return [
            (
                tuple(size if axis == own else 1 for axis, size in enumerate(kernel)),
                layer.conv.along([own, *(rest if own == long[0] else [])]),
            )
            for own in long
        ]

    def _fit(self, w: Array, rank: int, full: int, seed: int = 0) -> list[Array]:
        """Factors [n_m, R] of one group's tensor, in float64 or the weight's dtype."""
        if rank >= full:
            return _exact(w)
        if not w.any():
            return [np.zeros((n, rank), w.dtype) for n in w.shape]
        inner = tuple(min(rank, n, w.size // n) for n in w.shape[:2])
        if inner == w.shape[:2]:
            rng, start = np.random.default_rng(seed), _start(w, rank)
            tries = max(1, self.starts) if w.size <= _SMALL else 1
            fitted = (self._refined(w, _perturbed(start, rng)) for _ in range(tries))
            factors = min(fitted, key=lambda found: distance(w, found))
        else:
            a, b = hooi(w, inner, 1e-3, 3)
            core = compress_inputs(mode_dot(w, a, 0, transpose=True), b)
            small = self._refined(core, _perturbed(_start(core, rank), np.random.default_rng(seed)))
            factors = alternate(w, [a @ small[0], b @ small[1], *small[2:]], 0.0, _POLISH)
        return balanced(stabilise(as_double(w), factors, self._sweeps(w, rank, correction=True)))

    def _refined(self, w: Array, start: list[Array]) -> list[Array]:
        """Least squares, then corrections with least squares after them, while that lowers the error.

        A correction takes the iteration out of the valleys of large cancelling components in which
        alternating least squares creeps: the next run ends lower and flatter.
        """
        rank = start[0].shape[1]
        best = alternate(w, start, self.tolerance, self._sweeps(w, rank))
        least = distance(w, best)
        sweeps = self._sweeps(w, rank, correction=True)
        # Where fits are only compared they are half as long: a third of the time for 0.3 % of loss.
        some = sweeps if self.starts > 1 else (sweeps + 1) // 2
        for _ in range(sweeps // 2):
            flat = stabilise(as_double(w), best, some)
            again = alternate(w, flat, self.tolerance, (self._sweeps(w, rank) + 1) // 2)
            if distance(w, again) > least * (1 - self.tolerance):
                break
            best, least = again, distance(w, again)
        return best

    def _sweeps(self, w: Array, rank: int, correction: bool = False) -> int:
        """How many sweeps the effort allows; a correction also takes an R x R eigenproblem per mode."""
        cost = 2 * w.size * rank + (10 * w.ndim * rank**3 if correction else 0)
        most, least = (min(10, self.max_sweeps), 2) if correction else (self.max_sweeps, _MIN_SWEEPS)
        return min(most, max(least, int(self.effort * 1e9 / cost)))


def _exact(w: Array) -> list[Array]:
    """The trivial decomposition of rank size / max(n): the longest mode copied, the others one-hot."""
    longest = int(np.argmax(w.shape))
    others = [m for m in range(w.ndim) if m != longest]
    places = np.indices([w.shape[m] for m in others]).reshape(len(others), -1)
    factors = [unfold(w, longest)] * w.ndim
    for m, index in zip(others, places, strict=True):
        factors[m] = np.eye(w.shape[m], dtype=w.dtype)[:, index]
    return factors


def _start(w: Array, rank: int) -> list[Array]:
    """The strongest `rank` singular triples over the slices [T, S] of the kernel's principal axes."""
    bases = [left_basis(w, m)[0] for m in range(2, w.ndim)]
    rotated = w
    for m, basis in enumerate(bases):
        rotated = np.moveaxis(np.tensordot(rotated, basis.astype(w.dtype), axes=(2 + m, 0)), -1, 2 + m)
    t, s, *kernel = w.shape
    slices = rotated.reshape(t, s, -1)
    pairs = [two_factors(slices[:, :, p], min(rank, t, s)) for p in range(slices.shape[2])]
    a = np.concatenate([left for left, _ in pairs], axis=1)
    b = np.concatenate([right.T for _, right in pairs], axis=1)
    position = np.repeat(np.arange(slices.shape[2]), min(rank, t, s))
    strength = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    chosen = np.argsort(-strength, kind="stable")[:rank]
    places = np.unravel_index(position[chosen], kernel)
    kernels = [basis[:, place] for basis, place in zip(bases, places, strict=True)]
    return [a[:, chosen], b[:, chosen], *kernels]


def _perturbed(factors: list[Array], rng: np.random.Generator) -> list[Array]:
    """The start moved off the saddle points that an orthogonal one may be, as for symmetric tensors."""
    sizes = [_NOISE * np.sqrt(np.mean(np.square(f), axis=0)) for f in factors]
    return [f + size * rng.standard_normal(f.shape) for f, size in zip(factors, sizes, strict=True)]
