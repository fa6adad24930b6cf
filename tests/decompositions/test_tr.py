from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import Convolve, MatMul, PermuteChannels, RegroupBatch
from onnxdecomp.decompositions.base import refusal_of
from onnxdecomp.decompositions.tr import Tr
from onnxdecomp.errors import UsageError
from onnxdecomp.tensor.tensor_ring import (
    Ring,
    _closed,
    merged,
    open_at,
    ring_als,
    ring_error,
    ring_svd,
    splits,
)
from onnxdecomp.tensor.tensorization import Sides, parse_sides, sides_of
from tests.builders.layers import conv_layer, error_of, fitted, linear_layer


def dense(cores: Ring) -> Array:
    """The tensor of a ring by its definition, entry by entry."""
    shape = tuple(core.shape[1] for core in cores)
    out = np.empty(shape)
    for index in np.ndindex(shape):
        product = np.eye(cores[0].shape[0])
        for core, i in zip(cores, index, strict=True):
            product = product @ core[:, i]
        out[index] = np.trace(product)
    return out


def random_cores(sizes: tuple[int, ...], ranks: tuple[int, ...], seed: int) -> Ring:
    rng = np.random.default_rng(seed)
    ends = (*ranks[1:], ranks[0])
    return [rng.standard_normal(s) for s in zip(ranks, sizes, ends, strict=True)]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_svd_is_exact_at_the_ranks_that_it_finds(data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
    shift = data.draw(st.integers(0, len(sizes) - 1))
    x = np.random.default_rng(data.draw(st.integers(0, 9))).standard_normal(sizes)
    opened = open_at([x], shift)
    pairs = list(splits(len(opened.rests[0]), (99, 99)))
    assert pairs
    for pair in pairs:
        (ring,) = ring_svd(opened, pair)
        np.testing.assert_allclose(dense(ring), x, atol=1e-10)
        assert ring_error(x, ring) < 1e-12
        assert (ring[shift].shape[0], ring[shift].shape[2]) == pair


def test_splits_of_the_first_rank() -> None:
    assert set(splits(12, (99, 99))) == {(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)}
    assert set(splits(7, (99, 99))) == {(1, 7), (7, 1), (3, 3)}
    assert set(splits(12, (3, 99))) == {(1, 12), (2, 6), (3, 4)}


@pytest.mark.parametrize("sizes", [(6, 4, 5), (4, 3, 5, 2)])
def test_a_sweep_is_the_least_squares_solution_of_its_last_core(sizes: tuple[int, ...]) -> None:
    """Nothing near the result of ALS is better in one core, and it is no worse than its start."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(sizes)
    start = random_cores(sizes, (2,) * len(sizes), 1)
    error, ring = ring_als(x, start, 0.0, 400)
    assert error == pytest.approx(float(np.linalg.norm(dense(ring) - x) / np.linalg.norm(x)))
    assert error < ring_error(x, start)
    for k in range(len(sizes)):
        others = merged([*ring[k + 1 :], *ring[:k]], 0)
        design = others.transpose(1, 0, 2).reshape(others.shape[1], -1)
        rolled = np.moveaxis(x, [(k + j) % x.ndim for j in range(x.ndim)], range(x.ndim))
        target = rolled.reshape(sizes[k], -1).T
        best = design @ np.linalg.lstsq(design, target, rcond=None)[0]
        assert error <= float(np.linalg.norm(best - target) / np.linalg.norm(x)) + 1e-4


@pytest.mark.parametrize(
    ("sizes", "ranks"), [((16, 9, 20), (3, 3, 3)), ((16, 9, 20), (2, 3, 4)), ((8, 8, 8, 8), (3, 3, 3, 3))]
)
def test_planted_ring_is_found(sizes: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    found = []
    for seed in range(3):
        x = merged(random_cores(sizes, ranks, seed), 0)
        weight = np.einsum("ana->n", x).reshape(sizes).astype(np.float32)
        if len(sizes) == 3:
            layer = conv_layer(20, 16, (3, 3), weight=weight.transpose(2, 0, 1).reshape(20, 16, 3, 3))
        else:
            layer = Layer("layer", "MatMul", weight.reshape(64, 64).T.copy(), None)
        found.append(error_of(Tr(), layer, ranks))
    # ALS knows no global optimum: two of three.
    assert sorted(found)[1] < 1e-3, found


@pytest.mark.parametrize("sizes", [(12, 9, 16), (8, 6, 6, 8)])
@pytest.mark.parametrize("ranks", [(2, 2, 2, 2), (1, 3, 3, 3), (2, 4, 6, 3), (3, 2, 8, 4)])
def test_never_worse_than_tensorly(sizes: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    import tensorly as tl
    from tensorly.decomposition import tensor_ring

    d = len(sizes)
    ranks = ranks[:d]
    x = np.random.default_rng(0).standard_normal(sizes)
    if d == 3:
        layer = conv_layer(
            16, 12, (3, 3), weight=x.transpose(2, 0, 1).reshape(16, 12, 3, 3).astype(np.float32)
        )
    else:
        layer = Layer("layer", "MatMul", x.reshape(48, 48).T.astype(np.float32).copy(), None)
    method = Tr(shape="" if d == 3 else "8x6:6x8")
    ours = error_of(method, layer, ranks)
    compared = 0
    for mode in range(d):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = tl.tr_to_tensor(tensor_ring(x, [*ranks, ranks[0]], mode=mode))
        except ValueError:
            continue  # where r_m r_{m+1} is more than the first unfolding has
        compared += 1
        assert ours <= float(np.linalg.norm(theirs - x) / np.linalg.norm(x)) + 1e-6
    assert compared
    assert 0 < ours < 1


def test_the_chain_of_a_convolution_shares_the_core() -> None:
    layer = conv_layer(12, 10, (3, 2), stride=2)
    chain = fitted(Tr(), layer, (3, 4, 5))
    assert [type(s) for s in chain.steps] == [Convolve, RegroupBatch, Convolve, RegroupBatch, Convolve]
    shapes = [s.weight.shape for s in chain.steps if isinstance(s, Convolve)]
    assert shapes == [(12, 10, 1, 1), (5, 4, 3, 2), (12, 15, 1, 1)]
    assert chain.params == 3 * 10 * 4 + 4 * 6 * 5 + 5 * 12 * 3 + 12
    x = (2, 10, 9, 9)
    rows, columns = chain.output_shape(x)[2:]
    moved = 3 * 4 * 5 * 6 * rows * columns + 12 * 15 * rows * columns
    assert chain.macs(x) == 2 * (10 * 12 * 81 + moved)


def test_the_chain_of_groups_keeps_them_apart() -> None:
    chain = fitted(Tr(), conv_layer(12, 8, (3, 3), groups=2), (2, 3, 4))
    assert [type(s) for s in chain.steps] == [
        Convolve,
        PermuteChannels,
        RegroupBatch,
        Convolve,
        RegroupBatch,
        PermuteChannels,
        Convolve,
    ]
    core = chain.steps[3]
    assert isinstance(core, Convolve)
    assert core.spec.groups == 2
    assert core.weight.shape == (8, 3, 3, 3)


def test_the_chain_of_a_matrix() -> None:
    layer = linear_layer(20, 24)
    method = Tr(shape="4x6:5x4")
    ranks = (2, 3, 4, 3)
    chain = fitted(method, layer, ranks)
    assert chain.params == 2 * 4 * 3 + 3 * 6 * 4 + 4 * 5 * 3 + 3 * 4 * 2
    # either input core first, either output core first; rows times the size of the core
    up = min(6 * 24 + 2 * 72, 4 * 72 + 4 * 24)
    down = min(2 * 60 + 5 * 24, 4 * 24 + 4 * 60)
    assert chain.macs((1, 24)) == up + down
    assert sum(isinstance(s, MatMul) for s in chain.steps) == 4


def test_one_by_one_convolutions_and_split_channels() -> None:
    layer = conv_layer(12, 8, (1, 1), groups=2, stride=2)
    assert sides_of(layer, 0, "") == Sides((2, 2), 1, (3, 2))
    method = Tr()
    chain = fitted(method, layer, method.full_ranks(layer))
    strided = [s for s in chain.steps if isinstance(s, Convolve) and s.spec.strides == (2, 2)]
    assert len(strided) == 1
    np.testing.assert_allclose(chain.dense(), layer.weight, atol=1e-5)
    split = Tr(shape="4x3:2x5")
    wide = conv_layer(10, 12, (3, 3))
    assert len(split.full_ranks(wide)) == 5
    np.testing.assert_allclose(fitted(split, wide, split.full_ranks(wide)).dense(), wide.weight, atol=1e-4)


def test_fraction_counts_parameters() -> None:
    method, layer = Tr(), conv_layer(32, 24, (3, 3))
    for fraction in (0.1, 0.3, 0.6):
        ranks = method.fraction_ranks(layer, fraction)
        used = sum(map(math.prod, method.shapes(layer, ranks))) / layer.weight.size
        assert fraction - 0.1 < used <= fraction


def test_error_ranks_are_no_larger_than_a_trains() -> None:
    """A low-rank convolution: the ring that is chosen has at most the train's parameters."""
    from onnxdecomp.decompositions.tt import Tt

    layer = conv_layer(24, 20, (3, 3))
    low = Layer("low", "Conv", fitted(Tt(), layer, (4, 5)).dense(), None, layer.conv)
    method = Tr()
    ranks = method.ranks_for_error(low, 1e-3)
    assert sum(map(math.prod, method.shapes(low, ranks))) <= 20 * 4 + 4 * 9 * 5 + 5 * 24
    assert error_of(method, low, ranks) <= 1e-3


def test_other_sizes_and_nonsense_are_refused() -> None:
    assert refusal_of(Tr(), linear_layer(12, 20, (2,))) == "a stack of matrices: use svd"
    reason = refusal_of(Tr(shape="4x5:3x4"), linear_layer(13, 20))
    assert reason == "the shape 4x5:3x4 is of another size than 20:13"
    assert refusal_of(Tr(shape="4x5:13"), linear_layer(13, 20)) is None
    assert refusal_of(Tr(), linear_layer(1, 19)) == "full ranks of 1: nothing to reduce"
    for text in ("4x7", "4x7:", "ax7:5", "0x7:5", "4:5:6"):
        with pytest.raises(UsageError, match="shape"):
            parse_sides(text)
        with pytest.raises(UsageError, match="tr: shape"):
            Tr(shape=text)
    with pytest.raises(UsageError, match="tr: order -1"):
        Tr(order=-1)


def test_primes_stay_whole() -> None:
    assert sides_of(linear_layer(769, 512), 0, "") == Sides((32, 16), 1, (769,))
    assert sides_of(linear_layer(22, 64), 3, "") == Sides((4, 4, 4), 1, (22,))


def test_the_same_seed_gives_the_same_bytes() -> None:
    layer, method = conv_layer(12, 10, (3, 3)), Tr(starts=1, random_starts=2)
    one, again, other = (method.fit(layer, (2, 3, 3), seed=seed)[0].tobytes() for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_large_sides_take_subspace_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    spectrum = np.exp(-0.05 * np.arange(144))
    u = np.linalg.qr(np.random.default_rng(0).standard_normal((144, 144)))[0]
    v = np.linalg.qr(np.random.default_rng(1).standard_normal((256, 144)))[0]
    smooth = Layer("layer", "MatMul", ((u * spectrum) @ v.T).astype(np.float32), None)
    method = Tr(max_sweeps=0, random_starts=0)
    exact = error_of(method, smooth, (1, 6, 10, 6))
    monkeypatch.setattr("onnxdecomp.tensor.tensor_ring._LARGE", 8)
    monkeypatch.setattr("onnxdecomp.tensor.tensor_ring._OVERSAMPLED", 4)
    assert error_of(method, smooth, (1, 6, 10, 6)) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("size", [1, 40])  # either way of contracting
def test_normal_equations_are_closed_by_a_core(size: int) -> None:
    rng = np.random.default_rng(0)
    gram, core = rng.standard_normal((2, 6, 2, 6)), rng.standard_normal((6, size, 5))
    expected = np.einsum("xyuv,ynz,vnw->xzuw", gram, core, core)
    np.testing.assert_allclose(_closed(gram, core), expected, atol=1e-10)
