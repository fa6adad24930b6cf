"""Dimension trees and the hierarchical singular value decomposition (Grasedyck 2010)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.tensor.linalg import column_basis
from onnxdecomp.tensor.tenalg import unfold


@dataclass(frozen=True)
class Vertex:
    """A vertex of the tree: the modes start … stop - 1, and its children, none for a leaf."""

    start: int
    stop: int
    children: tuple[Vertex, ...] = ()

    @property
    def below(self) -> tuple[Vertex, ...]:
        """The vertices of this subtree, children before their parents, this one last."""
        return (*(v for child in self.children for v in child.below), self)

    def complement(self, sizes: Sequence[int]) -> int:
        """The number of entries of the modes that this vertex leaves out."""
        return math.prod(sizes) // self.size(sizes)

    def size(self, sizes: Sequence[int]) -> int:
        return math.prod(sizes[self.start : self.stop])


def balanced_tree(start: int, stop: int) -> Vertex:
    """The binary tree over these modes that halves them again and again."""
    if stop - start == 1:
        return Vertex(start, stop)
    middle = (start + stop + 1) // 2
    return Vertex(start, stop, (balanced_tree(start, middle), balanced_tree(middle, stop)))


@dataclass(frozen=True)
class Tree:
    """A dimension tree whose root, left out, has the children `left` and `right`.

    Both have the same unfolding, so that the tree has 2d - 3 edges with one rank each: the vertices of
    the left subtree, children first, then those of the right one but for `right` itself. `right` holds
    what the root's tensor would: it alone is not orthonormal.
    """

    left: Vertex
    right: Vertex

    @property
    def edges(self) -> tuple[Vertex, ...]:
        return (*self.left.below, *self.right.below[:-1])

    @property
    def vertices(self) -> tuple[Vertex, ...]:
        """All but the root, in the order of the factors."""
        return (*self.left.below, *self.right.below)

    def full_ranks(self, sizes: Sequence[int]) -> dict[Vertex, int]:
        return {v: min(v.size(sizes), v.complement(sizes)) for v in self.edges}

    def by_vertex(self, ranks: Sequence[int]) -> dict[Vertex, int]:
        """The rank of every vertex; `right` has that of `left`."""
        named = dict(zip(self.edges, ranks, strict=True))
        return named | {self.right: named[self.left]}

    def attainable(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """These ranks, no inner one above the product of those below it."""
        rank = dict(zip(self.edges, wanted, strict=True))
        for v in (*self.edges, self.right):
            if v.children:
                edge = self.left if v is self.right else v
                rank[edge] = min(rank[edge], math.prod(rank[child] for child in v.children))
        return tuple(rank.values())

    def kept(self, sizes: Sequence[int], rank: Mapping[Vertex, int]) -> tuple[Vertex, ...]:
        """The vertices that hold a tensor: a leaf whose rank is its size would be a mere rotation.

        The root's two children always do.
        """
        ends = self.left, self.right
        return tuple(v for v in self.vertices if v.children or v in ends or rank[v] < v.size(sizes))


def hierarchical_svd(tensor: Array, tree: Tree, rank: Mapping[Vertex, int]) -> dict[Vertex, Array]:
    """The tensors of the vertices that have one: bases [n, r] of leaves, else transfers [r_left, r_right, r].

    Each vertex takes the leading singular vectors of its unfolding of what the projections so far have
    left of the tensor. The successive losses are orthogonal to each other, and none is larger than the
    truncated singular values of the tensor's own unfolding: the error is at most the root of the sum of
    their squares, hence at most √(2d - 3) times that of the best approximation of these ranks.

    Args:
        tensor: [n_0, …, n_{d-1}].
        rank: Of every vertex of the tree; what no basis can fill is zero.
    """
    found: dict[Vertex, Array] = {}
    state = list(tensor.shape)
    rest = tensor
    # One entry of `state` for each vertex that has no parent yet.
    front = [Vertex(k, k + 1) for k in range(tensor.ndim)]
    for v in tree.kept(tensor.shape, rank):
        if v is tree.right:
            break
        at = next(k for k, w in enumerate(front) if w.start == v.start)
        count = max(1, len(v.children))
        inner = tuple(state[at : at + count])
        cube = rest.reshape(math.prod(state[:at]), math.prod(inner), -1)
        basis = column_basis(unfold(cube, 1), rank[v])
        found[v] = basis.reshape(*inner, rank[v])
        # A batch of columns would be slow.
        rest = cube[:, :, 0] @ basis if cube.shape[2] == 1 else basis.T @ cube
        front[at : at + count] = [v]
        state[at : at + count] = [rank[v]]
    # What is left is the right vertex's tensor, the root's axis first.
    found[tree.right] = np.moveaxis(rest.reshape(state), 0, -1)
    return found
