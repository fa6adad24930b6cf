from __future__ import annotations

import numpy as np
import pytest
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Convolve
from onnxdecomp.decompositions.base import quick, refusal_of
from onnxdecomp.decompositions.cp import Cp, _start
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.tensor import tenalg
from tests.builders import graphs
from tests.builders.layers import conv_layer, error_of, fitted


def planted(rank: int, seed: int, noise: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    a, b, c = (rng.standard_normal((n, rank)) for n in (20, 16, 9))
    w: Array = np.einsum("tr,sr,kr->tsk", a, b, c)
    w += noise * rng.standard_normal(w.shape)
    return w.reshape(20, 16, 3, 3).astype(np.float32)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_planted_rank_is_fitted(rank: int) -> None:
    layer = conv_layer(20, 16, (3, 3), weight=planted(rank, seed=rank))
    assert error_of(Cp(tolerance=1e-6, max_sweeps=500), layer, (rank,)) < 1e-3


@pytest.mark.parametrize("rank", [5, 20, 60])
def test_better_than_its_start_and_close_to_tensorly(rank: int) -> None:
    layer = conv_layer(20, 16, (3, 3), weight=planted(12, seed=0, noise=2.0))
    w = layer.weight.reshape(20, 16, 9)
    ours = error_of(Cp(), layer, (rank,))
    start = np.linalg.norm(tenalg.cp_to_tensor(_start(w, rank)) - w) / np.linalg.norm(w)
    assert ours < start < 1
    theirs = parafac(w.astype(np.float64), rank, n_iter_max=50, init="random", random_state=0)
    assert ours <= np.linalg.norm(cp_to_tensor(theirs) - w) / np.linalg.norm(w) * 1.03


def test_start_is_exact_with_all_slices() -> None:
    w = np.random.default_rng(0).standard_normal((5, 6, 4))
    np.testing.assert_allclose(tenalg.cp_to_tensor(_start(w, 20)), w, atol=1e-12)


def test_components_are_balanced_and_bounded() -> None:
    layer = conv_layer(20, 16, (3, 3), weight=planted(12, seed=0, noise=2.0))
    first, depthwise, last = Cp().fit(layer, (40,))
    norms = [np.linalg.norm(f.reshape(40, -1), axis=1) for f in (first, depthwise)]
    norms.append(np.linalg.norm(last.reshape(20, 40), axis=0))
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-3)
    np.testing.assert_allclose(norms[0], norms[2], rtol=1e-3)
    # Cancelling components would be larger than what they add up to.
    assert np.prod(norms, axis=0).max() < 2 * np.linalg.norm(layer.weight)


def test_split_kernel_takes_attributes_by_axis() -> None:
    layer = conv_layer(8, 6, (3, 1, 2), groups=2, transposed=True, stride=2)
    _, first, second, _ = fitted(Cp(split_kernel=True), layer, (3,)).steps
    assert isinstance(first, Convolve)
    assert isinstance(second, Convolve)
    # The axis of length 1 has its stride in the first step.
    assert first.spec.strides == (2, 2, 1)
    assert first.spec.pads == (1, 1, 0, 0, 0, 0)
    assert first.spec.output_padding == (1, 1, 0)
    assert second.spec.strides == (1, 1, 2)
    assert second.spec.pads == (0, 0, 1, 0, 0, 0)
    assert second.spec.output_padding == (0, 0, 1)
    assert first.spec.groups == second.spec.groups == 6
    assert (first.weight.shape, second.weight.shape) == ((6, 1, 3, 1, 1), (6, 1, 1, 1, 2))


def test_fraction_counts_parameters() -> None:
    layer = conv_layer(20, 16, (3, 3))
    (rank,) = Cp().fraction_ranks(layer, 0.5)
    assert rank == round(0.5 * 20 * 16 * 9 / (20 + 16 + 9))
    assert Cp().full_ranks(layer) == (16 * 9,)


def test_too_large_a_full_rank_is_refused() -> None:
    weight = np.broadcast_to(np.float32(0), (1024, 1024, 9, 9))
    reason = refusal_of(Cp(), conv_layer(1024, 1024, (9, 9), weight=weight))
    assert reason is not None
    assert "65536" in reason


def trained_like(outputs: int, inputs: int, seed: int = 0) -> Array:
    """A kernel whose channel and position spectra fall as those of trained ones do."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((outputs, inputs, 9))
    for axis, size in enumerate(w.shape):
        basis = np.linalg.qr(rng.standard_normal((size, size)))[0] * np.arange(1, size + 1) ** -0.5
        w = np.moveaxis(np.tensordot(basis, w, axes=(1, axis)), 0, axis)
    return w.reshape(outputs, inputs, 3, 3).astype(np.float32)


def test_error_hardly_depends_on_the_seed() -> None:
    layer = conv_layer(32, 24, (3, 3), weight=trained_like(32, 24))
    errors = []
    for seed in range(20):
        factors = Cp().fit(layer, (20,), seed)
        assert all(np.isfinite(f).all() for f in factors)
        what = Cp().assemble(layer, factors).dense()
        errors.append(np.linalg.norm(what - layer.weight) / np.linalg.norm(layer.weight))
    assert len(set(errors)) == 20, "the seed does something"
    assert (max(errors) - min(errors)) / np.mean(errors) < 0.02


def test_the_best_of_several_starts_is_taken_where_the_tensor_is_small() -> None:
    layer = conv_layer(16, 16, (3, 3), weight=trained_like(16, 16))
    errors = []
    for starts in (1, 4):
        what = [Cp(starts=starts).assemble(layer, Cp(starts=starts).fit(layer, (32,), s)) for s in range(4)]
        errors.append([np.linalg.norm(chain.dense() - layer.weight) for chain in what])
    one, several = (np.array(found) for found in errors)
    # The first of several is the one; what follows, the correction, may cost half a hundredth.
    assert (several <= one * 1.006).all()
    assert several.mean() < one.mean()


def test_half_precision_activations_stay_finite() -> None:
    # Weights and inputs as large as a half precision layer can have them: sums below 65504.
    import onnxruntime as ort
    from onnx import TensorProto, helper

    weight = trained_like(32, 24)
    weight *= 20 / np.abs(weight).max()
    layer = conv_layer(32, 24, (3, 3), weight=weight)
    factors = [f.astype(np.float16) for f in Cp().fit(layer, (40,))]
    groups = (1, 40, 1)
    names = ["x", "first", "depthwise", "y"]
    nodes = [helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], group=groups[i]) for i in range(3)]
    weights = {f"w{i}": f for i, f in enumerate(factors)}
    model = graphs.model(nodes, {"x": [1, 24, 9, 9]}, names[1:], weights, dtype=TensorProto.FLOAT16)
    x = np.random.default_rng(0).standard_normal((1, 24, 9, 9)).astype(np.float16) * np.float16(40)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = dict(zip(names[1:], session.run(None, {"x": x}), strict=True))
    largest = {name: np.abs(value.astype(np.float32)).max() for name, value in outputs.items()}
    # No intermediate is out of proportion to the input and the output.
    assert largest["y"] > 1e3
    assert max(largest["first"], largest["depthwise"]) < 3 * largest["y"]


def test_in_a_hurry_it_starts_once() -> None:
    method = Cp(tolerance=1e-2)
    hurried = quick(method)
    assert isinstance(hurried, Cp)
    assert (hurried.starts, hurried.tolerance, method.starts) == (1, 1e-2, 4)
    layer = conv_layer(20, 16, (3, 3), weight=planted(12, seed=0, noise=2.0))
    assert error_of(method, layer, (8,)) <= error_of(hurried, layer, (8,)) * (1 + 1e-6)
    svd = Svd()
    assert quick(svd) is svd
