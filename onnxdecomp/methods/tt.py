"""Tensor train: a matrix as a train of small cores, a convolution as two or three convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from onnxdecomp.chain import Chain, Convolve, MatMul, Reshape, Step, Transpose, pointwise
from onnxdecomp.errors import UsageError
from onnxdecomp.layer import Array, Layer
from onnxdecomp.methods.base import Factors, Ranks
from onnxdecomp.methods.linalg import (
    column_basis,
    finite_groups,
    fraction_of,
    pooled,
    singular_values,
    stacked,
    tail_rank,
)
from onnxdecomp.methods.modes import Modes, matrix_modes, parse_modes
from onnxdecomp.methods.svd import channels, common_refusal

Train: TypeAlias = list[Array]


@dataclass(frozen=True)
class Tt:
    """Tensor-train decomposition by TT-SVD (Oseledets 2011).

    Linear, the TT-matrix (Novikov et al. 2015): S = Π i_k and T = Π j_k, and core k has the shape
    [r_{k-1}, i_k, j_k, r_k] with r_0 = r_d = 1. The chain contracts one core after the other with the
    activation, from the end that costs fewer multiplications; each core takes one MatMul and one
    Transpose. Ranks are one number per bond; a fraction f below 1 is one cap for all bonds: the largest
    whose cores hold at most f of the dense weight's parameters (TensorLy's convention for TT), as the
    full bond ranks hold more parameters than the matrix itself.

    Convolution, the channel form: per group the train over (input channels, kernel, output channels)
    with cores [S, r_1], [r_1, *k, r_2], [r_2, T]: a 1x1 convolution [g r_1, S, 1…], the k-sized one
    [g r_2, r_1, *k] with the layer's attributes, a 1x1 one [T, r_2, 1…]. It spans the same set as
    Tucker-2 at the same ranks; the TT-SVD finds its point in one pass (a sequentially truncated HOSVD)
    where Tucker's HOOI iterates.

    Attributes:
        order: d, the number of cores of a TT-matrix; 0 takes 2 for matrices of fewer than 2^16 elements,
            else 3, fewer where a dimension has no balanced factors.
        shape: The modes, "4x7x4x7:5x5x5x5" (inputs, then outputs), for a matrix of exactly that size.
    """

    name: ClassVar[str] = "tt"
    summary: ClassVar[str] = "tensor train: TT-matrix of a linear layer, channel train of a convolution"
    paper: ClassVar[str] = "Novikov et al. 2015, arXiv:1509.06569; Garipov et al. 2016, arXiv:1611.03214"
    rank_names: ClassVar[tuple[str, ...]] = ("bond 1", "bond 2", "…")
    takes: ClassVar[tuple[str, ...]] = (
        "Conv 1-D/2-D/3-D, grouped",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "1x1 Conv (as svd)",
    )

    order: int = 0
    shape: str = ""

    def __post_init__(self) -> None:
        if self.order < 0 or self.order == 1:
            raise UsageError(f"tt: order {self.order}: give 2 or more cores, or 0 for automatic")
        if self.shape:
            parse_modes(self.shape)

    def refusal(self, layer: Layer) -> str | None:
        if layer.is_stack:
            return "a stack of matrices: use svd"
        if layer.is_matrix and layer.conv is not None:
            return "a 1x1 convolution: use svd"
        if (common := common_refusal(layer)) is not None:
            return common
        if layer.conv is None and self.shape:
            modes = parse_modes(self.shape)
            sizes = math.prod(j for _, j in modes), math.prod(i for i, _ in modes)
            if sizes != channels(layer):
                return f"the shape {self.shape} is of another size than {layer.inputs}:{layer.outputs}"
        return "full ranks of 1: nothing to reduce" if max(self.full_ranks(layer)) < 2 else None

    def full_ranks(self, layer: Layer) -> Ranks:
        sizes = self._sizes(layer)
        return tuple(min(math.prod(sizes[:b]), math.prod(sizes[b:])) for b in range(1, len(sizes)))

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        full = self.full_ranks(layer)
        if layer.conv is not None or fraction >= 1:
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

    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        """TT-SVD with error/√(d-1) per bond; of several groups the largest ranks."""
        share = error / math.sqrt(len(self._sizes(layer)) - 1)
        trains = [_tt_svd(x, None, share) for x in self._tensors(layer)]
        return tuple(max(t[b].shape[-1] for t in trains) for b in range(len(trains[0]) - 1))

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        if layer.conv is None:
            bonds = (1, *ranks, 1)
            return tuple((bonds[k], i, j, bonds[k + 1]) for k, (i, j) in enumerate(self.modes(layer)))
        (r1, r2), g, ones = ranks, layer.groups, (1,) * len(layer.kernel)
        t, s = channels(layer)
        return (g * r1, s, *ones), (g * r2, r1, *layer.kernel), (g * t, r2, *ones)

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        shapes = self.shapes(layer, ranks)
        trains = [_balanced(_tt_svd(x, ranks, 0.0)) for x in self._tensors(layer)]
        if layer.conv is None:
            (train,) = trains
            return tuple(core.reshape(shape) for core, shape in zip(train, shapes, strict=True))
        # [1, S, r1], [r1, K, r2], [r2, T, 1] to convolution weights, outputs first.
        firsts = [a[0].T for a, _, _ in trains]
        cores = [b.transpose(2, 0, 1) for _, b, _ in trains]
        lasts = [c[:, :, 0].T for _, _, c in trains]
        return tuple(stacked(p, shape) for p, shape in zip((firsts, cores, lasts), shapes, strict=True))

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        if layer.conv is None:
            return Chain(_contraction(factors), layer.bias, layer.inputs)
        g, d = layer.groups, len(layer.kernel)
        first, core, last = factors
        steps = (
            pointwise(first, g, d, "first"),
            Convolve(core, layer.conv, "core"),
            pointwise(last, g, d, "last"),
        )
        return Chain(steps, layer.bias, layer.inputs, g)

    def modes(self, layer: Layer) -> Modes:
        """The (i_k, j_k) of a linear layer's TT-matrix."""
        if self.shape:
            return parse_modes(self.shape)
        order = self.order or (2 if layer.weight.size < 1 << 16 else 3)
        return matrix_modes(layer.inputs, layer.outputs, order)

    def _sizes(self, layer: Layer) -> tuple[int, ...]:
        """Sizes of the tensor's axes that the train runs over."""
        if layer.conv is None:
            return tuple(i * j for i, j in self.modes(layer))
        t, s = channels(layer)
        return s, math.prod(layer.kernel), t

    def _tensors(self, layer: Layer) -> list[Array]:
        """That tensor, one per group."""
        groups, sizes = finite_groups(layer), self._sizes(layer)
        if layer.conv is None:
            ins, outs = zip(*self.modes(layer), strict=True)
            d = len(ins)
            pairs = [axis for k in range(d) for axis in (d + k, k)]
            return [w.reshape(*outs, *ins).transpose(pairs).reshape(sizes) for w in groups]
        return [np.moveaxis(w.reshape(*w.shape[:2], -1), 0, 2) for w in groups]


def _tt_svd(tensor: Array, ranks: Ranks | None, share: float) -> Train:
    """Cores [r_{k-1}, n_k, r_k] of these ranks or, without any, of the error `share` per bond."""
    sizes = tensor.shape
    # Projections keep the norm of what is left, so the bound per bond is one of the whole tensor.
    allowed = share * math.sqrt(float(np.sum(np.square(tensor, dtype=np.float64))))
    cores: Train = []
    rest, left = tensor, 1
    for bond, size in enumerate(sizes[:-1]):
        rest = rest.reshape(left * size, -1)
        if ranks is not None:
            rank = ranks[bond]
        else:
            values = singular_values(rest)
            norm = float(np.linalg.norm(values))
            rank = tail_rank(values, allowed / norm) if norm else 1
        core = column_basis(rest, rank)
        rest = core.T @ rest
        cores.append(core.reshape(left, size, rank))
        left = rank
    cores.append(rest.reshape(left, sizes[-1], 1))
    return cores


def _balanced(cores: Train) -> Train:
    """The same tensor with one norm for all cores: no half-precision intermediate overflows."""
    norms = [float(np.linalg.norm(c.astype(np.float64))) for c in cores]
    if not all(norms):
        return cores
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [c * np.asarray(mean / n, c.dtype) for c, n in zip(cores, norms, strict=True)]


def _contraction(cores: Factors) -> tuple[Step, ...]:
    """The steps of a TT-matrix with cores [r_{k-1}, i_k, j_k, r_k], from the cheaper end."""
    inputs = math.prod(core.shape[1] for core in cores)
    forward, backward = (Chain(tuple(walk(cores)), None, inputs) for walk in (_forward, _backward))
    one = (1, inputs)
    return (forward if forward.macs(one) <= backward.macs(one) else backward).steps


def _forward(cores: Factors) -> list[Step]:
    """Contract i_1 first; before core k the state is [i_k, i_{k+1}…i_d, j_1…j_{k-1}, r_{k-1}]."""
    steps: list[Step] = []
    size = math.prod(core.shape[1] for core in cores)
    state: tuple[int, ...] = (size,)
    for k, core in enumerate(cores):
        before, i, j, after = core.shape
        others = size // i  # i_{k+1}…i_d and j_1…j_{k-1} together
        steps += _moved(state, (i, others, before), (1, 0, 2), (others, i * before))
        steps.append(MatMul(core.transpose(1, 0, 2, 3).reshape(i * before, j * after), f"core{k + 1}"))
        state, size = (others, j * after), others * j
    return [*steps, *_moved(state, (size,), (0,), (size,))]


def _backward(cores: Factors) -> list[Step]:
    """Contract i_d first; before core k the state is [i_1…i_k, j_{k+2}…j_d, r_k, j_{k+1}]."""
    steps: list[Step] = []
    rest = math.prod(core.shape[1] for core in cores)
    state: tuple[int, ...] = (rest,)
    done = newest = 1
    for k, core in reversed(list(enumerate(cores))):
        before, i, j, after = core.shape
        rest //= i
        # The newest output mode goes in front of the older ones, r_k next to i_k.
        axes = (rest, i, done, after, newest)
        done *= newest
        steps += _moved(state, axes, (0, 4, 2, 1, 3), (rest * done, i * after))
        steps.append(MatMul(core.transpose(1, 3, 0, 2).reshape(i * after, before * j), f"core{k + 1}"))
        state, newest = (rest * done, before * j), j
    return [*steps, *_moved(state, (done, newest), (1, 0), (done * newest,))]


def _moved(state: Ranks, axes: Ranks, perm: Ranks, target: Ranks) -> list[Step]:
    """Read the state as `axes`, permute them and read the result as `target`, in the fewest steps."""
    order = [p for p in perm if axes[p] != 1]
    kept = sorted(order)
    if order == kept:
        return [Reshape(state, target)] if state != target else []
    source = tuple(axes[axis] for axis in kept)
    moved = tuple(axes[axis] for axis in order)
    steps: list[Step] = [Reshape(state, source)] if state != source else []
    steps.append(Transpose(tuple(kept.index(axis) for axis in order)))
    return [*steps, Reshape(moved, target)] if moved != target else steps
