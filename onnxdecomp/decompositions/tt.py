"""Tensor train: a matrix as a train of small cores, a convolution as a channel train or a train of modes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks, channels, common_refusal
from onnxdecomp.core.steps import Convolve, Pad, Slice, Step, pointwise
from onnxdecomp.decompositions.base import Decomposition, Refusal
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.errors import UsageError
from onnxdecomp.tensor import tt_matrix_modes as matrix
from onnxdecomp.tensor.contraction_order import conv_order, conv_steps, linear_order, linear_steps
from onnxdecomp.tensor.cores import balanced
from onnxdecomp.tensor.linalg import finite_groups, fraction_of, pooled, singular_values, stacked, tails
from onnxdecomp.tensor.tensor_network import KERNEL, Node, cheapest, contract
from onnxdecomp.tensor.tensor_train import ranks_within, tt_svd
from onnxdecomp.tensor.tt_matrix_modes import MOST_MODES, Modes


@dataclass(frozen=True)
class Tt:
    """Tensor-train decomposition by TT-SVD (Oseledets 2011).

    Linear, the TT-matrix (Novikov et al. 2015): S = Π i_k and T = Π j_k, and core k has the shape
    [r_{k-1}, i_k, j_k, r_k] with r_0 = r_d = 1. The chain contracts one core after the other with the
    activation, in the order of the fewest multiplications and without transposes (see
    onnxdecomp.tensor.contraction_order). Ranks are one number per bond; a fraction f below 1 is one cap for
    all bonds: the largest whose cores hold at most f of the dense weight's parameters (TensorLy's
    convention for TT), as the full bond ranks hold more parameters than the matrix itself.

    Convolution, the channel form: per group the train over (input channels, kernel, output channels)
    with cores [S, r_1], [r_1, *k, r_2], [r_2, T]: a 1x1 convolution [g r_1, S, 1…], the k-sized one
    [g r_2, r_1, *k] with the layer's attributes, a 1x1 one [T, r_2, 1…]. It spans the same set as
    Tucker-2 at the same ranks; the TT-SVD finds its point in one pass (a sequentially truncated HOSVD)
    where Tucker's HOOI iterates.

    Convolution, the tensor form (Garipov et al. 2016): the channels are modes S = Π i_k, T = Π j_k as of
    a TT-matrix, with the cores [r_{k-1}, i_k, j_k, r_k] and the kernel's core [r_d, *k] at the end of the
    train (at its beginning in the paper). The kernel's core is a convolution from one channel to r_d
    that all channels share, the others are 1x1 convolutions of few channels. Ranks as of a TT-matrix. With
    groups each has a train of its own, and the cores [g, r_{k-1}, i_k, j_k, r_k] are grouped convolutions.

    A dimension without even factors, such as a prime, is padded: the input gets zeros and the outputs that
    stand for nothing are cut off. The train approximates the weight with zeros around it. The channels of a
    group are not padded.

    Attributes:
        form: Of a convolution: "channel" or "tensor".
        order: d, the number of modes; 0 takes 2 for matrices of fewer than 2^16 elements, else 3.
        shape: The modes, "4x7x4x7:5x5x5x5" (inputs, then outputs), for a matrix of that size or one that
            is smaller by an eighth at most (padded); of one group.
    """

    name: ClassVar[str] = "tt"
    summary: ClassVar[str] = (
        "tensor train: TT-matrix of a linear layer, channel or tensor train of a convolution"
    )
    paper: ClassVar[str] = "Novikov et al. 2015, arXiv:1509.06569; Garipov et al. 2016, arXiv:1611.03214"
    rank_names: ClassVar[tuple[str, ...]] = ("bond 1", "bond 2", "…")
    takes: ClassVar[tuple[str, ...]] = (
        "Conv 1-D/2-D/3-D, grouped",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "1x1 Conv (as svd in the channel form)",
    )

    form: Literal["channel", "tensor"] = "channel"
    order: int = 0
    shape: str = ""

    def __post_init__(self) -> None:
        if self.form not in ("channel", "tensor"):
            raise UsageError(f"tt: form {self.form!r}: give channel or tensor")
        if self.order < 0 or self.order == 1 or self.order > MOST_MODES:
            raise UsageError(f"tt: order {self.order}: give 2 to {MOST_MODES} cores, or 0 for automatic")
        if self.shape:
            matrix.parse_modes(self.shape)

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if layer.is_stack:
            return Refusal("a stack of matrices: use svd")
        if layer.is_matrix and self._by_channels(layer):
            return Svd().specialise(layer)
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        if not self._by_channels(layer):
            t, s = channels(layer)
            exact = matrix.sizes(self.modes(layer)) == (s, t)
            if not (exact if layer.groups > 1 else matrix.fits(self.modes(layer), s, t)):
                return Refusal(f"the shape {self.shape} is of another size than {s}:{t}")
        return Refusal("full ranks of 1: nothing to reduce") if max(self.full_ranks(layer)) < 2 else self

    def full_ranks(self, layer: Layer) -> Ranks:
        sizes = self._sizes(layer)
        return tuple(min(math.prod(sizes[:b]), math.prod(sizes[b:])) for b in range(1, len(sizes)))

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        full = self.full_ranks(layer)
        if self._by_channels(layer) or fraction >= 1:
            return tuple(fraction_of(f, fraction) for f in full)

        def size(cap: int) -> int:
            return sum(math.prod(s) for s in self.shapes(layer, tuple(min(cap, f) for f in full)))

        low, high = 1, max(full)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if size(middle) <= fraction * layer.weight.size else (low, middle - 1)
        return tuple(min(low, f) for f in full)

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        tensors = self._tensors(layer)
        sizes = self._sizes(layer)
        bonds = [math.prod(sizes[:b]) for b in range(1, len(sizes))]
        return tuple(pooled(singular_values(x.reshape(rows, -1)) for x in tensors) for rows in bonds)

    def rank_curve(self, layer: Layer, ranks: Sequence[Ranks]) -> Array:
        return tails(self.spectra(layer), ranks)

    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        """TT-SVD with error/√(d-1) per bond; of several groups the largest ranks."""
        found = [ranks_within(x, error) for x in self._tensors(layer)]
        return tuple(max(ranks) for ranks in zip(*found, strict=True))

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        if self._by_channels(layer):
            (r1, r2), g, ones = ranks, layer.groups, (1,) * len(layer.kernel)
            t, s = channels(layer)
            return (g * r1, s, *ones), (g * r2, r1, *layer.kernel), (g * t, r2, *ones)
        bonds = (1, *ranks, 1)
        cores: list[tuple[int, ...]] = [
            (bonds[k], i, j, bonds[k + 1]) for k, (i, j) in enumerate(self.modes(layer))
        ]
        if layer.conv is not None:
            cores.append((ranks[-1], *layer.kernel))
        groups = (layer.groups,) if layer.groups > 1 else ()
        return tuple((*groups, *core) for core in cores)

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        shapes = self.shapes(layer, ranks)
        trains = [balanced(tt_svd(x, ranks)) for x in self._tensors(layer)]
        if not self._by_channels(layer):
            return tuple(
                stacked(p, shape) for p, shape in zip(zip(*trains, strict=True), shapes, strict=True)
            )
        # [1, S, r1], [r1, K, r2], [r2, T, 1] to convolution weights, outputs first.
        firsts = [a[0].T for a, _, _ in trains]
        cores = [b.transpose(2, 0, 1) for _, b, _ in trains]
        lasts = [c[:, :, 0].T for _, _, c in trains]
        return tuple(stacked(p, shape) for p, shape in zip((firsts, cores, lasts), shapes, strict=True))

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        if not self._by_channels(layer):
            return self._through_modes(layer, factors)
        assert layer.conv is not None
        g, d = layer.groups, len(layer.kernel)
        first, core, last = factors
        steps = (
            pointwise(first, g, d, "first"),
            Convolve(core, layer.conv, "core"),
            pointwise(last, g, d, "last"),
        )
        return Chain(steps, layer.bias, layer.inputs, g)

    def _through_modes(self, layer: Layer, cores: Factors) -> Chain:
        if layer.groups > 1:
            return _in_groups(layer, cores)
        inputs, outputs = matrix.sizes(self.modes(layer))
        axis = -1 if layer.conv is None else 1
        steps: list[Step] = [Pad(inputs - layer.inputs, axis, "pad")] if inputs > layer.inputs else []
        if layer.conv is None:
            steps += linear_steps(cores, linear_order(cores))
        else:
            steps += conv_steps(cores, layer.conv, conv_order(cores, layer.conv))
        if outputs > layer.outputs:
            steps.append(Slice(layer.outputs, axis, "narrow"))
        return Chain(tuple(steps), layer.bias, layer.inputs)

    def modes(self, layer: Layer) -> Modes:
        """The (i_k, j_k) of a linear layer's TT-matrix, or of a convolution's tensor form."""
        if self.shape:
            return matrix.parse_modes(self.shape)
        t, s = channels(layer)
        order = self.order or (2 if s * t < 1 << 16 else 3)
        return matrix.matrix_modes(s, t, order, padded=layer.groups == 1)

    def _by_channels(self, layer: Layer) -> bool:
        return layer.conv is not None and self.form == "channel"

    def _sizes(self, layer: Layer) -> tuple[int, ...]:
        """Sizes of the tensor's axes that the train runs over."""
        if self._by_channels(layer):
            t, s = channels(layer)
            return s, math.prod(layer.kernel), t
        pairs = tuple(i * j for i, j in self.modes(layer))
        return pairs if layer.conv is None else (*pairs, math.prod(layer.kernel))

    def _tensors(self, layer: Layer) -> list[Array]:
        """That tensor, one per group."""
        groups = finite_groups(layer)
        if self._by_channels(layer):
            return [np.moveaxis(w.reshape(*w.shape[:2], -1), 0, 2) for w in groups]
        return [self._by_modes(w.reshape(*w.shape[:2], -1), layer) for w in groups]

    def _by_modes(self, w: Array, layer: Layer) -> Array:
        """The weight [T, S, K] of a group with its modes paired."""
        modes = self.modes(layer)
        ins, outs = zip(*modes, strict=True)
        inputs, outputs = matrix.sizes(modes)
        d = len(modes)
        pairs = [axis for k in range(d) for axis in (d + k, k)]
        if (outputs, inputs) != w.shape[:2]:
            w = np.pad(w, ((0, outputs - w.shape[0]), (0, inputs - w.shape[1]), (0, 0)))
        return w.reshape(*outs, *ins, -1).transpose(*pairs, 2 * d).reshape(self._sizes(layer))


def _in_groups(layer: Layer, cores: Factors) -> Chain:
    """The cheapest of some orders of the grouped cores [g, r_{k-1}, i_k, j_k, r_k], …, [g, r_d, *kernel]."""
    *channel_cores, kernel = cores
    d = len(channel_cores)
    nodes = [
        Node(core[:, 0], ("s0", "t0", "r0"), "core1")
        if k == 0
        else Node(core, (f"r{k - 1}", f"s{k}", f"t{k}", f"r{k}"), f"core{k + 1}")
        for k, core in enumerate(channel_cores)
    ]
    spatial = Node(kernel.reshape(*kernel.shape[:2], -1), (f"r{d - 1}", KERNEL), "kernel")
    inputs = {f"s{k}": core.shape[2] for k, core in enumerate(channel_cores)}
    outputs = [f"t{k}" for k in range(d)]
    orders = [[*nodes, spatial], [*nodes[::-1], spatial], [spatial, *nodes], [spatial, *nodes[::-1]]]
    return cheapest([contract(layer, order, inputs, outputs) for order in orders], layer)
