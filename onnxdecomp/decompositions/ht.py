"""Hierarchical Tucker: a tree of small tensors between the modes of the inputs and of the outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks
from onnxdecomp.decompositions.base import Decomposition, Refusal
from onnxdecomp.tensor.cores import balanced
from onnxdecomp.tensor.dimension_tree import Tree, Vertex, balanced_tree, hierarchical_svd
from onnxdecomp.tensor.linalg import fraction_of, pooled, singular_values, tail_rank
from onnxdecomp.tensor.tensor_network import KERNEL, Node, contract
from onnxdecomp.tensor.tensorization import Sides, check_options, sides_of, sides_refusal, split


@dataclass(frozen=True)
class Ht:
    """Hierarchical Tucker decomposition by the hierarchical SVD (Grasedyck 2010; Cohen et al. 2016, 2017).

    The weight of each group is a tensor over the input modes s_1…s_p (S = Π s_k), the kernel as one mode
    K, and the output modes t_1…t_q (T = Π t_k). The root of the binary dimension tree has the inputs and
    the kernel on one side and the outputs on the other; either side halves its channel modes. A leaf holds
    a basis [groups, n, r] of its mode, any other vertex a transfer tensor [groups, r_left, r_right, r],
    children before parents, first the inputs' side. The root's tensor is part of the last one. A leaf
    whose rank is its size would be a mere rotation and is left out. The chain runs up the inputs' side
    and down the outputs'. A convolution of unsplit channels: 1x1 from S to r_in, the kernel's basis as a
    convolution of one channel to r_kernel with the r_in regrouped with the batch, 1x1 from r_in r_kernel to
    r_out, 1x1 to T; with the kernel's basis left out, the k-sized step from r_in to r_out.

    Ranks are one number per edge of the tree, the leaves' and the inner ones', in the order of the
    vertices (Ht.edges names them): in, kernel, out for a convolution of unsplit channels. The fraction f
    is that of the full ranks of either side as a whole and of the kernel; m of the p modes of a side have
    f^(m/p) of theirs, so that together they can fill the side's.

    Attributes:
        order: Modes per side; 0 takes 2 for matrices (1x1 convolutions too) and 1 for other convolutions.
        shape: The modes, "16x32:8x8" (inputs, then outputs, of one group), for a weight of that size.
    """

    name: ClassVar[str] = "ht"
    summary: ClassVar[str] = "hierarchical Tucker: bases of the modes and a tree of transfer tensors"
    paper: ClassVar[str] = (
        "Grasedyck 2010, doi:10.1137/090764189; Cohen et al. 2016, arXiv:1509.05009; "
        "Cohen et al. 2017, arXiv:1705.02302"
    )
    rank_names: ClassVar[tuple[str, ...]] = ("edge 1", "edge 2", "…")
    takes: ClassVar[tuple[str, ...]] = (
        "Conv 1-D/2-D/3-D, grouped",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "LSTM, GRU, RNN, Gather (at ranks that leave the modes on that side whole)",
    )

    order: int = 0
    shape: str = ""

    def __post_init__(self) -> None:
        check_options(self.name, self.order, self.shape)

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if (reason := sides_refusal(layer, self.shape)) is not None:
            return Refusal(reason)
        return Refusal("full ranks of 1: nothing to reduce") if max(self.full_ranks(layer)) < 2 else self

    def full_ranks(self, layer: Layer) -> Ranks:
        sides = self._sides(layer)
        return tuple(_tree(sides).full_ranks(sides.sizes).values())

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        sides = self._sides(layer)
        tree = _tree(sides)

        def share(v: Vertex) -> float:
            """The part of its side's channels that the modes of this vertex make up, on a log scale."""
            count = len(sides.ins) if v.stop <= len(sides.ins) else len(sides.outs)
            return 1 if KERNEL in sides.names[v.start : v.stop] else (v.stop - v.start) / count

        full = zip(tree.edges, self.full_ranks(layer), strict=True)
        return tree.attainable([fraction_of(rank, fraction ** share(v)) for v, rank in full])

    def edges(self, layer: Layer) -> tuple[str, ...]:
        """The names of the ranks: the modes under each edge, "s1", "s1 s2 kernel", …"""
        sides = self._sides(layer)
        return tuple(" ".join(sides.names[v.start : v.stop]) for v in _tree(sides).edges)

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        sides = self._sides(layer)
        tensors = split(layer, sides)

        def values(x: Array, v: Vertex) -> Array:
            before = math.prod(x.shape[: v.start])
            return singular_values(x.reshape(before, v.size(x.shape), -1), 1)

        return tuple(pooled(values(x, v) for x in tensors) for v in _tree(sides).edges)

    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        """Every edge may lose error/√(2d-3); what that leaves unused is spent where it saves most.

        The ranks come from the weight's own unfoldings, so that larger ones keep the error too.
        """
        spectra = self.spectra(layer)
        ranks = [tail_rank(values, error / math.sqrt(len(spectra))) for values in spectra]
        ranks = [min(r, f) for r, f in zip(ranks, self.full_ranks(layer), strict=True)]
        squares = [np.square(values) for values in spectra]
        left = error**2 * float(squares[0].sum()) - sum(
            float(s[r:].sum()) for s, r in zip(squares, ranks, strict=True)
        )

        def size(lower: int | None = None) -> int:
            lowered = tuple(r - (k == lower) for k, r in enumerate(ranks))
            return sum(math.prod(s) for s in self.shapes(layer, lowered))

        while True:
            now = size()
            costs = {k: float(s[r - 1]) for k, (s, r) in enumerate(zip(squares, ranks, strict=True)) if r > 1}
            gains = {k: now - size(k) for k, cost in costs.items() if cost <= left}
            best = max(gains, key=lambda k: gains[k] / max(costs[k], 1e-300), default=None)
            if best is None or gains[best] <= 0:
                return tuple(ranks)
            left -= costs[best]
            ranks[best] -= 1

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        sides = self._sides(layer)
        tree = _tree(sides)
        rank = tree.by_vertex(ranks)
        return tuple(
            (layer.groups, *([rank[c] for c in v.children] or [v.size(sides.sizes)]), rank[v])
            for v in tree.kept(sides.sizes, rank)
        )

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        sides = self._sides(layer)
        tree = _tree(sides)
        rank = tree.by_vertex(ranks)
        kept = tree.kept(sides.sizes, rank)
        fitted = [hierarchical_svd(x, tree, rank) for x in split(layer, sides)]
        groups = [balanced([tensors[v] for v in kept]) for tensors in fitted]
        return tuple(np.stack(parts) for parts in zip(*groups, strict=True))

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        sides = self._sides(layer)
        tree = _tree(sides)
        transfers = dict(
            zip((v for v in tree.vertices if v.children), (f for f in factors if f.ndim == 4), strict=True)
        )
        # A leaf that was left out has its mode's size in its parent; the rank of any other is smaller.
        bare = {
            child
            for v, transfer in transfers.items()
            for child, rank in zip(v.children, transfer.shape[1:3], strict=True)
            if not child.children and rank == child.size(sides.sizes)
        }
        kept = [v for v in tree.vertices if v not in bare]

        def axis(v: Vertex) -> str:
            if v in bare:
                return sides.names[v.start]
            return "root" if v in (tree.left, tree.right) else "-".join(sides.names[v.start : v.stop]) + "'"

        nodes = {}
        for v, factor in zip(kept, factors, strict=True):
            inner = [axis(child) for child in v.children] or [sides.names[v.start]]
            label = "_".join(sides.names[v.start : v.stop])
            nodes[v] = Node(factor, (*inner, axis(v)), label)
        up = [nodes[v] for v in tree.left.below if v in nodes]
        down = [nodes[v] for v in reversed(tree.right.below) if v in nodes]
        inputs = dict(zip(sides.input_names, sides.ins, strict=True))
        return contract(layer, [*up, *down], inputs, sides.output_names)

    def _sides(self, layer: Layer) -> Sides:
        return sides_of(layer, self.order, self.shape)


def _tree(sides: Sides) -> Tree:
    """Inputs and kernel on the left of the root, outputs on the right."""
    p, d = len(sides.ins), len(sides.sizes)
    q = d - len(sides.outs)
    left = balanced_tree(0, p)
    if q > p:
        left = Vertex(0, q, (left, Vertex(p, q)))
    return Tree(left, balanced_tree(q, d))
