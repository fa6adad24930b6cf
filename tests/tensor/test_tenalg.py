"""TensorLy as the decompositions use it: definitions, dtypes, its state."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorly

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError
from onnxdecomp.tensor import tenalg
from onnxdecomp.tensor.cores import balanced, padded
from onnxdecomp.tensor.linalg import column_basis
from onnxdecomp.tensor.tensor_train import tt_svd

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def normal(dtype: type[np.floating], *shape: int) -> Array:
    return np.random.default_rng(7).standard_normal(shape).astype(dtype)


@DTYPES
def test_products_are_what_their_definitions_say(dtype: type[np.floating]) -> None:
    w, a, b = normal(dtype, 5, 4, 3), normal(dtype, 2, 4), normal(dtype, 5, 2)
    found = {
        "unfold": (tenalg.unfold(w, 1), w.transpose(1, 0, 2).reshape(4, 15)),
        "partial_unfold": (tenalg.partial_unfold(w, 1), w.swapaxes(1, 2)),
        "mode_dot": (tenalg.mode_dot(w, a, 1), np.einsum("tsk,rs->trk", w, a)),
        "transposed": (tenalg.mode_dot(w, b, 0, transpose=True), np.einsum("tsk,tr->rsk", w, b)),
        "multi_mode_dot": (
            tenalg.multi_mode_dot(w, [b, a.T], modes=(0, 1), transpose=True),
            np.einsum("tsk,tr,qs->rqk", w, b, a),
        ),
        "khatri_rao": (tenalg.khatri_rao([b, a.T]), np.einsum("tr,sr->tsr", b, a.T).reshape(20, 2)),
        "cp_to_tensor": (
            tenalg.cp_to_tensor([b, a.T, b[:3]]),
            np.einsum("tr,sr,kr->tsk", b, a.T, b[:3]),
        ),
        "cp_weights": (
            tenalg.cp_weights([b, a.T]),
            np.linalg.norm(b, axis=0) * np.linalg.norm(a.T, axis=0),
        ),
    }
    for name, (got, wanted) in found.items():
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6, err_msg=name)
    assert {name: got.dtype for name, (got, _) in found.items()} == dict.fromkeys(found, np.dtype(dtype))


@DTYPES
@pytest.mark.parametrize("ranks", [(3, 4), (1, 2), (3, 9)])
def test_a_train_has_the_ranks_that_were_asked_for(ranks: tuple[int, int], dtype: type[np.floating]) -> None:
    """Also where an unfolding has fewer, as behind a smaller rank."""
    x = normal(dtype, 3, 4, 5)
    cores = tt_svd(x, ranks)
    assert [core.shape for core in cores] == [(1, 3, ranks[0]), (ranks[0], 4, ranks[1]), (ranks[1], 5, 1)]
    assert {core.dtype for core in cores} == {np.dtype(dtype)}
    missed = np.linalg.norm(tensorly.tt_to_tensor(cores) - x)
    theirs = tensorly.decomposition.tensor_train(x.astype(np.float64), [1, *ranks, 1])
    assert missed == pytest.approx(np.linalg.norm(theirs.to_tensor() - x), rel=1e-4, abs=1e-5)


def test_a_truncation_that_reaches_less_lowers_the_rank() -> None:
    def truncate(matrix: Array, rank: int) -> tuple[Array, Array]:
        basis = column_basis(matrix, rank)
        return basis, basis.T @ matrix

    cores = tenalg.tensor_train(normal(np.float64, 2, 3, 2), (9, 9), truncate)
    assert [core.shape for core in cores] == [(1, 2, 2), (2, 3, 2), (2, 2, 1)]


def test_balancing_and_padding_change_no_tensor() -> None:
    cores = [normal(np.float64, 2, 3, 2) * 100, normal(np.float64, 2, 4, 3), normal(np.float64, 3, 2, 2)]
    evened = balanced(cores)
    assert len({round(float(np.linalg.norm(core)), 9) for core in evened}) == 1
    larger = padded(evened, (3, 2, 4, 3))
    assert [core.shape for core in larger] == [(3, 3, 2), (2, 4, 4), (4, 2, 3)]
    np.testing.assert_allclose(tensorly.tr_to_tensor(larger), tensorly.tr_to_tensor(cores), atol=1e-10)


def test_the_backend_is_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("set_backend")

    monkeypatch.setattr(type(tensorly.backend), "set_backend", refuse)
    x = normal(np.float32, 6, 5, 4)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: tt_svd(x, (3, 2)), range(8)))
    assert tensorly.get_backend() == "numpy"
    assert {tuple(core.tobytes() for core in cores) for cores in found} == {
        tuple(core.tobytes() for core in found[0])
    }


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorly, "get_backend", lambda: "pytorch")
    with pytest.raises(UsageError, match=r"backend is pytorch.*TENSORLY_BACKEND"):
        tenalg.unfold(np.zeros((2, 2)), 0)


def test_a_backend_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorly", None)
    with pytest.raises(UsageError, match="TENSORLY_BACKEND must be numpy"):
        tenalg.unfold(np.zeros((2, 2)), 0)
