"""Attention of ONNX Runtime: its packed projection is decomposed, all else stays the operator's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxdecomp.calibration.statistics import unobservable
from onnxdecomp.core.layer import Array
from onnxdecomp.layers.find import find
from onnxdecomp.layers.lowering_check import check_lowering
from onnxdecomp.layers.shapes import infer_shapes
from tests.builders.cases import MICROSOFT, Case, case_of
from tests.builders.feeds import calibration
from tests.builders.running import run
from tests.layers.test_more_layers_exact import assert_kept
from tests.layers.test_more_layers_graph import assert_same, reason, rewrite

RNG = np.random.default_rng(0)
SOME = settings(max_examples=max(5, settings().max_examples // 4))
INPUTS = ("x", "w", "b", "mask", "past", "added")


def attention(
    weights: dict[str, Array], feeds: dict[str, Array], dynamic: bool = True, **attributes: Any
) -> Case:
    """A model of one Attention; its inputs are known by their names."""
    names = [name if name in weights or name in feeds else "" for name in INPUTS]
    while not names[-1]:
        names.pop()
    outputs = ["y", "present"] if "past" in names else ["y"]
    node = helper.make_node(
        "Attention", names, outputs, name="layer", domain=MICROSOFT, **{"num_heads": 2, **attributes}
    )
    return case_of([node], weights, feeds, dynamic, outputs=outputs)


@st.composite
def attentions(draw: st.DrawFn) -> Case:
    """An Attention with any of its inputs, and every kind of mask."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    features, head, heads = draw(st.integers(2, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    attributes: dict[str, Any] = {"num_heads": heads, "unidirectional": draw(st.integers(0, 1))}
    past = draw(st.sampled_from([None, None, 0, 3]))
    values = head
    if past is None and draw(st.booleans()):
        values = draw(st.integers(1, 4))
        attributes["qkv_hidden_sizes"] = [heads * head, heads * head, heads * values]
    if draw(st.booleans()):
        attributes["scale"] = 0.3
    total = tokens + (past or 0)
    outputs = heads * (2 * head + values)
    weights: dict[str, Array] = {"w": rng.standard_normal((features, outputs)) / np.sqrt(features)}
    feeds: dict[str, Array] = {"x": rng.standard_normal((batch, tokens, features))}

    def place(name: str, array: Array) -> None:
        (feeds if draw(st.booleans()) else weights)[name] = array

    place("b", rng.standard_normal(outputs))
    ends = rng.integers(1, total + 1, batch).astype(np.int32)
    mask = (np.arange(total) < ends[:, None]).astype(np.int32)
    kind = draw(st.sampled_from(["none", "ends", "bounds", "2-D", "3-D"]))
    masks = {
        "ends": ends,
        "bounds": np.concatenate([ends, np.zeros(batch, np.int32)]),
        "2-D": mask,
        "3-D": np.broadcast_to(mask[:, None], (batch, tokens, total)).copy(),
    }
    if kind != "none":
        place("mask", masks[kind])
    if past is not None:
        feeds["past"] = rng.standard_normal((2, batch, heads, past, head))
    if past is None and draw(st.booleans()):  # not both on the CPU
        place("added", rng.standard_normal((batch, heads, tokens, total)))
    return attention(weights, feeds, draw(st.booleans()), **attributes)


@SOME
@given(case=attentions(), method=st.sampled_from(["svd", "svd", "svd", "tt", "btt", "ht", "tproduct"]))
def test_exact_at_full_rank(case: Case, method: str) -> None:
    assert_kept(case, method)


def bert(**attributes: Any) -> Case:
    weights = {"w": RNG.standard_normal((16, 48)) / 4, "b": RNG.standard_normal(48)}
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], np.int32)
    feeds: dict[str, Array] = {"x": RNG.standard_normal((2, 5, 16)), "mask": mask}
    return attention(weights, feeds, **attributes)


def test_its_numbers_and_multiplications_count() -> None:
    case = bert()
    (match,), _ = find(ir.from_proto(case.model))
    assert match.layer.weight.shape == (48, 16)
    _, result = rewrite(case, rank="4")
    assert result.plan is not None
    (choice,) = result.plan.choices
    assert choice.before is not None
    assert choice.after is not None
    assert choice.before.params == 16 * 48
    assert choice.after.params == 4 * (16 + 48)
    assert choice.before.macs / choice.after.macs == 3


def test_names() -> None:
    case = bert()
    model, _ = rewrite(case, rank="4")
    assert [(node.name, node.op_type) for node in model.graph] == [
        ("layer/first", "MatMul"),
        ("layer", "Attention"),
    ]
    assert set(model.graph.initializers) == {"layer/first.weight", "layer/last.weight", "b"}


def test_it_is_seen_by_a_calibration() -> None:
    (match,), _ = find(ir.from_proto(bert().model))
    assert unobservable(match) is None


def test_quantized_weights() -> None:
    """Behind a DequantizeLinear, and their factors so again."""
    case = bert()
    graph = case.model.graph
    quantize = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], name="dq", axis=1)
    node = graph.node[0]
    weights: dict[str, Array] = {
        "q": RNG.integers(-127, 128, (16, 48)).astype(np.int8),
        "s": np.full(48, 0.004, np.float32),
        "b": RNG.standard_normal(48),
    }
    case = case_of([quantize, node], weights, case.feeds, True)
    model, result = rewrite(case, requantize=True)
    assert [n.op_type for n in model.graph].count("DequantizeLinear") == 2
    (check,) = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert check.rel_error is not None
    assert check.passed, check
    assert_same(case, model, 0.1)


@pytest.mark.parametrize("sizes", [None, [8, 8, 20]])
def test_shapes_behind_it_are_known(sizes: list[int] | None) -> None:
    attributes: dict[str, Any] = {} if sizes is None else {"qkv_hidden_sizes": sizes}
    outputs = 48 if sizes is None else 36
    node = helper.make_node(
        "Attention", ["x", "w", "b"], ["h"], name="layer", domain=MICROSOFT, num_heads=2, **attributes
    )
    relu = helper.make_node("Relu", ["h"], ["y"])
    weights: dict[str, Array] = {"w": RNG.standard_normal((16, outputs)), "b": np.zeros(outputs)}
    case = case_of([node, relu], weights, {"x": np.ones((2, 5, 16))}, False)
    model = ir.from_proto(case.model)
    infer_shapes(model)
    expected = run(case.model, case.feeds)[0].shape
    assert tuple(model.graph[0].outputs[0].shape or ()) == expected


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"qkv_hidden_sizes": [8, 8, 8]}, "do not have the sizes"),
        ({"num_heads": 3, "qkv_hidden_sizes": [20, 20, 8]}, "do not have the sizes"),
    ],
)
def test_reasons(attributes: dict[str, Any], words: str) -> None:
    assert words in reason(bert(**attributes))


def test_without_a_bias() -> None:
    """ONNX Runtime's CPU kernel reads it all the same, and the process ends: nothing may be run of it."""
    case = attention({"w": RNG.standard_normal((16, 48))}, {"x": np.ones((1, 2, 16))})
    assert reason(case) == "it has no bias, which ONNX Runtime's CPU provider cannot do without"


def test_computed_weights() -> None:
    case = attention({"b": np.zeros(48)}, {"x": np.ones((1, 2, 16)), "w": RNG.standard_normal((16, 48))})
    assert reason(case) == "it is an input"


@pytest.mark.parametrize("op_type", ["QAttention", "EmbedLayerNormalization", "PackedAttention", "MoE"])
def test_operators_that_are_not_taken_are_listed(op_type: str) -> None:
    case = attention({"w": RNG.standard_normal((16, 48))}, {"x": np.ones((1, 2, 16))})
    case.model.graph.node[0].op_type = op_type
    assert reason(case) == f"{op_type} is not decomposed"


def test_the_attention_of_onnx_has_no_weights() -> None:
    case = attention({"w": RNG.standard_normal((1, 2, 16))}, {"x": np.ones((1, 2, 16))})
    case.model.graph.node[0].domain = ""
    assert find(ir.from_proto(case.model)) == ([], [])


def test_it_is_fitted_to_what_it_sees() -> None:
    """Inputs of few directions: factors of that rank, fitted to them, lose nothing of what is asked."""
    case = bert()
    few = (RNG.standard_normal((2, 5, 3)) @ RNG.standard_normal((3, 16))).astype(np.float32)
    feeds = {**case.feeds, "x": few}
    expected = run(case.model, feeds)[0]
    model, result = rewrite(case, rank="3", calibration=calibration([feeds], stackable=False))
    assert result.rewritten[0].loss is not None
    np.testing.assert_allclose(run(model, feeds)[0], expected, atol=1e-3)
    plain, _ = rewrite(case, rank="3")
    assert np.abs(run(plain, feeds)[0] - expected).max() > 0.05
