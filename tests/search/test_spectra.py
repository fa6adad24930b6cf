from __future__ import annotations

import numpy as np
import pytest

from onnxdecomp.core.layer import ConvSpec, Layer
from onnxdecomp.decompositions.base import refusal_of
from onnxdecomp.decompositions.registry import get, names
from onnxdecomp.search.plan import Choice
from onnxdecomp.search.spectra import POINTS, spectra

SPEC = ConvSpec((1, 1), (1, 1), (1, 1, 1, 1))


def layer(outputs: int, inputs: int) -> Layer:
    weight = np.random.default_rng(0).standard_normal((outputs, inputs, 3, 3)).astype(np.float32)
    return Layer("c", "Conv", weight, conv=SPEC)


def choice(method: str, *ranks: int) -> Choice:
    return Choice("c", "", "Conv", method=method, ranks=ranks)


def test_they_are_the_singular_values() -> None:
    made = layer(24, 16)
    out, into = spectra(made, choice("tucker", 6, 16))
    assert (out.name, into.name) == ("out", "in")
    exact = np.linalg.svd(made.weight.reshape(24, -1), compute_uv=False)  # noqa: TID251  (the oracle)
    assert (out.full, out.rank) == (24, 6)
    assert out.values == pytest.approx([exact[i - 1] / exact[0] for i in out.index], rel=1e-4)
    assert out.kept == pytest.approx((exact[:6] ** 2).sum() / (exact**2).sum(), rel=1e-4)
    assert into.kept == pytest.approx(1)


def test_points_are_bounded_and_have_the_cut() -> None:
    (found,) = spectra(layer(300, 200), choice("svd", 77))
    assert len(found.index) == len(found.values) <= POINTS
    assert {1, 77, found.full} <= set(found.index)
    assert list(found.index) == sorted(set(found.index))
    assert max(found.values) == found.values[0] == 1


def test_one_rank_that_serves_several_modes() -> None:
    assert [(s.name, s.rank) for s in spectra(layer(8, 6), choice("cp", 5))] == [("rank", 5), ("mode 2", 5)]


@pytest.mark.parametrize("method", names())
def test_every_method_has_them(method: str) -> None:
    made = layer(16, 16)
    if refusal_of(get(method), made) is not None:
        made = Layer("c", "Gemm", made.weight.reshape(16, -1)[:, :16])
    found = spectra(made, choice(method, *get(method).fraction_ranks(made, 0.5)))
    assert found
    assert all(0 < s.kept <= 1 + 1e-9 and s.name for s in found)


def test_a_weight_of_zeros() -> None:
    zero = Layer("c", "Conv", np.zeros((4, 4, 3, 3), np.float32), conv=SPEC)
    (found,) = spectra(zero, choice("svd", 2))
    assert found.kept == 1
    assert set(found.values) == {0.0}
