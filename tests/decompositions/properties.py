"""What every method promises, as assertions on one layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Array, Layer, Ranks, relative_error
from onnxdecomp.decompositions.base import Decomposition, outline, refusal_of
from onnxdecomp.errors import ModelError
from onnxdecomp.layers.find import find
from onnxdecomp.layers.replace import Rewriter
from tests.builders.cases import Case
from tests.builders.layers import error_of, fitted
from tests.builders.running import run


def check_full_rank(method: Decomposition, layer: Layer) -> None:
    """Exact, and what the fraction 1 means."""
    full = method.full_ranks(layer)
    assert method.fraction_ranks(layer, 1.0) == full
    chain = fitted(method, layer, full)
    assert chain.dense().shape == layer.weight.shape
    assert chain.dense().dtype == layer.weight.dtype
    assert relative_error(chain.dense(), layer.weight) < 1e-5
    assert chain.bias is layer.bias
    wide = replace(layer, weight=layer.weight.astype(np.float64))
    assert error_of(method, wide, full) < 1e-13


def check_outline(method: Decomposition, layer: Layer, ranks: Ranks) -> None:
    """Shapes and costs are known before the fit; the output's shape is the layer's own."""
    factors = method.fit(layer, ranks)
    assert tuple(f.shape for f in factors) == method.shapes(layer, ranks)
    assert all(f.dtype == layer.weight.dtype and np.isfinite(f).all() for f in factors)
    chain, plan = method.assemble(layer, factors), outline(method, layer, ranks)
    shape = layer.assumed_input_shape()
    bias = 0 if layer.bias is None else layer.bias.size
    assert plan.params == chain.params == sum(f.size for f in factors) + bias
    assert plan.macs(shape) == chain.macs(shape)
    assert plan.traffic(shape) == chain.traffic(shape)
    assert chain.output_shape(shape) == dense_chain(layer).output_shape(shape)


def check_error_bound(method: Decomposition, layer: Layer, error: float) -> None:
    """`ranks_for_error` keeps its promise with attainable ranks."""
    ranks = method.ranks_for_error(layer, error)
    assert all(1 <= r <= full for r, full in zip(ranks, method.full_ranks(layer), strict=True))
    assert error_of(method, layer, ranks) <= error * (1 + 1e-5)


def check_spectra(method: Decomposition, layer: Layer) -> None:
    """Descending, as many as the full rank, with the weight's whole norm."""
    spectra = method.spectra(layer)
    assert tuple(map(len, spectra)) == method.full_ranks(layer)
    for values in spectra:
        assert np.all(np.diff(values) <= 1e-6 * values[0])
        np.testing.assert_allclose(np.linalg.norm(values), np.linalg.norm(layer.weight), rtol=1e-5)


def check_determinism(method: Decomposition, layer: Layer, ranks: Ranks) -> None:
    again = method.fit(replace(layer, weight=layer.weight.copy()), ranks)
    assert [f.tobytes() for f in method.fit(layer, ranks)] == [f.tobytes() for f in again]


def check_balance(method: Decomposition, layer: Layer, ranks: Ranks) -> None:
    """No factor is far larger than another, also of a zero weight or of huge numbers."""
    norms = [np.linalg.norm(f) for f in method.fit(layer, ranks)]
    assert max(norms) < 1.01 * min(norms)
    zero = replace(layer, weight=np.zeros_like(layer.weight))
    assert not fitted(method, zero, ranks).dense().any()
    assert all(r >= 1 for r in method.ranks_for_error(zero, 0.1))
    huge = replace(layer, weight=np.full_like(layer.weight, 1e37))
    assert np.isfinite(fitted(method, huge, ranks).dense()).all()


def check_nan(method: Decomposition, layer: Layer) -> None:
    for value in (np.nan, np.inf):
        weight = layer.weight.copy()
        weight.flat[3] = value
        broken = replace(layer, weight=weight)
        for action in (
            lambda: method.fit(broken, method.full_ranks(layer)),  # noqa: B023
            lambda: method.spectra(broken),  # noqa: B023
            lambda: method.ranks_for_error(broken, 0.1),  # noqa: B023
        ):
            with pytest.raises(ModelError, match="layer: the weight holds NaN"):
                action()


def outputs_at_full_rank(method: Decomposition, case: Case) -> tuple[Array, Array] | None:
    """The model's output in ONNX Runtime before and after; None where the layer stays."""
    model = ir.from_proto(case.model)
    matched, _ = find(model)
    if not matched or refusal_of(method, matched[0].layer) is not None:
        return None
    match = matched[0]
    Rewriter(model).replace(match, fitted(method, match.layer, method.full_ranks(match.layer)), {})
    return run(case.model, case.feeds)[0], run(model, case.feeds)[0]
