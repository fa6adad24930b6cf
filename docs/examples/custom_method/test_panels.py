"""What a method promises, on layers made of random numbers."""

import numpy as np
import pytest
from my_methods import Panels

from onnxdecomp.core.layer import Layer
from onnxdecomp.decompositions.base import Refusal, outline
from onnxdecomp.errors import ModelError


def layer_of(outputs, inputs):
    weight = np.random.default_rng(0).standard_normal((outputs, inputs)).astype(np.float32)
    bias = np.zeros(outputs, np.float32)
    return Layer("layer", "Gemm", weight, bias, input_shape=(1, 16, inputs))


def fitted(method, layer, ranks):
    return method.assemble(layer, method.fit(layer, ranks))


def test_at_full_rank_nothing_is_lost():
    for outputs, inputs in ((24, 32), (5, 32), (40, 8)):
        layer = layer_of(outputs, inputs)
        chain = fitted(Panels(), layer, Panels().full_ranks(layer))
        np.testing.assert_allclose(chain.dense(), layer.weight, atol=1e-5)


def test_the_error_is_what_the_spectrum_says():
    layer, method = layer_of(24, 32), Panels()
    (values,) = method.spectra(layer)
    for rank in (1, 3, 6):
        lost = np.linalg.norm(fitted(method, layer, (rank,)).dense() - layer.weight)
        np.testing.assert_allclose(lost, np.linalg.norm(values[rank:]), rtol=1e-5)


def test_the_outline_has_the_costs_of_the_chain():
    layer, method = layer_of(24, 32), Panels()
    plan, chain = outline(method, layer, (3,)), fitted(method, layer, (3,))
    assert plan.params == chain.params < layer.weight.size
    assert plan.macs(layer.input_shape) == chain.macs(layer.input_shape)


def test_what_it_does_not_take_it_says():
    assert isinstance(Panels().specialise(layer_of(24, 30)), Refusal)


def test_with_numbers_that_are_not_finite_it_says_so():
    layer = layer_of(24, 32)
    layer.weight[0, 0] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        Panels().fit(layer, (2,))
