"""Shared: the first factor of several layers, and the method as one of a single layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Layer, relative_error
from onnxdecomp.decompositions.base import refusal_of
from onnxdecomp.decompositions.registry import get
from onnxdecomp.decompositions.shared import Shared, sibling_errors, sibling_factors, whole
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.tensor.linalg import singular_values
from tests.builders.layers import conv_layer, convolutions, linear_layer, matrices
from tests.decompositions.properties import check_error_bound, check_full_rank, check_outline, check_spectra

METHOD = Shared()
LAYERS = st.one_of(convolutions(), matrices()).filter(lambda layer: refusal_of(METHOD, layer) is None)


@settings(max_examples=20)
@given(layer=LAYERS, fraction=st.floats(0.05, 1.0))
def test_of_one_layer_it_is_an_svd(layer: Layer, fraction: float) -> None:
    check_full_rank(METHOD, layer)
    check_outline(METHOD, layer, METHOD.fraction_ranks(layer, fraction))
    check_spectra(METHOD, layer)
    check_error_bound(METHOD, layer, 0.4)


@settings(max_examples=20)
@given(data=st.data())
def test_full_rank_is_exact_for_all_of_them_at_once(data: st.DataObject) -> None:
    s = data.draw(st.integers(2, 9))
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3)), min_size=1, max_size=4))
    convolve = data.draw(st.booleans())
    layers = [
        conv_layer(t, s, (k, 3)[:k], seed=i) if convolve else linear_layer(t, s, seed=i)
        for i, (t, k) in enumerate(sizes)
        if not convolve or k < 3
    ] or [linear_layer(3, s)]
    (full,) = METHOD.full_ranks(whole(layers))
    assert full <= s
    for rank in {full, s}:  # ranks above the stack's own are zeros
        first, lasts = sibling_factors(layers, rank)
        for layer, last in zip(layers, lasts, strict=True):
            chain = METHOD.assemble(layer, (first, last))
            assert tuple(f.weight.shape for f in chain.weighted) == METHOD.shapes(layer, (rank,))
            assert relative_error(chain.dense(), layer.weight) < 1e-5


def test_the_loss_is_that_of_the_stacked_weights_each_over_its_norm() -> None:
    layers = [linear_layer(9, 12), linear_layer(20, 12, seed=1), linear_layer(5, 12, seed=2)]
    layers[1] = replace(layers[1], weight=layers[1].weight * 1000)
    first, lasts = sibling_factors(layers, 4)
    errors = [
        relative_error(METHOD.assemble(layer, (first, last)).dense(), layer.weight)
        for layer, last in zip(layers, lasts, strict=True)
    ]
    stack = np.concatenate([layer.weight / np.linalg.norm(layer.weight) for layer in layers])
    np.testing.assert_allclose(
        np.square(errors).sum(), np.square(singular_values(stack)[4:]).sum(), rtol=1e-4
    )
    np.testing.assert_allclose(whole(layers).weight, stack, rtol=1e-5)


def test_what_counts_more_loses_less() -> None:
    layers, found = [linear_layer(9, 12), linear_layer(20, 12, seed=1)], []
    for counts in ((), (100.0, 1.0)):
        first, lasts = sibling_factors(layers, 4, counts)
        errors = [
            relative_error(METHOD.assemble(layer, (first, last)).dense(), layer.weight) ** 2
            for layer, last in zip(layers, lasts, strict=True)
        ]
        np.testing.assert_allclose(sibling_errors(layers, [4], counts)[0], errors, rtol=1e-4)
        found.append(errors)
    assert found[1][0] < found[0][0]
    assert found[1][1] > found[0][1]
    with pytest.raises(UsageError, match="weight=0: give a number above 0"):
        get("shared", weight=0.0)


def test_huge_and_zero_weights() -> None:
    huge = linear_layer(6, 6)
    huge = replace(huge, weight=np.full_like(huge.weight, 3e37))
    zero = replace(huge, weight=np.zeros_like(huge.weight))
    first, lasts = sibling_factors([huge, zero], 3)
    dense = [
        METHOD.assemble(layer, (first, last)).dense() for layer, last in zip((huge, zero), lasts, strict=True)
    ]
    np.testing.assert_allclose(dense[0], huge.weight, rtol=1e-5)
    assert not dense[1].any()


def test_what_it_does_not_take() -> None:
    reasons = {
        "groups": conv_layer(8, 8, (3, 3), groups=2),
        "depthwise": conv_layer(8, 8, (3, 3), groups=8),
        "stack": linear_layer(4, 5, (2,)),
        "single input": linear_layer(4, 1),
        "lookup": replace(linear_layer(4, 9), lookup=True),
    }
    for word, layer in reasons.items():
        assert word in str(refusal_of(METHOD, layer))
    broken = linear_layer(4, 5)
    broken.weight[1, 1] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        sibling_factors([linear_layer(4, 5), broken], 2)
