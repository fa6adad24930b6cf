"""Spatial: a convolution as a sequence of convolutions along one axis each."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, ConvSpec, Factors, Layer, Ranks, channels, common_refusal
from onnxdecomp.core.steps import Convolve
from onnxdecomp.decompositions.base import Decomposition, Refusal
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.decompositions.tucker import Tucker
from onnxdecomp.tensor.cores import balanced
from onnxdecomp.tensor.linalg import fraction_of, tails

Split: TypeAlias = tuple[tuple[int, ...], ...]
"""For each step the spatial axes along which it convolves."""


@dataclass(frozen=True)
class Spatial:
    """The kernel split over its axes (scheme 2 of Jaderberg et al. 2014; "spatial SVD").

    Per group the weight [T, S, k1, k2] is the matrix [(S k1), (T k2)], and its truncated singular value
    decomposition is a k1×1 convolution to r channels [g r, S, k1, 1] and a 1×k2 one to the outputs
    [T, r, 1, k2]: best at its rank in the Frobenius norm (Eckart and Young 1936). The other order is the
    matrix [(S k2), (T k1)].

    A kernel of three axes takes three such steps, with factors [g r1, S, k1, 1, 1], [g r2, r1, 1, k2, 1]
    and [T, r2, 1, 1, k3]: a tensor train of the modes (S k1), k2, (T k3), which is a Tucker-2
    decomposition of the two outer ones and is fitted as one (see Tucker). Or it takes two, one of them
    along two axes, as the (2+1)-D convolutions of Tran et al. (2018, arXiv:1711.11248).

    Each step has the strides, dilations, pads and output padding of its own axes; what axes of length 1
    have is the first step's (a transposed convolution's last), where it saves most.

    A rank fraction is one of the full rank, min(S k1, T k2) of two steps.

    Attributes:
        order: Which axis comes first: "forward" the first of the kernel, "backward" the last one, "auto"
            the order that costs the fewest multiplications at the layer's shape and its full ranks.
        steps: Of a kernel of three axes: 3, or 2 for one axis and then the other two together
            ("backward": those two first; "auto": any axis alone).
    """

    name: ClassVar[str] = "spatial"
    summary: ClassVar[str] = "convolutions along one kernel axis each, by the SVD of the rearranged weight"
    paper: ClassVar[str] = "Jaderberg et al. 2014, arXiv:1405.3866"
    rank_names: ClassVar[tuple[str, ...]] = ("rank", "second rank of a 3-D kernel")
    takes: ClassVar[tuple[str, ...]] = ("Conv 2-D/3-D, grouped", "ConvTranspose 2-D/3-D")

    order: Literal["auto", "forward", "backward"] = "auto"
    steps: Literal[2, 3] = 3

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if layer.conv is None:
            return Refusal("no convolution: use svd")
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        long = len(_long_axes(layer))
        if long < 2:
            return Refusal(("a kernel of one position", "a kernel along one axis only")[long] + ": use svd")
        if long > 3:
            return Refusal(f"a kernel along {long} axes: at most 3 are split")
        return Refusal("full ranks of 1: nothing to reduce") if max(self.full_ranks(layer)) < 2 else self

    def full_ranks(self, layer: Layer) -> Ranks:
        return _full_ranks(layer, self.split(layer))

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        return tuple(fraction_of(full, fraction) for full in self.full_ranks(layer))

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        method, flat = self._flat(layer)
        return method.spectra(flat)[::-1]

    def rank_curve(self, layer: Layer, ranks: Sequence[Ranks]) -> Array:
        return tails(self.spectra(layer), ranks)

    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        method, flat = self._flat(layer)
        return method.ranks_for_error(flat, error)[::-1]

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        return _shapes(layer, ranks, self.split(layer))

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        method, flat = self._flat(layer)
        first, *middle, last = method.fit(flat, ranks[::-1], seed)
        shapes = self.shapes(layer, ranks)
        # The last factor is [(T k), r]: its kernel goes behind the channels.
        last = np.moveaxis(last.reshape(layer.outputs, -1, ranks[-1]), 1, -1)
        factors = balanced((first, *middle, last))
        return tuple(np.ascontiguousarray(f).reshape(s) for f, s in zip(factors, shapes, strict=True))

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        return _chain(layer, factors, self.split(layer))

    def split(self, layer: Layer) -> Split:
        """The axes of the chain's steps, first to last."""
        axes = _long_axes(layer)
        forward: Split = tuple((axis,) for axis in axes)
        if len(axes) == 3 and self.steps == 2:
            forward = (axes[:1], axes[1:])
        if self.order != "auto":
            return forward if self.order == "forward" else forward[::-1]
        assert layer.conv is not None
        return _cheapest(forward, layer.weight.shape, layer.conv, layer.assumed_input_shape())

    def _flat(self, layer: Layer) -> tuple[Decomposition, Layer]:
        """The rearranged weight as a layer [(T k_last), (S k_first)] or, of three steps, with k_2 as its
        kernel, and the method that truncates both of its modes; its ranks are outputs first.
        """
        split = self.split(layer)
        t, s = channels(layer)
        first, *middle, last = (_positions(layer, part) for part in split)
        outer, inner = split[-1], [axis for part in split[1:-1] for axis in part]
        short = [axis for axis, size in enumerate(layer.kernel) if size == 1]
        # From [g, T, S, *k] to [g, T, *k_last, S, *k_first, *k_2, 1…]
        kernels = [[axis + 3 for axis in axes] for axes in (outer, split[0], (*inner, *short))]
        axes = [0, 1, *kernels[0], 2, *kernels[1], *kernels[2]]
        kernel = tuple(middle) or (1,)
        weight = layer.group_weights().transpose(axes).reshape(layer.groups * t * last, s * first, *kernel)
        spec = ConvSpec((1,), (1,), (0, 0), layer.groups)
        flat = replace(layer, weight=weight, conv=spec, bias=None, input_shape=None, output_shape=None)
        return (Tucker(sides="both") if middle else Svd(order="kernel-first")), flat


def _long_axes(layer: Layer) -> tuple[int, ...]:
    return tuple(axis for axis, size in enumerate(layer.kernel) if size > 1)


def _positions(layer: Layer, axes: tuple[int, ...]) -> int:
    return math.prod(layer.kernel[axis] for axis in axes)


def _arrangements(forward: Split) -> set[Split]:
    """All ways to assign the axes to steps of these sizes, in either direction."""
    axes = [axis for part in forward for axis in part]
    splits = set()
    for part_sizes in (tuple(map(len, forward)), tuple(map(len, forward[::-1]))):
        ends = list(itertools.accumulate(part_sizes))
        for order in itertools.permutations(axes):
            parts = (order[end - size : end] for end, size in zip(ends, part_sizes, strict=True))
            splits.add(tuple(tuple(sorted(part)) for part in parts))
    return splits


def _full_ranks(layer: Layer, split: Split) -> Ranks:
    t, s = channels(layer)
    modes = [_positions(layer, part) for part in split]
    modes[0] *= s
    modes[-1] *= t
    return tuple(min(math.prod(modes[:b]), math.prod(modes[b:])) for b in range(1, len(modes)))


def _shapes(layer: Layer, ranks: Ranks, split: Split) -> tuple[tuple[int, ...], ...]:
    t, s = channels(layer)
    ins, outs = (s, *ranks), (*ranks, t)
    kernels = (tuple(size if axis in part else 1 for axis, size in enumerate(layer.kernel)) for part in split)
    return tuple((layer.groups * o, i, *k) for o, i, k in zip(outs, ins, kernels, strict=True))


def _chain(layer: Layer, factors: Factors, split: Split) -> Chain:
    assert layer.conv is not None
    # Axes of kernel size 1 may be strided: early in a convolution, late in a transposed one.
    short = [axis for axis, size in enumerate(layer.kernel) if size == 1]
    taker = len(split) - 1 if layer.conv.transposed else 0
    labels = ("first", "last") if len(split) == 2 else ("first", "middle", "last")
    steps = tuple(
        Convolve(factor, layer.conv.along([*part, *(short if index == taker else [])]), label)
        for index, (factor, part, label) in enumerate(zip(factors, split, labels, strict=True))
    )
    return Chain(steps, layer.bias, layer.inputs, layer.groups)


@functools.lru_cache(maxsize=256)
def _cheapest(forward: Split, shape: tuple[int, ...], conv: ConvSpec, seen: tuple[int, ...]) -> Split:
    """The arrangement of least cost, of a weight of that shape on an input of that one.

    A search asks for it at every rank that it looks at.
    """
    layer = Layer("", "Conv", np.broadcast_to(np.float32(0), shape), None, conv, input_shape=seen)
    return min(sorted(_arrangements(forward)), key=lambda split: _full_macs(layer, split))


def _full_macs(layer: Layer, split: Split) -> int:
    """Multiply-accumulates at full rank: what an order costs for the same accuracy, roughly."""
    shapes = _shapes(layer, _full_ranks(layer, split), split)
    zeros = tuple(np.broadcast_to(np.zeros((), layer.weight.dtype), shape) for shape in shapes)
    return _chain(layer, zeros, split).macs(layer.assumed_input_shape())
