from __future__ import annotations

import numpy as np
import pytest
import tensorly
from tensorly.decomposition import partial_tucker

from onnxdecomp.core.layer import Array
from onnxdecomp.decompositions.tucker import Tucker
from onnxdecomp.tensor.hooi import hooi
from onnxdecomp.tensor.linalg import left_basis
from onnxdecomp.tensor.tenalg import mode_dot, multi_mode_dot
from tests.builders.layers import conv_layer, error_of, fitted


def low_rank_and_noise(shape: tuple[int, ...], ranks: tuple[int, int], noise: float, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    core = rng.standard_normal((*ranks, *shape[2:]))
    bases = [rng.standard_normal((rank, size)) for rank, size in zip(ranks, shape, strict=False)]
    w = multi_mode_dot(core, bases, modes=(0, 1), transpose=True)
    w /= np.std(w)
    return (w + noise * rng.standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("shape", [(24, 20, 3, 3), (16, 30, 5), (12, 9, 2, 3, 2)])
def test_no_worse_than_hosvd_and_tensorly(shape: tuple[int, ...], noise: float) -> None:
    ranks = (6, 5)
    layer = conv_layer(shape[0], shape[1], shape[2:], weight=low_rank_and_noise(shape, ranks, noise, 3))
    w = layer.weight
    bases = [left_basis(w, axis)[0][:, : ranks[axis]] for axis in (0, 1)]
    hosvd = w
    for axis, basis in enumerate(bases):
        hosvd = mode_dot(mode_dot(hosvd, basis, axis, transpose=True), basis, axis)
    (core, factors), _ = partial_tucker(w, rank=list(ranks), modes=[0, 1], init="svd")
    theirs = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    norm = np.linalg.norm(w)
    ours = error_of(Tucker(), layer, ranks)
    assert ours <= np.linalg.norm(hosvd - w) / norm + 1e-6
    assert ours <= np.linalg.norm(theirs - w) / norm * 1.001


def test_planted_ranks_are_found_exactly() -> None:
    layer = conv_layer(24, 20, (3, 3), weight=low_rank_and_noise((24, 20, 3, 3), (6, 5), 0.0, 0))
    assert Tucker().ranks_for_error(layer, 1e-3) == (6, 5)
    assert error_of(Tucker(), layer, (6, 5)) < 1e-6


def test_bases_are_orthonormal() -> None:
    w = np.random.default_rng(0).standard_normal((10, 8, 9)).astype(np.float32)
    bases = hooi(w, (4, 3), 1e-6, 9)
    assert len(bases) == 2
    for basis in bases:
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)


def test_side_of_full_rank_is_left_out() -> None:
    layer = conv_layer(12, 8, (3, 3), groups=2)
    labels = {
        ranks: [s.label for s in fitted(Tucker(), layer, ranks).steps]
        for ranks in [(3, 4), (6, 2), (3, 2), (6, 4)]
    }
    assert labels == {
        (3, 4): ["core", "last"],
        (6, 2): ["first", "core"],
        (3, 2): ["first", "core", "last"],
        (6, 4): ["first", "core", "last"],
    }
    assert len(fitted(Tucker(sides="both"), layer, (3, 4)).steps) == 3
    assert error_of(Tucker(), layer, (3, 4)) == pytest.approx(
        error_of(Tucker(sides="both"), layer, (3, 4)), rel=1e-5
    )
