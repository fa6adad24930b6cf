"""Weights with several readers: counted once, gone only when nobody reads them, and shared as factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxdecomp.core.layer import Array
from onnxdecomp.graph.load import load
from onnxdecomp.graph.traversal import slots
from onnxdecomp.record.layers import totals
from onnxdecomp.workflow import compress
from onnxdecomp.workflow.result import Result
from tests.builders.graphs import model as make
from tests.builders.graphs import value
from tests.builders.running import run

node = helper.make_node
rng = np.random.default_rng(0)


def low(rows: int, columns: int, rank: int = 4) -> Array:
    """A matrix of that rank, and a little more."""
    thin = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / rank
    return (thin + 0.01 * rng.standard_normal((rows, columns))).astype(np.float32)


TABLE, SQUARE = low(160, 32), low(32, 32)
KERNEL = low(16, 16 * 9).reshape(16, 16, 3, 3)


def tied(head: Sequence[onnx.NodeProto], *more: onnx.ValueInfoProto, **weights: Array) -> onnx.ModelProto:
    """An embedding, fc, and a head that reads the table E again; also other outputs than y."""
    nodes = [
        node("Gather", ["E", "ids"], ["e"], name="embed"),
        node("MatMul", ["e", "w"], ["h"], name="fc"),
        *head,
    ]
    ids = value("ids", ["B", 5], TensorProto.INT64)
    return make(nodes, [ids], [value("y", None), *more], {"E": TABLE, "w": SQUARE, **weights})


def transposed() -> onnx.ModelProto:
    return tied(
        [node("Transpose", ["E"], ["t"], perm=[1, 0]), node("MatMul", ["h", "t"], ["y"], name="head")]
    )


def gemm() -> onnx.ModelProto:
    flat = node("Reshape", ["h", "shape"], ["f"])
    last = node("Gemm", ["f", "E", "b"], ["y"], name="head", transB=1)
    return tied([flat, last], shape=np.array([-1, 32]), b=low(1, 160)[0])


def left() -> onnx.ModelProto:
    """The table times columns: it is the left operand, as it is."""
    turned = node("Transpose", ["h"], ["c"], perm=[0, 2, 1])
    return tied([turned, node("MatMul", ["E", "c"], ["y"], name="head")])


def added() -> onnx.ModelProto:
    """Something that is no layer reads the table as well."""
    norm = node("ReduceSum", ["E"], ["s"], keepdims=0)
    head = [node("Transpose", ["E"], ["t"], perm=[1, 0]), node("MatMul", ["h", "t"], ["z"], name="head")]
    # Not constant for simplifiers, which would fold the sum of a constant.
    return tied(
        [
            *head,
            norm,
            node("Cast", ["ids"], ["i"], to=TensorProto.FLOAT),
            node("ReduceMax", ["i"], ["m"]),
            node("Mul", ["E", "m"], ["k"]),
            node("ReduceSum", ["k"], ["q"], keepdims=0),
            node("Add", ["z", "q"], ["y"]),
        ]
    )


def output() -> onnx.ModelProto:
    """The table is an output."""
    head = [node("Transpose", ["E"], ["t"], perm=[1, 0]), node("MatMul", ["h", "t"], ["y"], name="head")]
    return tied(head, value("E", [160, 32]))


def constant() -> onnx.ModelProto:
    """The table is the output of a Constant."""
    model = transposed()
    (stored,) = (i for i in model.graph.initializer if i.name == "E")
    model.graph.initializer.remove(stored)
    model.graph.node.insert(0, node("Constant", [], ["E"], value=stored))
    return model


def siamese() -> onnx.ModelProto:
    """One kernel, two inputs."""
    nodes = [
        node("Conv", ["x1", "k"], ["a"], name="one", pads=[1, 1, 1, 1]),
        node("Conv", ["x2", "k"], ["b"], name="two", pads=[1, 1, 1, 1]),
        node("Sub", ["a", "b"], ["y"]),
    ]
    inputs = [value(name, ["N", 16, 8, 8]) for name in ("x1", "x2")]
    return make(nodes, inputs, [value("y", None)], {"k": KERNEL})


def branch() -> onnx.ModelProto:
    """The main graph and both branches of an If read one matrix."""
    bodies = {
        f"{name}_branch": helper.make_graph(
            [node("MatMul", ["t", "w"], [f"{name}_o"], name=name)], name, [], [value(f"{name}_o", None)]
        )
        for name in ("then", "else")
    }
    nodes = [
        node("MatMul", ["x", "w"], ["t"], name="outer"),
        node("ReduceSum", ["t"], ["s"], keepdims=0),
        node("Less", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], name="if", **bodies),
    ]
    weights = {"w": SQUARE, "zero": np.array(0, np.float32)}
    return make(nodes, [value("x", ["N", 32])], [value("y", None)], weights)


def one_bias() -> onnx.ModelProto:
    """Three convolutions, of which each has its own kernel and two have one bias."""
    nodes = [
        node("Conv", ["x", "k", "b"], ["h"], name="one", pads=[1, 1, 1, 1]),
        node("Conv", ["h", "k2", "b"], ["g"], name="two", pads=[1, 1, 1, 1]),
        node("Conv", ["g", "k3", "b3"], ["y"], name="three", pads=[1, 1, 1, 1]),
    ]
    weights = {"k": KERNEL, "k2": KERNEL[::-1].copy(), "k3": 2 * KERNEL, "b": KERNEL[0, :, 0, 0]}
    weights["b3"] = KERNEL[1, :, 0, 0]
    return make(nodes, [value("x", ["N", 16, 8, 8])], [value("y", None)], weights)


MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f for f in (transposed, gemm, left, added, output, constant, siamese, branch, one_bias)
}


def feeds(model: onnx.ModelProto, count: int = 2) -> dict[str, Array]:
    found: dict[str, Array] = {}
    random = np.random.default_rng(1)
    for put in model.graph.input:
        sizes = [dim.dim_value or count for dim in put.type.tensor_type.shape.dim]
        ids = put.type.tensor_type.elem_type == TensorProto.INT64
        found[put.name] = (
            random.integers(0, 160, sizes) if ids else random.standard_normal(sizes).astype(np.float32)
        )
    return found


def compressed(model: onnx.ModelProto, **options: Any) -> Result:
    return compress.compress(model, bench=False, verify=False, simplify="none", skip_below=0, **options)


def numbers(model: Any) -> int:
    return sum(slot.tensor.size for slot in slots(model) if slot.tensor.dtype.is_floating_point())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("exclude", [(), ("embed", "two", "then")])
def test_what_the_record_says_is_true_of_the_model(
    tmp_path: Path, name: str, exclude: tuple[str, ...]
) -> None:
    model = MODELS[name]()
    names = [n.name for n in model.graph.node] + ["then"] * (name == "branch")
    exclude = tuple(layer for layer in exclude if layer in names)
    result = compressed(model, method="svd", rank="6", exclude=exclude, must_save="none")
    assert len(result.plan.decomposed) >= 2 - bool(exclude)
    saved = result.record["totals"]["params"]
    file = tmp_path / "m.onnx"
    onnx.save(model, file)
    assert saved["before"] - saved["after"] == numbers(load(file)) - numbers(result.model)
    if name == "one_bias":
        assert saved["before"] == numbers(load(file))
    # At full rank all of it is the same function.
    full = compressed(model, method="svd", rank="1.0", exclude=exclude, must_save="none")
    for meant, seen in zip(run(model, feeds(model)), run(full.model, feeds(model)), strict=True):
        np.testing.assert_allclose(seen, meant, rtol=1e-3, atol=1e-3 * float(np.abs(meant).max()))


@pytest.mark.parametrize("name", ["transposed", "gemm", "left", "constant", "siamese"])
def test_all_readers_decomposed_share_the_factors(name: str) -> None:
    result = compressed(MODELS[name](), method="svd", rank="6", must_save="params")
    decomposed = [layer for layer in result.layers if layer.status == "decomposed"]
    stored = [layer.params.after for layer in decomposed if layer.name in ("embed", "head", "one", "two")]
    assert len(stored) == 2
    bias = 160 if name == "gemm" else 0
    assert stored[1] == bias
    assert totals(result.layers).params.after < totals(result.layers).params.before


@pytest.mark.parametrize(
    ("name", "exclude", "layer", "reader"),
    [
        ("transposed", ("embed",), "head", "embed"),
        ("gemm", ("head",), "embed", "head"),
        ("added", (), "head", "node_Mul"),
        ("output", (), "head", "the output E"),
        ("siamese", ("two",), "one", "two"),
        ("branch", ("then",), "outer", "then"),
    ],
)
def test_a_layer_whose_weight_stays_saves_no_parameters(
    name: str, exclude: tuple[str, ...], layer: str, reader: str
) -> None:
    result = compressed(MODELS[name](), method="svd", rank="6", exclude=exclude, must_save="params")
    (found,) = (entry for entry in result.layers if entry.name == layer)
    assert found.status == "kept"
    assert "reads it too: no parameters are saved" in found.reason
    if not reader.startswith("node_"):  # simplifiers name nodes as they like
        assert f"for {reader} reads it too" in found.reason


def test_a_target_of_parameters_counts_a_weight_once() -> None:
    model = transposed()
    calib = {"ids": np.random.default_rng(0).integers(0, 160, (12, 5))}
    result = compressed(model, calib=calib, target="params=2x")
    saved = result.record["totals"]["params"]
    assert saved["before"] == TABLE.size + SQUARE.size
    assert saved["after"] <= saved["before"] / 2
    assert numbers(result.model) == saved["after"]
    assert {"embed", "head"} <= {choice.layer for choice in result.plan.decomposed}


def test_without_its_twin_a_head_is_kept_for_parameters_and_decomposed_for_macs() -> None:
    model = transposed()
    calib = {"ids": np.random.default_rng(0).integers(0, 160, (12, 5))}
    options: dict[str, Any] = {"calib": calib, "exclude": ("embed",)}
    alone = compressed(model, target="params=1.1x", **options)
    assert [choice.layer for choice in alone.plan.decomposed] == ["fc"]
    macs = compressed(model, target="macs=2x", **options)
    assert "head" in [choice.layer for choice in macs.plan.decomposed]
    saved = macs.record["totals"]["params"]
    assert saved["after"] == numbers(macs.model)
    assert saved["after"] > saved["before"] - SQUARE.size
    assert any("the weight of head stays beside the factors, for embed reads it too" in n for n in macs.notes)


def test_a_bias_that_the_fit_brings_counts() -> None:
    kernel = low(16, 8 * 9).reshape(16, 8, 3, 3)
    conv = node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4)
    model = make([conv], [value("x", ["n", 8, 8, 8])], [value("y", ["n", 16, 8, 8])], {"w": kernel})
    calib = {"x": 1 + np.random.default_rng(0).standard_normal((4, 8, 8, 8)).astype(np.float32)}
    saved = compressed(model, calib=calib, method="svd", rank="3").record["totals"]["params"]
    chain = compressed(model, method="svd", rank="3").record["totals"]["params"]
    assert saved["before"] == chain["before"] == kernel.size
    assert saved["after"] == chain["after"] + 16
