from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.chain import Chain, Transpose
from onnxdecomp.errors import UsageError
from onnxdecomp.methods.modes import balanced_factors, matrix_modes, parse_modes
from onnxdecomp.methods.tt import Tt, _backward, _forward
from onnxdecomp.methods.tucker import Tucker
from tests.methods.layers import conv_layer, error_of, fitted, linear_layer


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 3000), count=st.integers(1, 4))
def test_balanced_factors(n: int, count: int) -> None:
    factors = balanced_factors(n, count)
    assert len(factors) == count
    assert math.prod(factors) == n
    assert list(factors) == sorted(factors, reverse=True)
    if count == 2:
        assert factors[0] == min(d for d in range(1, n + 1) if n % d == 0 and d * d >= n)


def test_modes() -> None:
    assert matrix_modes(784, 625, 2) == ((28, 25), (28, 25))
    assert matrix_modes(1000, 512, 3) == ((10, 8), (10, 8), (10, 8))
    assert matrix_modes(769, 512, 3) == ((769, 16), (1, 32))
    assert parse_modes("4x7x4x7:5x5x5x5") == ((4, 5), (7, 5), (4, 5), (7, 5))
    for text in ("4x7", "4x7:5", "4:5", "ax7:5x5", "0x7:5x5", "4x7:5x5:1x1", ""):
        with pytest.raises(UsageError, match="tt: shape"):
            parse_modes(text)
    with pytest.raises(UsageError, match="order 1"):
        Tt(order=1)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_both_directions_apply_the_same_train(data: st.DataObject) -> None:
    d = data.draw(st.integers(2, 4))
    sizes = st.integers(1, 4)
    modes = [(data.draw(sizes), data.draw(sizes)) for _ in range(d)]
    bonds = [1, *(data.draw(sizes) for _ in range(d - 1)), 1]
    rng = np.random.default_rng(0)
    cores = tuple(rng.standard_normal((bonds[k], *modes[k], bonds[k + 1])) for k in range(d))
    dense = cores[0]
    for core in cores[1:]:
        # [.., i's, j's, r] with the modes kept apart by folding them in place
        a, i, j, _ = dense.shape
        _, p, q, r = core.shape
        dense = np.einsum("aijr,rpqs->aipjqs", dense, core).reshape(a, i * p, j * q, r)
    expected = dense[0, :, :, 0].T
    inputs = math.prod(i for i, _ in modes)
    for walk in (_forward, _backward):
        steps = walk(cores)
        chain = Chain(tuple(steps), None, inputs)
        np.testing.assert_allclose(chain.dense(), expected, atol=1e-12)
        assert sum(isinstance(s, Transpose) for s in steps) <= d
        x = rng.standard_normal((2, 3, inputs))
        y = x
        for step in steps:
            y = step.respond(y)
        np.testing.assert_allclose(y, x @ expected.T, atol=1e-10)


def test_planted_train_is_found() -> None:
    tt = Tt(shape="4x5x3:3x4x5")
    rng = np.random.default_rng(0)
    layer = linear_layer(60, 60)
    cores = tuple(rng.standard_normal(s).astype(np.float32) for s in tt.shapes(layer, (3, 4)))
    weight = tt.assemble(layer, cores).dense()
    planted = linear_layer(60, 60)
    planted.weight[:] = weight
    assert tt.ranks_for_error(planted, 1e-4) == (3, 4)
    assert error_of(tt, planted, (3, 4)) < 1e-6


def test_fraction_counts_parameters() -> None:
    tt = Tt(order=3)
    layer = linear_layer(64, 64)
    (cap,) = set(tt.fraction_ranks(layer, 0.3))
    params = [sum(math.prod(s) for s in tt.shapes(layer, (c, c))) for c in (cap, cap + 1)]
    assert params[0] <= 0.3 * layer.weight.size < params[1]


def test_shape_of_another_size_is_refused() -> None:
    reason = Tt(shape="4x5:3x4").refusal(linear_layer(13, 20))
    assert reason is not None
    assert "another size than 20:13" in reason
    assert Tt(shape="4x5:3x4").refusal(linear_layer(12, 20)) is None
    assert Tt().refusal(linear_layer(12, 20, (2,))) == "a stack of matrices: use svd"


def test_channel_train_is_close_to_tucker() -> None:
    layer = conv_layer(16, 12, (3, 3))
    train, tucker = error_of(Tt(), layer, (6, 8)), error_of(Tucker(), layer, (8, 6))
    assert tucker <= train * 1.001
    assert train < tucker * 1.05


def test_unattainable_ranks_are_padded() -> None:
    layer = conv_layer(64, 8, (3,))
    chain = fitted(Tt(), layer, (1, 24))  # the second bond can be 3 at most
    assert chain.dense() == pytest.approx(fitted(Tt(), layer, (1, 3)).dense(), abs=1e-5)
