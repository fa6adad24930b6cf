from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import Convolve, MatMul, RegroupBatch
from onnxdecomp.decompositions.base import refusal_of
from onnxdecomp.decompositions.ht import Ht
from onnxdecomp.errors import UsageError
from onnxdecomp.tensor.dimension_tree import Tree, Vertex, balanced_tree, hierarchical_svd
from tests.builders.layers import conv_layer, convolutions, error_of, fitted, linear_layer, matrices


def random_factors(method: Ht, layer: Layer, ranks: tuple[int, ...]) -> tuple[Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(s).astype(np.float32) for s in method.shapes(layer, ranks))


def test_balanced_tree() -> None:
    tree = balanced_tree(2, 5)
    assert [(v.start, v.stop) for v in tree.below] == [(2, 3), (3, 4), (2, 4), (4, 5), (2, 5)]
    whole = Tree(balanced_tree(0, 2), balanced_tree(2, 4))
    assert len(whole.edges) == 2 * 4 - 3
    assert whole.attainable((2, 2, 9, 3, 2)) == (2, 2, 4, 3, 2)
    assert whole.attainable((2, 5, 9, 1, 2)) == (2, 5, 2, 1, 2)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_error_is_within_the_hosvd_bound(data: st.DataObject) -> None:
    """At most the root of the sum of all truncated squares, so √(2d-3) times the best; exact in full."""
    sizes = tuple(data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=5)))
    cut = data.draw(st.integers(1, len(sizes) - 1))
    x = np.random.default_rng(data.draw(st.integers(0, 9))).standard_normal(sizes)
    tree = Tree(balanced_tree(0, cut), balanced_tree(cut, len(sizes)))
    full = tree.full_ranks(sizes)
    ranks = tree.by_vertex([data.draw(st.integers(1, full[v])) for v in tree.edges])
    lost = 0.0
    for v in tree.edges:
        front = np.moveaxis(x, range(v.start, v.stop), range(v.stop - v.start))
        values = np.linalg.svdvals(front.reshape(v.size(sizes), -1))
        lost += float(np.sum(values[ranks[v] :] ** 2))
    error = float(np.linalg.norm(rebuilt(tree, hierarchical_svd(x, tree, ranks)) - x))
    assert error <= math.sqrt(lost) + 1e-9
    exact = hierarchical_svd(x, tree, tree.by_vertex(list(full.values())))
    np.testing.assert_allclose(rebuilt(tree, exact), x, atol=1e-10)


def rebuilt(tree: Tree, tensors: dict[Vertex, Array]) -> Array:
    """The tensor of a tree by its definition: frames of the vertices, from the leaves up."""

    def frame(v: Vertex) -> Array:
        if not v.children:
            return tensors[v] if v in tensors else np.eye(0)
        parts = [frame(child) for child in v.children]
        sizes = tensors[v].shape
        left, right = (p if p.size else np.eye(n) for p, n in zip(parts, sizes, strict=False))
        product: Array = np.einsum("iap,jbq,pqr->iajbr", left[:, None], right[:, None], tensors[v])
        return product.reshape(-1, sizes[-1])

    both = frame(tree.left) @ frame(tree.right).T
    sizes = [next_size(tree, tensors, v) for side in (tree.left, tree.right) for v in leaves(side)]
    return both.reshape(sizes)


def leaves(v: Vertex) -> list[Vertex]:
    return [w for w in v.below if not w.children]


def next_size(tree: Tree, tensors: dict[Vertex, Array], leaf: Vertex) -> int:
    if leaf in tensors:
        return int(tensors[leaf].shape[0])
    parent = next(v for v in tree.vertices if leaf in v.children)
    return int(tensors[parent].shape[parent.children.index(leaf)])


@settings(max_examples=25, deadline=None)
@given(
    layer=st.one_of(convolutions(), matrices()),
    error=st.floats(0.01, 0.9),
    order=st.integers(0, 3),
    up=st.integers(0, 3),
)
def test_the_error_asked_for_is_kept(layer: Layer, error: float, order: int, up: int) -> None:
    method = Ht(order=order)
    assume(refusal_of(method, layer) is None)
    full = method.full_ranks(layer)
    ranks = method.ranks_for_error(layer, error)
    assert error_of(method, layer, ranks) <= error * (1 + 1e-5)
    # Ranks are rounded up to a hardware multiple later.
    more = tuple(min(f, r + up) for r, f in zip(ranks, full, strict=True))
    assert error_of(method, layer, more) <= error * (1 + 1e-5)


def test_the_error_budget_is_spent() -> None:
    """No rank of a convolution could be one lower within the bound that the spectra give."""
    layer, method, error = conv_layer(16, 12, (3, 3)), Ht(), 0.5
    ranks = method.ranks_for_error(layer, error)
    squares = [values**2 for values in method.spectra(layer)]
    lost = sum(float(s[r:].sum()) for s, r in zip(squares, ranks, strict=True))
    total = float(squares[0].sum())
    assert lost <= error**2 * total
    uniform = [
        int(np.argmax(np.append(np.cumsum(s[::-1])[::-1], 0) <= error**2 * total / 3)) for s in squares
    ]
    params = [sum(map(math.prod, method.shapes(layer, r))) for r in (ranks, tuple(uniform))]
    assert params[0] < params[1]


@pytest.mark.parametrize("order", [0, 2])
def test_planted_tree_is_found(order: int) -> None:
    method = Ht(order=order)
    layer = conv_layer(24, 16, (3, 3))
    ranks = (4, 5, 6) if order == 0 else (3, 3, 4, 5, 8, 4, 4)
    planted = Layer(
        "layer",
        "Conv",
        method.assemble(layer, random_factors(method, layer, ranks)).dense(),
        None,
        layer.conv,
    )
    assert method.ranks_for_error(planted, 1e-4) == ranks
    assert error_of(method, planted, ranks) < 1e-5


def test_planted_matrix_is_found() -> None:
    method = Ht(shape="6x8:5x4")
    layer = linear_layer(20, 48)
    ranks = (3, 4, 7, 3, 3)
    weight = method.assemble(layer, random_factors(method, layer, ranks)).dense()
    planted = Layer("layer", "MatMul", weight, None)
    assert method.ranks_for_error(planted, 1e-4) == ranks
    assert error_of(method, planted, ranks) < 1e-5
    assert method.edges(planted) == ("s1", "s2", "s1 s2", "t1", "t2")


def test_the_chain_of_a_convolution() -> None:
    layer = conv_layer(12, 10, (3, 2), stride=2)
    method = Ht()
    assert method.full_ranks(layer) == (10, 6, 12)
    assert method.edges(layer) == ("s1", "kernel", "s1 kernel")
    chain = fitted(method, layer, (4, 3, 5))
    assert [type(s) for s in chain.steps] == [
        Convolve,
        RegroupBatch,
        Convolve,
        RegroupBatch,
        Convolve,
        Convolve,
    ]
    shapes = [s.weight.shape for s in chain.steps if isinstance(s, Convolve)]
    assert shapes == [(4, 10, 1, 1), (3, 1, 3, 2), (5, 12, 1, 1), (12, 5, 1, 1)]
    assert chain.params == 10 * 4 + 6 * 3 + 4 * 3 * 5 + 5 * 12 + 12
    x = (2, 10, 9, 9)
    rows, columns = chain.output_shape(x)[2:]
    assert chain.macs(x) == 2 * (40 * 81 + (4 * 18 + 60 + 60) * rows * columns)


def test_a_rotation_is_left_out() -> None:
    layer, method = conv_layer(12, 10, (3, 3)), Ht()
    chain = fitted(method, layer, (4, 9, 5))
    shapes = [s.weight.shape for s in chain.steps if isinstance(s, Convolve)]
    assert shapes == [(4, 10, 1, 1), (5, 4, 3, 3), (12, 5, 1, 1)]
    assert len(method.fit(layer, (10, 9, 5))) == 2
    assert error_of(method, layer, (10, 9, 5)) < error_of(method, layer, (9, 9, 5))


def test_the_chain_of_a_matrix() -> None:
    layer, method = linear_layer(20, 48), Ht(shape="6x8:5x4")
    chain = fitted(method, layer, (3, 4, 7, 3, 3))
    assert sum(isinstance(s, MatMul) for s in chain.steps) == 6
    assert chain.params == 6 * 3 + 8 * 4 + 3 * 4 * 7 + 7 * 3 * 3 + 5 * 3 + 4 * 3
    up = 8 * 18 + 3 * 32 + 84
    down = 63 + 3 * 12 + 4 * 15  # t2 first, then t1 with t2's four entries as rows
    assert chain.macs((1, 48)) == up + down


def test_fraction_is_of_each_side() -> None:
    method = Ht(shape="16x16:8x8")
    assert method.fraction_ranks(linear_layer(64, 256), 0.25) == (8, 8, 16, 4, 4)
    assert Ht().fraction_ranks(conv_layer(64, 32, (3, 3)), 0.5) == (16, 5, 32)


def test_padded_ranks_stay_exact() -> None:
    """An inner rank above the product of those below it: the rest is zero."""
    layer, method = linear_layer(36, 36), Ht()
    wide, narrow = (fitted(method, layer, (2, 2, r, 6, 6)).dense() for r in (20, 4))
    np.testing.assert_allclose(wide, narrow, atol=1e-5)


def test_other_sizes_and_nonsense_are_refused() -> None:
    assert refusal_of(Ht(), linear_layer(12, 20, (2,))) == "a stack of matrices: use svd"
    assert refusal_of(Ht(), linear_layer(1, 19)) == "full ranks of 1: nothing to reduce"
    assert refusal_of(Ht(shape="4x5:3x4"), linear_layer(13, 20)) is not None
    with pytest.raises(UsageError, match="ht: shape"):
        Ht(shape="4x5")
