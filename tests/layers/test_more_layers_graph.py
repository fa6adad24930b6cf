"""What rewriting recurrent operators, embeddings, Einsum and fused operators keeps and leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxdecomp_passes.decompose import Decompose

from onnxdecomp.core.layer import Array
from onnxdecomp.decompositions.registry import get, is_joint, names
from onnxdecomp.graph.load import load
from onnxdecomp.layers.find import find
from onnxdecomp.layers.lowering_check import check_lowering
from onnxdecomp.pipeline.base import PassContext, PassResult
from onnxdecomp.search.plan import Cost
from tests.builders.cases import MICROSOFT, Case, case_of
from tests.builders.running import run

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def rewrite(source: Case | onnx.ModelProto | ir.Model, **options: Any) -> tuple[ir.Model, PassResult]:
    proto = source.model if isinstance(source, Case) else source
    model = proto if isinstance(proto, ir.Model) else ir.from_proto(proto)
    context = PassContext(calibration=options.pop("calibration", None))
    result = Decompose(**{"method": "svd", "rank": "1.0", "must_save": "none", **options}).run(model, context)
    return model, result


def reason(case: Case, **options: Any) -> str:
    """Why the model's only layer stays."""
    _, result = rewrite(case, **options)
    assert not result.rewritten
    assert result.plan is not None
    (choice,) = result.plan.choices
    return choice.reason


def assert_same(
    case: Case, rewritten: ir.Model, tolerance: float = 1e-4, feeds: dict[str, Array] | None = None
) -> None:
    given = case.feeds if feeds is None else feeds
    for before, after in zip(run(case.model, given), run(rewritten, given), strict=True):
        assert after.shape == before.shape
        assert after.dtype == before.dtype
        np.testing.assert_allclose(after, before, rtol=tolerance, atol=tolerance)


def lstm(inputs: list[str], outputs: list[str], name: str = "lstm", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("LSTM", inputs, outputs, name=name, hidden_size=3, **attributes)


LSTM = {"w": normal(1, 12, 8), "r": normal(1, 12, 3)}
X = {"x": normal(4, 2, 8)}


def one_layer(kind: str) -> Case:
    """A model of one layer that every method can take the rank of."""
    if kind == "LSTM":
        w, r = normal(1, 64, 24), normal(1, 64, 16)
        node = helper.make_node("LSTM", ["x", "w", "r"], ["y", "", ""], name="layer", hidden_size=16)
        return case_of([node], {"w": w, "r": r}, {"x": normal(4, 2, 24)}, True)
    if kind == "Gather":
        node = helper.make_node("Gather", ["t", "x"], ["y"], name="layer", axis=0)
        return case_of([node], {"t": normal(300, 36)}, {"x": RNG.integers(0, 300, (3, 5))}, True)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    return case_of([node], {"w": normal(4, 24, 36)}, {"x": normal(4, 3, 24)}, True)


@pytest.mark.parametrize("kind", ["LSTM", "Gather", "batched MatMul"])
@pytest.mark.parametrize("method", [name for name in names() if not is_joint(name)])
def test_methods_take_what_they_say(method: str, kind: str) -> None:
    case = one_layer(kind)
    model, result = rewrite(case, method=method, skip_below=0.0)
    assert bool(result.rewritten) == (kind in ", ".join(get(method).takes))
    assert_same(case, model)


def test_names_of_a_recurrent_operator() -> None:
    case = case_of([lstm(["x", "w", "r"], ["", "yh", "yc"])], LSTM, X, True, outputs=("yh", "yc"))
    model, result = rewrite(case)
    assert [node.name for node in model.graph] == ["lstm/first", "lstm"]
    assert set(model.graph.initializers) == {"lstm/first.weight", "lstm/last.weight", "r"}
    assert [output.name for output in model.graph[-1].outputs] == ["", "yh", "yc"]
    assert result.rewritten[0].match.layer.op_type == "LSTM"
    assert_same(case, model)


def test_both_directions_share_the_first_factor() -> None:
    weights = {"w": normal(2, 12, 8), "r": normal(2, 12, 3)}
    case = case_of([lstm(["x", "w", "r"], ["y"], direction="bidirectional")], weights, X, True)
    model, _ = rewrite(case, rank="2")
    shapes = {name: tuple(value.shape or ()) for name, value in model.graph.initializers.items()}
    assert shapes == {"lstm/first.weight": (8, 2), "lstm/last.weight": (2, 12, 2), "r": (2, 12, 3)}


def test_recurrent_operators_that_share_a_weight() -> None:
    nodes = [
        lstm(["x", "w", "r"], ["h1"], "one"),
        lstm(["x", "w", "r"], ["h2"], "two", direction="reverse"),
        helper.make_node("Add", ["h1", "h2"], ["y"]),
    ]
    case = case_of(nodes, LSTM, X, True)
    model, _ = rewrite(case, rank="0.5")
    assert len(model.graph.initializers) == 3
    assert_same(case, rewrite(case)[0])


def test_batch_first() -> None:
    """ONNX Runtime has no kernel for it, so the lowering check says that it could not run."""
    weights = {**LSTM, "b": normal(1, 24)}
    nodes = [lstm(["x", "w", "r", "b", "", "h", "c"], ["y", "yh", "yc"], layout=1)]
    feeds = {"x": normal(2, 4, 8), "h": normal(2, 1, 3), "c": normal(2, 1, 3)}
    case = case_of(nodes, weights, feeds, False, outputs=("y", "yh", "yc"))
    model, result = rewrite(case)
    assert len(result.rewritten) == 1
    expected = ReferenceEvaluator(case.model).run(None, case.feeds)
    actual = ReferenceEvaluator(ir.to_proto(model)).run(None, case.feeds)
    for before, after in zip(expected, actual, strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)
    (check,) = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert check.rel_error is None
    assert "atchwise" in check.reason or "layout" in check.reason


def test_a_recurrent_operator_in_a_branch_with_a_computed_weight() -> None:
    floats = TensorProto.FLOAT
    w, r = LSTM["w"], LSTM["r"]

    def branch(name: str, direction: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Concat", ["top", "bottom"], [f"{name}_c"], axis=0),
            helper.make_node("Unsqueeze", [f"{name}_c", "axes"], [f"{name}_w"]),
            lstm(["x", f"{name}_w", "r"], [f"{name}_y"], "inner", direction=direction),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", floats, None)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["condition"]),
        helper.make_node(
            "If",
            ["condition"],
            ["y"],
            name="if",
            then_branch=branch("yes", "forward"),
            else_branch=branch("no", "reverse"),
        ),
    ]
    weights = {
        "zero": np.array(0, np.float32),
        "axes": np.array([0]),
        "r": r,
        "top": w[0, :6],
        "bottom": w[0, 6:],
    }
    case = case_of(nodes, weights, X, True)
    model, result = rewrite(case)
    assert {r.match.layer.graph for r in result.rewritten} == {"if/then_branch", "if/else_branch"}
    # The weight's parts went with their last users; both branches have the same factors.
    assert set(model.graph.initializers) == {"zero", "r", "inner/first.weight", "inner/last.weight"}
    for sign in (1, -1):
        assert_same(case, model, feeds={"x": sign * np.abs(X["x"])})


def test_functions() -> None:
    table = normal(128, 40)
    body = [
        helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(table)),
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(normal(40, 3, 4))),
        helper.make_node("Gather", ["t", "a"], ["h"], name="table"),
        helper.make_node("Einsum", ["h", "w"], ["b"], name="heads", equation="bsi,iho->bsho"),
    ]
    function = helper.make_function("local", "Embed", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    case = case_of(
        [helper.make_node("Embed", ["ids"], ["y"], domain="local", name="call")],
        {},
        {"ids": RNG.integers(0, 128, (2, 3))},
        True,
    )
    case.model.functions.append(function)
    model, result = rewrite(case)
    names = [r.match.layer.name for r in result.rewritten]
    assert names == ["table", "heads"]
    assert_same(case, model)


def test_a_table_that_is_also_a_matrix() -> None:
    table = normal(128, 40)
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["h"], name="in"),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "wt"], ["y"], name="out"),
    ]
    case = case_of(nodes, {"w": table}, {"ids": RNG.integers(0, 128, (2, 3))}, True)
    model, result = rewrite(case)
    assert len(result.rewritten) == 2
    assert "w" not in model.graph.initializers
    assert_same(case, model, 1e-3)


def embedding(table: Array, **attributes: Any) -> Case:
    node = helper.make_node("Gather", ["w", "ids"], ["y"], name="table", **attributes)
    return case_of([node], {"w": table}, {"ids": RNG.integers(0, 16, (2, 3))}, True)


def test_an_embedding_is_judged_by_its_parameters() -> None:
    case = embedding(normal(128, 40))
    assert rewrite(case, must_save="macs", rank="8")[1].rewritten
    assert rewrite(case, must_save="either", rank="8")[1].rewritten
    assert "a lookup none" in reason(case, must_save="both", rank="8")
    assert "1.31x the parameters" in reason(case, must_save="macs", rank="40")
    _, result = rewrite(case, rank="8")
    assert result.plan is not None
    (choice,) = result.plan.choices
    assert choice.before == Cost(128 * 40, 0)
    # one batch of 32 indices is assumed where the model leaves the sequence free
    assert choice.after == Cost(8 * (128 + 40), 32 * 8 * 40)


def test_gathers_that_are_no_embeddings() -> None:
    for case in (
        embedding(normal(16, 16)),
        embedding(normal(16, 16, 32)),
        embedding(np.arange(8192).reshape(128, 64)),
    ):
        assert find(ir.from_proto(case.model)) == ([], [])
    constant = embedding(normal(128, 40))
    ids = numpy_helper.from_array(np.array([1, 2]), "ids")
    constant.model.graph.initializer.append(ids)
    del constant.model.graph.input[0]
    assert find(ir.from_proto(constant.model)) == ([], [])


def test_a_table_read_by_columns() -> None:
    assert "columns" in reason(embedding(normal(128, 40), axis=1))


@pytest.mark.parametrize(
    ("equation", "shape", "weight", "expected"),
    [
        ("bsi,io->bo", (2, 3, 4), (4, 5), "no product of matrices"),
        ("bsi,ij->bsij", (2, 3, 4), (4, 5), "no product of matrices"),
        ("bsi,i->bs", (2, 3, 4), (4,), "no product of matrices"),
        ("bi,ioj->bo", (2, 4), (4, 5, 3), "no product of matrices"),
        ("bii,io->bo", (2, 4, 4), (4, 5), "repeated"),
        ("bi,...io->b...o", (2, 4), (3, 4, 5), "ellipsis in its constant"),
        ("hi,hio->ho", (2, 4), (2, 4, 5), "a single vector"),
        ("bi,io->bo", (2, 4), (1, 5), "size 1"),
        ("bi,io->bo", (2, 1), (4, 5), "broadcast"),
    ],
)
def test_equations_that_are_no_product(
    equation: str, shape: tuple[int, ...], weight: tuple[int, ...], expected: str
) -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], name="e", equation=equation)
    case = case_of([node], {"w": normal(*weight)}, {"x": normal(*shape)}, False)
    assert expected in reason(case)


def test_einsum_without_two_operands() -> None:
    node = helper.make_node("Einsum", ["x"], ["y"], name="e", equation="ij->ji")
    assert "1 operands" in reason(case_of([node], {}, {"x": normal(2, 3)}, False))
    node = helper.make_node("Einsum", ["x", "x"], ["y"], name="e", equation="ij,kj->ik")
    assert "no operand is constant" in reason(case_of([node], {}, {"x": normal(2, 3)}, False))


def test_an_einsum_needs_no_more_than_the_products() -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], name="e", equation="bsi,oi->bso")
    model, _ = rewrite(case_of([node], {"w": normal(5, 4)}, {"x": normal(2, 3, 4)}, True))
    assert [(node.name, node.op_type) for node in model.graph] == [("e/first", "MatMul"), ("e", "MatMul")]


@pytest.mark.parametrize("kind", ["recurrent", "embedding", "einsum"])
def test_half_precision(kind: str) -> None:
    einsum = helper.make_node("Einsum", ["x", "w"], ["y"], name="e", equation="bsi,iho->bsho")
    case = {
        "recurrent": case_of([lstm(["x", "w", "r"], ["y"])], LSTM, X, True, "float16"),
        "embedding": case_of(
            [helper.make_node("Gather", ["w", "ids"], ["y"], name="table")],
            {"w": normal(128, 40)},
            {"ids": RNG.integers(-128, 128, (2, 3))},
            True,
            "float16",
        ),
        "einsum": case_of([einsum], {"w": normal(8, 3, 4)}, X, True, "float16"),
    }[kind]
    model, result = rewrite(case)
    (check,) = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert check.passed
    assert check.rel_error is not None
    assert_same(case, model, 2e-2)


def test_a_padding_that_follows_the_input() -> None:
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2], output_shape=[9, 8]
    )
    weights, feeds = {"w": normal(4, 4, 3, 3)}, {"x": normal(1, 4, 5, 4)}
    assert "not fixed" in reason(case_of([node], weights, feeds, True))
    case = case_of([node], weights, feeds, False)
    model, _ = rewrite(case)
    assert_same(case, model)
    last = next(n for n in model.graph if n.op_type == "ConvTranspose")
    assert "output_shape" not in last.attributes


def optimized(proto: onnx.ModelProto, folder: Path, level: str) -> ir.Model:
    """The model as ONNX Runtime's optimizer writes it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return load(folder / "optimized.onnx")


def network() -> Case:
    """A network in which ONNX Runtime fuses convolutions, products and transpositions."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["c1"], ["r1"], alpha=0.1),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "x"], ["s"]),
        helper.make_node("Relu", ["s"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], name="gemm"),
        helper.make_node("Sigmoid", ["g"], ["h"]),
        helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["w4", "h"], ["m0"], name="left"),
        helper.make_node("MatMul", ["t", "w4"], ["m1"], name="matmul"),
        helper.make_node("Mul", ["m1", "half"], ["m2"]),
        helper.make_node("Concat", ["m0", "m2"], ["y"], axis=0),
    ]
    weights = {
        "w1": normal(8, 8, 3, 3) / 8,
        "b1": normal(8),
        "w2": normal(8, 8, 3, 3) / 8,
        "b2": normal(8),
        "w3": normal(8, 6),
        "b3": normal(6),
        "w4": normal(6, 6),
        "half": np.array(0.5, np.float32),
    }
    return case_of(nodes, weights, {"x": normal(6, 8, 5, 5)}, False)


@pytest.mark.parametrize("method", ["svd", "tucker", "cp", "tt"])
def test_what_the_optimizer_of_onnx_runtime_writes(method: str, tmp_path: Path) -> None:
    case = network()
    model = optimized(case.model, tmp_path, "ORT_ENABLE_EXTENDED")
    kinds = {node.op_type for node in model.graph if node.domain == MICROSOFT}
    assert {"FusedConv", "FusedGemm", "FusedMatMul"} <= kinds
    _, result = rewrite(model, method=method)
    assert {r.match.layer.op_type for r in result.rewritten} >= {"FusedConv", "FusedMatMul"}
    assert all(check.passed for check in check_lowering(result.rewritten, opset=17, ir_version=8))
    assert_same(case, model, 1e-3)
    kept = {node.op_type for node in model.graph if node.domain == MICROSOFT}
    assert "FusedConv" in kept
    # What does not end in a product of matrices has the activation behind it.
    assert ("FusedGemm" in kept) != ("Sigmoid" in {node.op_type for node in model.graph})


def test_what_it_writes_for_one_processor_is_left_alone(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    case = case_of([node], {"w": normal(32, 32, 3, 3)}, {"x": normal(1, 32, 8, 8)}, False)
    _, skips = find(optimized(case.model, tmp_path, "ORT_ENABLE_ALL"))
    blocked = [skip for skip in skips if skip.op_type == "Conv"]
    if not blocked:
        pytest.skip("ONNX Runtime blocks no layouts on this processor")
    assert all("one kind of processor" in skip.reason for skip in blocked)


def test_shapes_behind_fused_operators_are_known(tmp_path: Path) -> None:
    model = optimized(network().model, tmp_path, "ORT_ENABLE_EXTENDED")
    _, result = rewrite(model)
    shapes = {r.match.layer.name: r.match.layer.input_shape for r in result.rewritten}
    assert shapes["conv2"] == (6, 8, 5, 5)
    assert shapes["left"] == (6, 6)


def test_shapes_behind_a_crop_are_known() -> None:
    crop = helper.make_node("Crop", ["x"], ["h"], border=[1, 0, 2, 1])
    node = helper.make_node(
        "ConvTranspose", ["h", "w"], ["y"], name="up", strides=[2, 2], output_shape=[15, 7]
    )
    case = case_of([crop, node], {"w": normal(4, 4, 3, 3)}, {"x": normal(1, 4, 8, 6)}, False, opset=7)
    model, result = rewrite(case)
    assert result.rewritten[0].match.layer.input_shape == (1, 4, 7, 3)
    assert_same(case, model)


def test_chains_that_do_not_fit_the_operator() -> None:
    case = case_of([lstm(["x", "w", "r"], ["y"])], LSTM, X, True)
    assert "does not end in a product" in reason(case, method="tt")
    assert "does not begin with a product" in reason(embedding(normal(128, 40)), method="tt")


def test_a_computed_addend_of_a_fused_gemm() -> None:
    node = helper.make_node(
        "FusedGemm", ["x", "w", "c"], ["y"], name="g", domain=MICROSOFT, activation="Relu", beta=0.5
    )
    case = case_of([node], {"w": normal(8, 6)}, {"x": normal(4, 8), "c": normal(4, 6)}, True)
    model, result = rewrite(case)
    assert [n.op_type for n in model.graph] == ["MatMul", "FusedGemm"]
    assert all(check.passed for check in check_lowering(result.rewritten, opset=17, ir_version=8))
    assert_same(case, model)


def test_an_attribute_that_is_a_parameter_of_the_function() -> None:
    body = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(normal(4, 4, 3, 3))),
        helper.make_node("Conv", ["a", "w"], ["b"], name="inner"),
    ]
    reference = onnx.AttributeProto(name="strides", ref_attr_name="step", type=onnx.AttributeProto.INTS)
    body[1].attribute.append(reference)
    function = helper.make_function("local", "C", ["a"], ["b"], body, [helper.make_opsetid("", 17)], ["step"])
    call = helper.make_node("C", ["x"], ["y"], domain="local", name="call", step=[2, 2])
    case = case_of([call], {}, {"x": normal(1, 4, 8, 8)}, True)
    case.model.functions.append(function)
    assert "strides is a parameter of the function" in reason(case)


def quantized(kind: str, opset: int = 17) -> Case:
    """A layer whose int8 weight stands behind a DequantizeLinear."""
    shapes = {
        "Conv": ((6, 8, 3, 3), 0, (1, 8, 5, 5)),
        "ConvTranspose": ((8, 6, 3, 3), 1, (1, 8, 5, 5)),
        "MatMul": ((8, 6), 1, (3, 8)),
        "Gemm": ((6, 8), 0, (3, 8)),
        "Gather": ((128, 40), 1, (2, 3)),
        "LSTM": ((1, 12, 8), 1, (4, 2, 8)),
        "Einsum": ((8, 2, 3), 0, (4, 8)),
    }
    shape, axis, given = shapes[kind]
    scales = np.abs(normal(shape[axis])) / 64 + 0.01
    weights: dict[str, Array] = {"q": RNG.integers(-127, 128, shape).astype(np.int8), "scales": scales}
    dequantize = helper.make_node("DequantizeLinear", ["q", "scales"], ["w"], name="dq", axis=axis)
    feeds: dict[str, Array] = {"x": normal(*given)}
    inputs, attributes = ["x", "w"], dict[str, Any]()
    if kind == "Gather":
        inputs, feeds = ["w", "x"], {"x": RNG.integers(-128, 128, given)}
    elif kind == "LSTM":
        inputs, attributes = ["x", "w", "r"], {"hidden_size": 3}
        weights["r"] = normal(1, 12, 3)
    elif kind == "Gemm":
        attributes = {"transB": 1}
    elif kind == "Einsum":
        attributes = {"equation": "bi,iho->bho"}
    node = helper.make_node(kind, inputs, ["y"], name="layer", **attributes)
    return case_of([dequantize, node], weights, feeds, True, opset=opset)


KINDS = ["Conv", "ConvTranspose", "MatMul", "Gemm", "Gather", "LSTM", "Einsum"]


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_layers_get_floating_point_factors_and_a_note(kind: str) -> None:
    case = quantized(kind)
    model, result = rewrite(case)
    assert "DequantizeLinear" not in {node.op_type for node in model.graph}
    assert result.notes == (
        "1 layer was quantized; its factors are floating point (re-quantize with --requantize)",
    )
    assert_same(case, model, 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_requantized_factors(kind: str) -> None:
    case = quantized(kind)
    model, result = rewrite(case, requantize=True)
    factors = [value for name, value in model.graph.initializers.items() if name.endswith(".weight")]
    assert [value.dtype for value in factors] == [ir.DataType.INT8, ir.DataType.INT8]
    assert "1 layer was quantized; its factors are int8" in result.notes[0]
    (check,) = check_lowering(result.rewritten, opset=17, ir_version=8)
    assert check.passed, check
    expected, actual = run(case.model, case.feeds)[0], run(model, case.feeds)[0]
    error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
    # Two roundings to 8 bits; nothing at all would mean that nothing was rounded.
    assert 1e-5 < error < 0.03


def test_requantizing_needs_an_opset() -> None:
    case = quantized("MatMul", 13)
    case.model.opset_import[0].version = 12
    case.model.graph.node[0].ClearField("attribute")
    scale = numpy_helper.from_array(np.array(0.01, np.float32), "scales")
    case.model.graph.initializer[1].CopyFrom(scale)
    model, result = rewrite(case, requantize=True)
    assert "needs opset 13, this model has 12" in result.notes[0]
    assert_same(case, model, 1e-3)


def test_layers_that_were_not_quantized_stay_floating_point() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    model, result = rewrite(case_of([node], {"w": normal(8, 6)}, {"x": normal(3, 8)}, True), requantize=True)
    assert result.notes == ()
    assert [node.op_type for node in model.graph] == ["MatMul", "MatMul"]
