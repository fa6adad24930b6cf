"""Recurrent operators, embeddings, Einsum and fused operators: exact at full rank, lowered right below it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.decompositions.registry import names
from onnxdecomp.layers.lowering_check import check_lowering
from tests.builders.cases import (
    Case,
    convolutions,
    einsums,
    embeddings,
    fused,
    fused_matmuls,
    gemms,
    recurrent,
)
from tests.builders.running import run
from tests.layers.test_rewrite_exact import assert_exact, decompose

METHODS = names()
RECURRENT = ("LSTM", "GRU", "RNN")
FEWER = settings(max_examples=max(5, settings().max_examples // 12))
"""For tests of every method, whose attributes one of them has covered."""


def assert_kept(case: Case, method: str, tolerance: float = 1e-4) -> None:
    """Exact at full rank; and at half of it the nodes compute what the chain says, under the node's name."""
    assert_exact(case, method, tolerance)
    model, result = decompose(case, method=method, rank="0.5")
    checks = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert len(checks) == len(result.rewritten)
    for check in checks:
        assert check.passed, check
        assert check.rel_error is not None
    if result.rewritten:
        assert model.graph[-1].name == case.model.graph.node[-1].name
        run(model, case.feeds)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(data=st.data())
def test_recurrent(method: str, data: st.DataObject) -> None:
    assert_kept(data.draw(recurrent(data.draw(st.sampled_from(RECURRENT)))), method)


@pytest.mark.parametrize("op_type", RECURRENT)
@given(data=st.data())
def test_recurrent_attributes(op_type: str, data: st.DataObject) -> None:
    assert_kept(data.draw(recurrent(op_type)), "svd")


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(case=embeddings())
def test_embedding(method: str, case: Case) -> None:
    assert_kept(case, method)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(case=einsums())
def test_einsum(method: str, case: Case) -> None:
    assert_kept(case, method)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(case=fused_matmuls())
def test_fused_matmul(method: str, case: Case) -> None:
    assert_kept(case, method)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(case=fused(convolutions()))
def test_fused_conv(method: str, case: Case) -> None:
    assert_kept(case, method)


@pytest.mark.parametrize("method", METHODS)
@FEWER
@given(case=fused(gemms()))
def test_fused_gemm(method: str, case: Case) -> None:
    assert_kept(case, method)
