from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings

from onnxdecomp.core.layer import Layer
from onnxdecomp.core.steps import Convolve
from onnxdecomp.decompositions.base import refusal_of
from onnxdecomp.decompositions.registry import get
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.tensor.linalg import left_basis, singular_values, tail_rank, two_factors
from onnxdecomp.tensor.tenalg import unfold
from tests.builders.layers import conv_layer, error_of, fitted, linear_layer, matrices


@settings(max_examples=30, deadline=None)
@given(layer=matrices())
def test_error_is_eckart_and_youngs(layer: Layer) -> None:
    values = scipy.linalg.svdvals(layer.weight.astype(np.float64))
    previous = np.inf
    for rank in range(1, len(values) + 1):
        error = error_of(Svd(), layer, (rank,))
        bound = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
        assert error == pytest.approx(bound, rel=1e-4, abs=1e-6)
        assert error <= previous + 1e-7
        previous = error


def test_gram_and_thin_svd_agree() -> None:
    matrix = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)  # above the small size
    np.testing.assert_allclose(
        singular_values(matrix), scipy.linalg.svdvals(matrix.astype(np.float64)), rtol=1e-9
    )
    for axis in (0, 1):
        basis, values = left_basis(matrix, axis)
        n = matrix.shape[axis]
        assert len(values) == 300
        np.testing.assert_allclose(basis.T @ basis, np.eye(n), atol=1e-12)
        projected = basis[:, :7].T @ unfold(matrix, axis).astype(np.float64)
        np.testing.assert_allclose(np.linalg.norm(projected, axis=1), values[:7], rtol=1e-9)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (300, 400), (400, 300)])
def test_ill_conditioned_matrix_is_exact_at_full_rank(shape: tuple[int, int]) -> None:
    # Singular values over 12 decades: those that the Gram matrix loses must not matter.
    rng = np.random.default_rng(1)
    n = min(shape)
    q = [np.linalg.qr(rng.standard_normal((s, n)))[0] for s in shape]
    matrix = (q[0] * np.logspace(0, -12, n)) @ q[1].T
    a, b = two_factors(matrix, n)
    assert np.linalg.norm(a @ b - matrix) < 1e-13
    np.testing.assert_allclose(np.linalg.norm(a[:, :9], axis=0), np.linalg.norm(b[:9], axis=1), rtol=1e-6)


def test_auto_order_and_stride() -> None:
    svd = Svd()
    assert svd.order_for(conv_layer(8, 8, (3, 3))) == "kernel-first"
    assert svd.order_for(conv_layer(8, 8, (3, 3), transposed=True)) == "channel-first"
    assert svd.order_for(conv_layer(16, 4, (3, 3))) == "channel-first"
    assert svd.order_for(conv_layer(16, 1, (3, 3))) == "kernel-first"
    pointwise = conv_layer(8, 8, (1, 1), stride=2)
    first, last = fitted(svd, pointwise, (3,)).steps
    assert isinstance(first, Convolve)
    assert isinstance(last, Convolve)
    assert (first.spec.strides, last.spec.strides) == ((2, 2), (1, 1))
    assert pointwise.conv is not None
    assert first.spec.pads == pointwise.conv.pads


def test_refusals_and_stand_ins() -> None:
    assert refusal_of(Svd(), linear_layer(1, 9)) == "a full rank of 1: nothing to reduce"
    for name in ("tucker", "cp"):
        for matrix in (linear_layer(4, 5), linear_layer(4, 5, (2,)), conv_layer(4, 5, (1, 1))):
            assert refusal_of(get(name), matrix) is not None
            assert get(name).specialise(matrix) == Svd()
        assert get(name).specialise(conv_layer(4, 5, (3, 1))) == get(name)
    assert get("tt").specialise(conv_layer(4, 5, (1, 1))) == Svd()
    assert get("tt").specialise(linear_layer(4, 5)) == get("tt")


def test_tail_rank() -> None:
    values = np.array([3.0, 2.0, 1.0])
    assert tail_rank(values, np.sqrt(1 / 14) + 1e-9) == 2
    assert tail_rank(values, np.sqrt(1 / 14) - 1e-9) == 3
    assert tail_rank(values, 1.0) == 1
    assert tail_rank(np.zeros(3), 0.1) == 1
