"""The adapters of layers: which are installed, and that every one has cases and keeps its layers' outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import ClassVar

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.decompositions import registry as registry_of_methods
from onnxdecomp.decompositions.registry import METHODS
from onnxdecomp.layers import registry
from onnxdecomp.layers.adapter import LayerAdapter
from onnxdecomp.layers.linear import Linear
from onnxdecomp.layers.registry import adapter_of, adapters
from tests.builders.cases import (
    MICROSOFT,
    Case,
    convolutions,
    einsums,
    embeddings,
    fused,
    fused_matmuls,
    gemms,
    matmuls,
    recurrent,
)
from tests.builders.entry_points import Dist, register_points
from tests.layers.test_attention import attentions
from tests.layers.test_dynamic_product import dynamic_products
from tests.layers.test_matmul_nbits import layers as blocks
from tests.layers.test_more_layers_exact import assert_kept

HERE = __name__

CASES: dict[tuple[str, str], st.SearchStrategy[Case]] = {
    ("", "Conv"): convolutions(),
    ("", "ConvTranspose"): convolutions(transposed=True),
    ("", "Gemm"): gemms(),
    ("", "MatMul"): matmuls(),
    ("", "LSTM"): recurrent("LSTM"),
    ("", "GRU"): recurrent("GRU"),
    ("", "RNN"): recurrent("RNN"),
    ("", "Gather"): embeddings(),
    ("", "Einsum"): einsums(),
    ("", "MatMulInteger"): dynamic_products("MatMulInteger"),
    (MICROSOFT, "FusedConv"): fused(convolutions()),
    (MICROSOFT, "FusedGemm"): fused(gemms()),
    (MICROSOFT, "FusedMatMul"): fused_matmuls(),
    (MICROSOFT, "MatMulIntegerToFloat"): dynamic_products("MatMulIntegerToFloat"),
    (MICROSOFT, "DynamicQuantizeMatMul"): dynamic_products("DynamicQuantizeMatMul"),
    (MICROSOFT, "MatMulNBits"): blocks(),
    (MICROSOFT, "Attention"): attentions(),
}
"""A one-layer model of every operator, over its attributes. A new adapter adds its operators."""

SOME = settings(max_examples=max(4, settings().max_examples // 12))


def test_every_operator_of_an_adapter_has_a_case() -> None:
    assert list(adapters().by_operator) == list(CASES)


@pytest.mark.parametrize("operator", CASES)
@SOME
@given(data=st.data())
def test_the_nodes_are_the_layer_at_full_rank_and_what_the_chain_says_below(
    operator: tuple[str, str], data: st.DataObject
) -> None:
    case = data.draw(CASES[operator])
    assert operator in {(node.domain, node.op_type) for node in case.model.graph.node}
    assert_kept(case, "svd")


@pytest.mark.parametrize(("domain", "op_type"), CASES)
def test_an_operator_is_known_by_its_domain_and_type(domain: str, op_type: str) -> None:
    known = adapters().by_operator[domain, op_type]
    assert (domain, op_type) in known.operators
    assert adapter_of(ir.node(op_type, [], domain=domain)) is known
    assert adapter_of(ir.node(op_type, [], domain="another.domain")) is None
    if not domain:
        assert adapter_of(ir.node(op_type, [], domain="ai.onnx")) is known


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_says_of_layers_are_operators_of_adapters(method: str) -> None:
    """`takes` is for people, and names operators as the adapters do."""
    known = {op_type for _, op_type in adapters().by_operator}
    named = [re.findall(r"[A-Z]\w+", text) for text in registry_of_methods.cls(method).takes]
    assert all(named)
    assert {operator for operators in named for operator in operators} <= known


class Another(Linear):
    operators: ClassVar[tuple[tuple[str, str], ...]] = (("my.domain", "Product"),)


class Taken(Linear):
    operators: ClassVar[tuple[tuple[str, str], ...]] = (("", "Gemm"), ("my.domain", "Other"))


class Unfinished(LayerAdapter):
    operators = (("my.domain", "Nothing"),)


class Nameless(Linear):
    operators = ()


GOOD = {"another": f"{HERE}:Another"}
RIVAL = {"another": f"{HERE}:Another"}
BROKEN = {
    "lost": "no_such_module:Class",
    "plain": f"{HERE}:{Dist.__name__}",
    "unfinished": f"{HERE}:Unfinished",
    "nameless": f"{HERE}:Nameless",
    "taken": f"{HERE}:Taken",
}


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Register entry points: register(first="GOOD", second="RIVAL")."""

    def apply(**mappings: str) -> None:
        register_points(monkeypatch, registry.GROUP, HERE, mappings)
        registry._adapters.cache_clear()

    yield apply
    registry._adapters.cache_clear()


def test_another_packages_adapter_comes_behind_ours(register: Callable[..., None]) -> None:
    register(first="GOOD")
    assert list(adapters().by_operator) == [*CASES, ("my.domain", "Product")]
    assert adapters().packages == {("my.domain", "Product"): "first 1.0"}
    assert adapters().problems == ()
    assert adapter_of(ir.node("Product", [], domain="my.domain")) is Another


def test_a_broken_package_harms_nobody_and_is_named(register: Callable[..., None]) -> None:
    register(first="GOOD", third="BROKEN")
    known = adapters().by_operator
    assert list(known) == [*CASES, ("my.domain", "Product"), ("my.domain", "Other")]
    assert known["", "Gemm"] is Linear
    assert adapters().problems == (
        "layer adapter 'lost' of third 1.0 cannot be imported: No module named 'no_such_module'",
        "layer adapter 'plain' of third 1.0 is not derived from onnxdecomp.layers.adapter.LayerAdapter: "
        f"{HERE}:Dist",
        "layer adapter 'unfinished' of third 1.0 lacks lower, match, obstacle, probe_inputs, stored: "
        f"{HERE}:Unfinished",
        f"layer adapter 'nameless' of third 1.0 lacks operators: {HERE}:Nameless",
        "layer adapter 'taken' of third 1.0 is for Gemm, which another one has already",
    )


def test_rivals_are_named_and_left_out(register: Callable[..., None]) -> None:
    register(first="GOOD", second="RIVAL")
    assert list(adapters().by_operator) == list(CASES)
    (problem,) = adapters().problems
    assert problem == (
        "layer adapter 'another' is registered by first 1.0 and second 1.0: uninstall one of them"
    )
