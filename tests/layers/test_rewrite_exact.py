"""At full rank a rewritten layer is the layer: over the whole attribute space, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from onnxdecomp_passes.decompose import Decompose

from onnxdecomp.decompositions.registry import names
from onnxdecomp.layers.lowering_check import check_lowering
from onnxdecomp.pipeline.base import PassResult
from tests.builders.cases import Case, convolutions, gemms, matmuls
from tests.builders.running import run

METHODS = names()
FEWER = settings(max_examples=max(5, settings().max_examples // 5))
"""For tests of every method: between them they see an attribute as often as the other tests do."""


def decompose(case: Case, **options: Any) -> tuple[ir.Model, PassResult]:
    model = ir.from_proto(case.model)
    result = Decompose(must_save="none", **options).call(model)
    return model, result


def assert_exact(case: Case, method: str, tolerance: float = 1e-4) -> None:
    """Decomposed at full rank, or refused with a reason; either way the outputs are the original's."""
    expected = run(case.model, case.feeds)
    model, result = decompose(case, method=method, rank="1.0")
    assert result.plan is not None
    choice = result.plan.choices[0]
    assert bool(result.rewritten) == bool(choice.method)
    assert result.rewritten or choice.reason, choice
    actual = run(model, case.feeds)
    for before, after in zip(expected, actual, strict=True):
        assert after.shape == before.shape
        assert after.dtype == before.dtype
        difference = np.linalg.norm(after.astype(np.float64) - before)
        assert difference <= tolerance * np.linalg.norm(before) + 1e-30
    assert [out.name for out in model.graph.outputs] == [out.name for out in case.model.graph.output]
    assert model.graph[-1].name == case.model.graph.node[-1].name


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(case=convolutions())
def test_convolution(method: str, case: Case) -> None:
    assert_exact(case, method)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(case=convolutions(transposed=True))
def test_transposed_convolution(method: str, case: Case) -> None:
    assert_exact(case, method)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(case=gemms())
def test_gemm(method: str, case: Case) -> None:
    assert_exact(case, method)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(case=matmuls())
def test_matmul(method: str, case: Case) -> None:
    assert_exact(case, method)


@given(case=matmuls(dtype="float64"))
def test_double_precision(case: Case) -> None:
    assert_exact(case, "svd", 1e-9)


@given(case=convolutions(dtype="float16"))
def test_half_precision(case: Case) -> None:
    assert_exact(case, "tucker", 2e-2)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(case=convolutions())
def test_lowering_check_below_full_rank(method: str, case: Case) -> None:
    _, result = decompose(case, method=method, rank="0.5")
    checks = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert len(checks) == len(result.rewritten)
    for check in checks:
        assert check.passed, check
        assert check.rel_error is not None
