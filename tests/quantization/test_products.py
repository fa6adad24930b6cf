"""Weights of products and tables in fewer bits: what is computed, what is stored, what stays as it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Lookup, MatMul
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.layers.storage import Storage
from onnxdecomp.quantization.guard import guarded
from onnxdecomp.quantization.kinds import bytes_of, storage_of
from onnxdecomp.quantization.products import products, stored
from onnxdecomp.quantization.scheme import scheme_for
from onnxdecomp.runtime.interface import differences, interface_of
from tests.builders.exported import KINDS

STORED = ("int8-dynamic", "int8-block", "int4", "int4:16", "int4:128")
every = pytest.mark.parametrize("kind", STORED)
RNG = np.random.default_rng(3)


def storage(kind: str) -> Storage:
    found = storage_of(kind, "cpu")
    assert found is not None
    return found


def normal(*shape: int) -> Array:
    return np.asarray(RNG.standard_normal(shape), np.float32)


def proto(
    nodes: list[onnx.NodeProto], weights: dict[str, Array], inputs: dict[str, Array], opset: int = 17
) -> onnx.ModelProto:
    """A model of one output "y"."""
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
    given_inputs = [
        helper.make_tensor_value_info(name, kinds[array.dtype.kind], [None, *array.shape[1:]])
        for name, array in inputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        given_inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto | ir.Model | Path, feed: dict[str, Array]) -> Array:
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, feed)[0]
    assert isinstance(found, np.ndarray)
    return found


def off(new: Array, old: Array) -> float:
    return float(np.linalg.norm(new - old) / max(float(np.linalg.norm(old)), 1e-12))


def count(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@every
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 5),
    width=st.integers(1, 70),
    outputs=st.integers(1, 40),
    op=st.sampled_from(["MatMul", "MatMul+Add", "Gemm", "Gemm transB", "Gemm alpha beta"]),
    opset=st.sampled_from([9, 13, 17, 21]),
)
def test_a_product_computes_what_its_storage_says(
    kind: str, rows: int, width: int, outputs: int, op: str, opset: int
) -> None:
    """Weights are rounded as the storage says, whatever their sizes; activations by 8 bits more."""
    x, w, b = normal(rows, width), normal(width, outputs), normal(outputs)
    weights = {"w": w}
    if op == "MatMul":
        nodes, wanted = [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], w
        addend: Array | float = 0.0
    elif op == "MatMul+Add":
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="n"),
            helper.make_node("Add", ["m", "b"], ["y"], name="add"),
        ]
        weights["b"], wanted, addend = b, w, b
    else:
        transposed, scaled = op == "Gemm transB", op == "Gemm alpha beta"
        alpha, beta = (0.5, 2.0) if scaled else (1.0, 1.0)
        nodes = [
            helper.make_node(
                "Gemm", ["x", "w", "b"], ["y"], name="n", transB=int(transposed), alpha=alpha, beta=beta
            )
        ]
        weights = {"w": np.ascontiguousarray(w.T) if transposed else w, "b": b}
        wanted, addend = alpha * w, beta * b
    model = ir.from_proto(proto(nodes, weights, {"x": x}, opset))
    made = stored(model, storage(kind))
    assert not count(made).keys() & {"MatMul", "Gemm"}
    assert products(made) == []
    rounded = storage(kind).rounded(MatMul(wanted))
    new = run(made, {"x": x})
    # One of 255 steps of the activation's range, half of it, for every one of the numbers added up.
    span = float(max(x.max(), 0) - min(x.min(), 0)) / 255
    blocked = float(np.abs(x).max()) / 127
    bound = max(span, blocked) * np.abs(rounded).sum(axis=0) + 1e-4
    assert (np.abs(new - (x @ rounded + addend)) <= bound).all()


@every
@settings(max_examples=8, deadline=None)
@given(width=st.integers(1, 80), index=st.sampled_from([(2,), (2, 3), ()]))
def test_a_table_gives_the_rows_that_its_storage_says(kind: str, width: int, index: tuple[int, ...]) -> None:
    table = normal(4096 // width + 5, width)
    ids = np.asarray(RNG.integers(-len(table), len(table), index))
    nodes = [helper.make_node("Gather", ["t", "ids"], ["y"], name="n")]
    model = proto(nodes, {"t": table}, {})
    model.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, list(index)))
    made = stored(ir.from_proto(model), storage(kind))
    rounded = storage(kind).rounded(Lookup(table))
    np.testing.assert_allclose(run(made, {"ids": ids}), rounded[ids], rtol=1e-5, atol=1e-6)
    assert off(rounded, table) < (0.2 if kind.startswith("int4") else 0.02)


@every
def test_numbers_that_are_no_numbers_for_a_scale(kind: str) -> None:
    """A column of zeros, one that underflows, and one huge number."""
    w = normal(32, 4)
    w[:, 0], w[:, 1], w[0, 2] = 0, 1e-44, 1e30
    rounded = storage(kind).rounded(MatMul(w))
    assert np.isfinite(rounded).all()
    assert (rounded[:, 0] == 0).all()
    np.testing.assert_allclose(rounded[0, 2], 1e30, rtol=1e-2)


def test_dynamic_is_what_the_dynamic_quantizer_of_onnx_runtime_makes(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    x = normal(6, 48)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="a"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="b"),
    ]
    model = proto(nodes, {"w1": normal(48, 32), "w2": normal(32, 8)}, {"x": x})
    onnx.save(model, tmp_path / "m.onnx")
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "theirs.onnx", per_channel=True)
    made = stored(load(tmp_path / "m.onnx"), storage("int8-dynamic"))
    np.testing.assert_allclose(
        run(made, {"x": x}), run(tmp_path / "theirs.onnx", {"x": x}), rtol=1e-4, atol=1e-4
    )


def test_siblings_round_their_activation_once() -> None:
    nodes = [helper.make_node("MatMul", ["x", f"w{k}"], [f"h{k}"], name=f"n{k}") for k in range(3)]
    nodes.append(helper.make_node("Sum", ["h0", "h1", "h2"], ["y"]))
    model = proto(nodes, {f"w{k}": normal(8, 8) for k in range(3)}, {"x": normal(2, 8)})
    made = stored(ir.from_proto(model), storage("int8-dynamic"))
    assert count(made)["DynamicQuantizeLinear"] == 1
    assert count(made)["MatMulInteger"] == 3


def tied() -> tuple[onnx.ModelProto, dict[str, Array]]:
    table, ids = normal(200, 32), np.asarray(RNG.integers(0, 200, (2, 3)))
    nodes = [
        helper.make_node("Gather", ["t", "ids"], ["e"], name="embedding"),
        helper.make_node("Tanh", ["e"], ["h"]),
        helper.make_node("Transpose", ["t"], ["tt"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["h", "tt"], ["y"], name="head"),
    ]
    return proto(nodes, {"t": table}, {"ids": ids}), {"ids": ids}


def test_a_table_and_its_head_are_stored_once(tmp_path: Path) -> None:
    """And the Transpose between them is ONNX Runtime's to fold: it runs once, not at every step."""
    model, feed = tied()
    made = stored(ir.from_proto(model), storage("int8-dynamic"))
    tables = [v for v in made.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert [tuple(v.shape or ()) for v in tables] == [(200, 32)]
    assert "t" not in made.graph.initializers
    assert off(run(made, feed), run(model, feed)) < 0.05
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(ir.to_proto(made).SerializeToString(), options, providers=["CPUExecutionProvider"])
    ran = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert "Transpose" not in ran
    assert ran.keys() & {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}


@pytest.mark.parametrize("bits", [None, 4])
def test_ranges_for_products_go_with_tables_in_rows(bits: int | None, tmp_path: Path) -> None:
    """The quantizer has one scale for a table, and leaves a tied one in floating point."""
    size, width = 160, 32
    weights = {"w": normal(width, width), "e": normal(size, width)}
    weights["e"] *= np.float32(10.0) ** RNG.uniform(-3, 0, (size, 1)).astype(np.float32)
    tokens = RNG.integers(0, size, (2, 16))
    nodes = [
        helper.make_node("Gather", ["e", "i"], ["x"]),
        helper.make_node("LayerNormalization", ["x", "ones"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["h"]),
        helper.make_node("Transpose", ["e"], ["et"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "et"], ["y"]),
    ]
    weights["ones"] = np.ones(width, np.float32)
    whole = proto(nodes, weights, {"i": tokens})
    model = ir.from_proto(whole)
    some = tuple({"i": one[None]} for one in RNG.integers(0, size, (8, 16)))
    feeds = Feeds(some, "test", stackable=True)
    rows = storage_of("int8-dynamic", "cpu", table_bits=bits)
    found = guarded(model, feeds, scheme_for("cpu"), rows=rows)
    assert found.model is not None
    save(found.model, tmp_path / "m.onnx")
    made = count(found.model)
    assert made["QuantizeLinear"] > 0  # of what the product between reads
    assert not any(match.layer.lookup for match in products(found.model))
    floats = [v for v in found.model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert max(v.const_value.size for v in floats if v.const_value is not None) < size * width / 4
    assert off(run(tmp_path / "m.onnx", {"i": tokens}), run(whole, {"i": tokens})) < (
        0.05 if bits is None else 0.3
    )


@every
@pytest.mark.parametrize("name", KINDS)
def test_models_of_all_kinds_keep_their_names_and_run(kind: str, name: str, tmp_path: Path) -> None:
    case = KINDS[name]()
    before = case.model.SerializeToString(deterministic=True)
    onnx.save(case.model, tmp_path / "model.onnx")
    model = load(tmp_path / "model.onnx")
    made = stored(model, storage(kind))
    target = save(made, tmp_path / "new.onnx")
    assert not differences(interface_of(tmp_path / "model.onnx"), interface_of(target))
    assert off(run(target, case.feeds), run(tmp_path / "model.onnx", case.feeds)) < 0.3
    assert case.model.SerializeToString(deterministic=True) == before
    names = [node.name for node in made.graph if node.name]
    assert len(names) == len(set(names))
    last = {match.nodes[-1].name for match in products(model)}
    assert last <= set(names)


@every
def test_what_is_named_stays(kind: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="a"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], name="b"),
    ]
    model = ir.from_proto(proto(nodes, {"w1": normal(8, 8), "w2": normal(8, 8)}, {"x": normal(2, 8)}))
    for keep, left in (({"a"}, ["a"]), ({"y"}, ["b"]), ({"h", "b"}, ["a", "b"])):
        assert [match.layer.name for match in products(stored(model, storage(kind), keep))] == left


def test_convolutions_and_products_from_the_left_stay() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
        helper.make_node("MatMul", ["w", "c"], ["y"], name="left"),
    ]
    model = ir.from_proto(
        proto(nodes, {"k": normal(4, 4, 3, 3), "w": normal(6, 6)}, {"x": normal(1, 4, 8, 8)})
    )
    assert products(model) == []
    assert count(stored(model, storage("int4"))) == {"Conv": 1, "MatMul": 1}


def test_a_layer_in_a_subgraph_is_stored_too() -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["b"], name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["o"])],
        "other",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)]
    x = normal(2, 8)
    model = proto(nodes, {"w": normal(8, 8)}, {"x": x})
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    for kind in STORED:
        made = stored(ir.from_proto(model), storage(kind))
        assert not any(v.name == "w" for v in made.graph.initializers.values())
        feed = {"x": x, "c": np.array(True)}
        assert off(run(made, feed), run(model, feed)) < 0.2


@every
def test_a_model_of_fewer_bits_is_refused(kind: str) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")]
    model = ir.from_proto(proto(nodes, {"w": normal(8, 8)}, {"x": normal(2, 8)}))
    with pytest.raises(ModelError, match="quantized already"):
        stored(stored(model, storage(kind)), storage(kind))


def test_blocks_say_their_size() -> None:
    w = normal(64, 8)
    errors = [off(storage(f"int4:{size}").rounded(MatMul(w)), w) for size in (16, 64)]
    assert errors[0] < errors[1]
    sizes = [bytes_of(f"int4:{size}") for size in (16, 64)]
    assert sizes == [0.5 + 4.5 / 16, 0.5 + 4.5 / 64]
    assert bytes_of("int8-static") == bytes_of("int8-dynamic") == 1
    assert bytes_of("float") is None


@pytest.mark.parametrize("kind", ["int8-dynamic", "int8-block", "int4"])
@pytest.mark.parametrize("bits", [4, 8])
def test_tables_have_bits_of_their_own(kind: str, bits: int) -> None:
    """Products keep the kind's; a head that is tied to a table of other numbers has its own."""
    own = storage_of(kind, "cpu", table_bits=bits)
    assert own is not None
    table, w = normal(200, 32), normal(32, 8)
    np.testing.assert_array_equal(own.rounded(MatMul(w)), storage(kind).rounded(MatMul(w)))
    of_bits = storage("int4" if bits == 4 else "int8-dynamic")
    np.testing.assert_array_equal(own.rounded(Lookup(table)), of_bits.rounded(Lookup(table)))
    model, feed = tied()
    made = stored(ir.from_proto(model), own)
    assert ("GatherBlockQuantized" in count(made)) == (bits == 4)
    assert off(run(made, feed), run(model, feed)) < 0.3


@every
def test_what_a_node_says_of_its_layer_is_said_of_all_that_it_becomes(kind: str) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc/first")]
    model = ir.from_proto(proto(nodes, {"w": normal(8, 8)}, {"x": normal(2, 8)}))
    said = {"layer": "fc", "part": "first", "method": "svd"}
    for key, value in said.items():
        model.graph[0].metadata_props[f"pkg.onnxdecomp.{key}"] = value
    made = stored(model, storage(kind))
    for node in made.graph:
        assert {k: node.metadata_props.get(f"pkg.onnxdecomp.{k}") for k in said} == said
