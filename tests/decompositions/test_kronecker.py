from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import MatMul, Pad, Slice, Transpose
from onnxdecomp.decompositions.base import outline, refusal_of
from onnxdecomp.decompositions.kronecker import Kronecker, balanced_shape
from onnxdecomp.errors import UsageError
from tests.builders.cases import Case, gemms, matmuls
from tests.builders.layers import conv_layer, error_of, fitted, linear_layer
from tests.decompositions import properties

FEW = settings(max_examples=25, deadline=None)


@st.composite
def given_shapes(draw: st.DrawFn) -> tuple[Kronecker, Layer]:
    """A layer of composite size and a shape for it, ones included."""
    size = st.integers(1, 7)
    t1, t2, s1, s2 = (draw(size) for _ in range(4))
    layer = linear_layer(t1 * t2, s1 * s2, seed=draw(st.integers(0, 99)))
    return Kronecker(shape=f"{s1}x{s2}:{t1}x{t2}"), layer


@st.composite
def automatic_shapes(draw: st.DrawFn) -> tuple[Kronecker, Layer]:
    return Kronecker(), linear_layer(draw(st.integers(2, 48)), draw(st.integers(2, 48)))


@FEW
@given(drawn=st.one_of(given_shapes(), automatic_shapes()), fraction=st.floats(0.05, 1.0))
def test_promises(drawn: tuple[Kronecker, Layer], fraction: float) -> None:
    method, layer = drawn
    assume(refusal_of(method, layer) is None)
    properties.check_full_rank(method, layer)
    properties.check_outline(method, layer, method.fraction_ranks(layer, fraction))
    properties.check_error_bound(method, layer, fraction)
    properties.check_spectra(method, layer)


@FEW
@given(case=st.one_of(gemms(), matmuls()))
def test_same_outputs_in_onnx_runtime(case: Case) -> None:
    outputs = properties.outputs_at_full_rank(Kronecker(), case)
    assume(outputs is not None)
    assert outputs is not None
    before, after = outputs
    assert before.shape == after.shape
    assert np.linalg.norm(after - before) <= 1e-4 * np.linalg.norm(before) + 1e-30


def rearranged(w: Array, t1: int, s1: int) -> Array:
    """The blocks of W [t1 t2, s1 s2] as rows."""
    rows = [block.ravel() for strip in np.split(w, t1) for block in np.split(strip, s1, axis=1)]
    return np.stack(rows)


def test_every_rank_is_best() -> None:
    layer = linear_layer(12, 20)
    method = Kronecker(shape="5x4:3x4")
    values = scipy.linalg.svdvals(rearranged(layer.weight.astype(np.float64), 3, 5))
    assert method.full_ranks(layer) == (len(values),) == (15,)
    norm = np.linalg.norm(layer.weight)
    errors = [error_of(method, layer, (r,)) for r in range(1, 16)]
    np.testing.assert_allclose(
        errors, [np.linalg.norm(values[r:]) / norm for r in range(1, 16)], rtol=1e-4, atol=2e-6
    )
    assert all(a > b for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("shape", ["2x5:4x3", "5x2:3x4", "2x5:12x1", "10x1:2x6"])
def test_planted_terms_are_found(shape: str) -> None:
    method, rng = Kronecker(shape=shape), np.random.default_rng(0)
    (t1, t2), (s1, s2) = method.sizes(linear_layer(12, 10))
    a, b = rng.standard_normal((3, t1, s1)), rng.standard_normal((3, t2, s2))
    rank = min(3, t1 * s1, t2 * s2)
    layer = linear_layer(12, 10)
    layer.weight[:] = sum(np.kron(a[k], b[k]) for k in range(rank))
    assert method.ranks_for_error(layer, 1e-4) == (rank,)
    assert error_of(method, layer, (rank,)) < 1e-6
    # The factors are of these Kronecker products themselves.
    found_a, found_b = method.fit(layer, (rank,))
    total = sum(np.kron(x, y) for x, y in zip(found_a, found_b, strict=True))
    np.testing.assert_allclose(total, layer.weight, atol=1e-4)


def test_costs_and_the_cheaper_order() -> None:
    layer = linear_layer(48, 60)
    for (t1, t2), (s1, s2) in (((6, 8), (10, 6)), ((8, 6), (6, 10)), ((2, 24), (30, 2)), ((4, 12), (1, 60))):
        chain = outline(Kronecker(shape=f"{s1}x{s2}:{t1}x{t2}"), layer, (2,))
        assert chain.params == 2 * (t1 * s1 + t2 * s2)
        inner_first, outer_first = 2 * s1 * t2 * (s2 + t1), 2 * s2 * t1 * (s1 + t2)
        assert chain.macs((7, 60)) == 7 * min(inner_first, outer_first)
        labels = [step.label for step in chain.steps if isinstance(step, MatMul)]
        assert labels == (["inner", "outer"] if inner_first <= outer_first else ["outer", "inner"])
        assert sum(isinstance(step, Transpose) for step in chain.steps) <= 2


def test_balanced_shapes() -> None:
    assert balanced_shape(1024, 1024) == ((32, 32), (32, 32))
    assert balanced_shape(625, 784) == ((25, 25), (28, 28))
    assert balanced_shape(4096, 25088) == ((64, 64), (128, 196))
    assert balanced_shape(24, 35) == ((6, 4), (5, 7))
    assert balanced_shape(1018, 1024) == ((509, 2), (2, 512))
    for outputs, inputs in ((30, 93), (36, 60), (17, 48)):
        (t1, t2), (s1, s2) = balanced_shape(outputs, inputs)
        fewest = min(
            t * s + (outputs // t) * (inputs // s)
            for t in range(1, outputs + 1)
            for s in range(1, inputs + 1)
            if outputs % t == inputs % s == 0
        )
        assert (t1 * t2, s1 * s2) == (outputs, inputs)
        assert t1 * s1 + t2 * s2 == fewest


@pytest.mark.parametrize(
    ("outputs", "inputs", "kinds"),
    [(64, 48, set()), (61, 48, {Slice}), (64, 53, {Pad}), (61, 53, {Pad, Slice})],
)
def test_primes_are_padded(outputs: int, inputs: int, kinds: set[type]) -> None:
    method, layer = Kronecker(), linear_layer(outputs, inputs)
    (t1, t2), (s1, s2) = method.sizes(layer)
    assert outputs <= t1 * t2 <= outputs * 9 // 8
    assert inputs <= s1 * s2 <= inputs * 9 // 8
    chain = fitted(method, layer, (3,))
    assert {type(step) for step in chain.steps if isinstance(step, Pad | Slice)} == kinds
    w = np.pad(layer.weight.astype(np.float64), ((0, t1 * t2 - outputs), (0, s1 * s2 - inputs)))
    u, values, vt = scipy.linalg.svd(rearranged(w, t1, s1), full_matrices=False)
    best = (u[:, :3] * values[:3]) @ vt[:3]
    whole = best.reshape(t1, s1, t2, s2).transpose(0, 2, 1, 3).reshape(w.shape)
    np.testing.assert_allclose(chain.dense(), whole[:outputs, :inputs], atol=1e-5)


def test_determinism_scale_and_nan() -> None:
    layer = linear_layer(24, 35)
    properties.check_determinism(Kronecker(), layer, (5,))
    properties.check_balance(Kronecker(), layer, (5,))
    properties.check_nan(Kronecker(), layer)


def test_leading_axes_stay() -> None:
    layer = linear_layer(24, 36)
    chain = fitted(Kronecker(), layer, (4,))
    x = y = np.random.default_rng(1).standard_normal((2, 3, 5, 36)).astype(np.float32)
    for step in chain.steps:
        y = step.forward(y)
    np.testing.assert_allclose(y, x @ chain.dense().T, rtol=1e-4, atol=1e-4)


def test_refusals() -> None:
    def reason(layer: Layer, shape: str = "") -> str:
        return refusal_of(Kronecker(shape=shape), layer) or ""

    assert reason(conv_layer(6, 8, (1, 1))) == "a convolution: use svd"
    assert reason(conv_layer(6, 8, (3, 3))) == "a convolution: use tucker"
    assert reason(linear_layer(6, 8, (2,))) == "a stack of matrices: use svd"
    outer = "the Kronecker products of a 7 x 12 matrix are outer ones: use svd"
    assert reason(linear_layer(7, 12)) == outer
    assert reason(linear_layer(1021, 12)) == ""  # padded
    assert reason(linear_layer(11, 19), "4x5:3x4") == ""  # padded
    assert "another size than 17:12" in reason(linear_layer(12, 17), "4x5:3x4")
    assert reason(linear_layer(6, 8), "1x8:6x1").endswith("use svd")
    assert "another size than 8:6" in reason(linear_layer(6, 8), "2x5:2x3")
    assert reason(linear_layer(6, 8), "2x4:2x3") == ""
    for text in ("2x3", "2x3:4", "2x3:4x5x6", "ax2:3x4", "0x6:2x4", "2x3:4x5:1x1"):
        with pytest.raises(UsageError, match="kronecker: shape"):
            Kronecker(shape=text)
