from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array
from onnxdecomp.decompositions.cp import Cp
from onnxdecomp.tensor.cp_als import alternate, balanced, distance, norm
from onnxdecomp.tensor.cp_stability import correct, sensitivity, stabilise
from onnxdecomp.tensor.tenalg import cp_to_tensor, cp_weights
from tests.builders.layers import conv_layer, error_of


def border_rank_tensor(sizes: tuple[int, int, int], noise: float = 0.0) -> Array:
    """a⊗a⊗b + a⊗b⊗a + b⊗a⊗a: of rank 3, and the limit of tensors of rank 2 whose components diverge."""
    rng = np.random.default_rng(0)
    a, b = np.eye(2)
    small = sum(np.einsum("i,j,k->ijk", *p) for p in ((a, a, b), (a, b, a), (b, a, a)))
    bases = [np.linalg.qr(rng.standard_normal((n, 2)))[0] for n in sizes]
    w: Array = np.einsum("abc,ia,jb,kc->ijk", small, *bases)
    return w + noise * rng.standard_normal(sizes)


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(2, 6), min_size=3, max_size=4), seed=st.integers(0, 99))
def test_sensitivity_is_the_mean_change_under_noise(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((n, 3)) for n in sizes]
    step, trials = 1e-4, 300
    changed = [
        norm(cp_to_tensor([f + step * rng.standard_normal(f.shape) for f in factors]) - cp_to_tensor(factors))
        ** 2
        for _ in range(trials)
    ]
    assert np.mean(changed) / step**2 == pytest.approx(sensitivity(factors), rel=0.35)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(3, 8), min_size=3, max_size=4),
    rank=st.integers(2, 8),
    slack=st.floats(1.001, 1.3),
    seed=st.integers(0, 99),
)
def test_correction_keeps_the_error_and_lowers_the_sensitivity(
    sizes: list[int], rank: int, slack: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(sizes)
    factors = alternate(w, [rng.standard_normal((n, rank)) for n in sizes], 1e-4, 50)
    bound = slack * distance(w, factors)
    if bound >= norm(w):
        return
    corrected = correct(w, factors, bound, 10, 0.0)
    assert distance(w, corrected) <= bound * (1 + 1e-3)
    shares = np.sqrt(np.array(sizes, float))
    assert sensitivity(corrected) <= sensitivity(balanced(factors, shares)) * (1 + 1e-9)


def test_one_update_is_the_least_sensitive_on_the_sphere() -> None:
    # No other first factor of the same error has less sensitivity: random moves along the constraint.
    rng = np.random.default_rng(3)
    w = rng.standard_normal((5, 6, 4))
    factors = alternate(w, [rng.standard_normal((n, 3)) for n in w.shape], 1e-6, 200)
    bound = 1.1 * distance(w, factors)
    corrected = correct(w, factors, bound, 400, 0.0)
    assert distance(w, corrected) == pytest.approx(bound, rel=1e-3)
    least = sensitivity(corrected)
    for _ in range(200):
        moved = [f + 0.02 * rng.standard_normal(f.shape) for f in corrected[:1]] + corrected[1:]
        if distance(w, moved) <= bound:
            assert sensitivity(moved) >= least * (1 - 1e-4)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (20, 16, 9)])
def test_degenerate_tensor_gets_bounded_components(sizes: tuple[int, int, int]) -> None:
    w = border_rank_tensor(sizes)
    a, b = np.eye(2)
    bases = np.random.default_rng(0)
    q = [np.linalg.qr(bases.standard_normal((n, 2)))[0] for n in sizes]
    n = 1000.0
    # n (a + b/n)⊗³ - n a⊗³ approaches the tensor with an error of order 1/n: the larger, the better.
    near = [np.stack([basis @ (a + b / n), basis @ a], 1) * np.cbrt(n) for basis in q]
    near[0] = near[0] * [1, -1]
    assert distance(w, near) < 0.01 * norm(w)
    assert np.linalg.norm(cp_weights(near)) > 500 * norm(w)
    bounded = stabilise(w, near, 20)
    assert np.linalg.norm(cp_weights(bounded)) <= 4 * norm(w)
    assert distance(w, bounded) < 0.5 * norm(w)


def test_cp_of_a_degenerate_kernel_is_bounded() -> None:
    w = border_rank_tensor((20, 16, 9)).reshape(20, 16, 3, 3)
    layer = conv_layer(20, 16, (3, 3), weight=w)
    method = Cp(tolerance=1e-9, max_sweeps=300)
    assert error_of(method, layer, (2,)) < 0.3
    fitted = [f.reshape(f.shape[0], f.shape[1], -1) for f in method.fit(layer, (2,))]
    components = [np.linalg.norm(fitted[0][:, :, 0], axis=1), np.linalg.norm(fitted[1][:, 0], axis=1)]
    components.append(np.linalg.norm(fitted[2][:, :, 0], axis=0))
    assert np.linalg.norm(np.prod(components, axis=0)) <= 4 * norm(w) * (1 + 1e-6)


@pytest.mark.parametrize("exact_rank", [1, 3])
def test_more_components_than_the_tensor_has_stay_finite(exact_rank: int) -> None:
    rng = np.random.default_rng(1)
    w = cp_to_tensor([rng.standard_normal((n, exact_rank)) for n in (12, 10, 9)])
    layer = conv_layer(12, 10, (3, 3), weight=w.reshape(12, 10, 3, 3))
    factors = Cp().fit(layer, (20,))
    assert all(np.isfinite(f).all() for f in factors)
    assert error_of(Cp(), layer, (20,)) < 1e-3
    assert max(np.abs(f).max() for f in factors) < 10 * np.abs(w).max()
