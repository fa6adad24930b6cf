"""fp16: models of many kinds, what they compute, and what stays in float32."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnxdecomp_passes.quantize import Quantize

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.quantization.half import LARGEST, fp16, halved
from onnxdecomp.quantization.int8 import prepared
from onnxdecomp.runtime.interface import differences, interface_of
from onnxdecomp.runtime.session import open_session, run
from tests.builders.cases import Case
from tests.builders.exported import KINDS, batched, image, scaled
from tests.builders.graphs import FLOAT, node

IN_FUNCTION = {"k", "w2"}
"""What the kind "function" reads and makes in its function, which stays as it is."""


def converted(made: Case, folder: Path, keep: tuple[str, ...] = ()) -> tuple[ir.Model, Path]:
    onnx.save(made.model, folder / "model.onnx")
    new = fp16(load(folder / "model.onnx"), keep)
    return new, save(new, folder / "new.onnx")


def error(made: Case, folder: Path) -> float:
    outputs = [run(open_session(folder / f"{name}.onnx"), made.feeds) for name in ("model", "new")]
    errors = [float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in zip(*outputs, strict=True)]
    return max(errors)


@pytest.mark.parametrize("name", KINDS)
def test_it_keeps_the_interface_and_halves_the_weights(name: str, tmp_path: Path) -> None:
    made = KINDS[name]()
    new, target = converted(made, tmp_path)
    assert not differences(interface_of(tmp_path / "model.onnx"), interface_of(target))
    assert error(made, tmp_path) < 5e-3
    own = [v for v in new.graph.initializers.values() if not v.is_graph_input() and v.name not in IN_FUNCTION]
    own += [n.outputs[0] for n in new.graph if n.op_type == "Constant"]
    large = [t for t in map(ir.convenience.get_const_tensor, own) if t is not None and t.size > 99]
    assert large
    assert {tensor.dtype for tensor in large} == {ir.DataType.FLOAT16}


def test_nodes_that_are_to_stay_read_float32(tmp_path: Path) -> None:
    """Several that read one value share one Cast, and one that reads it twice is well too."""
    nodes = [
        node("Relu", "x", "a"),
        node("Mul", "a a", "b"),
        node("Add", "a big", "c"),
        node("Sub", "c b", "d"),
        node("Conv", "d w", "y", pads=[1] * 4),
    ]
    made = batched(nodes, {"w": scaled(16, 16, 3, 3), "big": np.array([1e9], np.float32)}, image())
    new, target = converted(made, tmp_path, keep=("b", "c", "d"))
    session = open_session(target)
    assert session.get_inputs()[0].type == "tensor(float)"
    assert new.graph.initializers["big"].dtype == ir.DataType.FLOAT
    assert new.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    assert sum(n.op_type == "Cast" for n in new.graph) == 4  # of x, a, d and y
    assert error(made, tmp_path) < 1e-3


def test_an_initializer_that_is_an_output_stays(tmp_path: Path) -> None:
    made = batched([node("Gemm", "x w", "y")], {"w": scaled(16, 16)}, {"x": scaled(1, 16)})
    made.model.graph.output.append(helper.make_tensor_value_info("w", FLOAT, [16, 16]))
    converted(made, tmp_path)
    given = run(open_session(tmp_path / "new.onnx"), made.feeds)[1]
    np.testing.assert_array_equal(given, scaled(16, 16))


def test_names_that_casts_would_get_may_be_taken(tmp_path: Path) -> None:
    taken = ["x_fp16", "y_fp16", "graph_input_cast_0", "x_fp16_cast_to_fp32", "y"]
    nodes = [node("Relu", a, b) for a, b in pairwise(["x", *taken])]
    nodes[0].name = "graph_input_cast0"
    made = batched(nodes, {}, image())
    new, _ = converted(made, tmp_path)
    assert error(made, tmp_path) < 1e-3
    names = {value.name for n in new.graph for value in n.outputs}
    assert set(taken) <= names


def test_operators_of_other_domains_are_typed_by_their_schema(tmp_path: Path) -> None:
    """ONNX's inference knows nothing of them, and so does the converter of ONNX Runtime."""
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["a"], "a", domain="com.microsoft", alpha=0.5),
        helper.make_node("SkipLayerNormalization", ["a", "a", "g"], ["b"], "b", domain="com.microsoft"),
        node("MatMul", "b w", "c"),
        node("NonZero", "c", "indices"),
        node("GatherND", "c t", "y"),
        node("Transpose", "indices", "t", perm=[1, 0]),
    ]
    nodes[4], nodes[5] = nodes[5], nodes[4]
    made = batched(nodes, {"w": scaled(16, 16), "g": np.ones(16, np.float32)}, {"x": scaled(2, 3, 16)})
    made.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    new, _ = converted(made, tmp_path)
    assert new.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    assert error(made, tmp_path) < 5e-3


@pytest.mark.parametrize("op_type", ["Bernoulli", "EyeLike", "RandomNormalLike", "RandomUniformLike"])
def test_an_output_of_the_inputs_type_goes_with_it(op_type: str, tmp_path: Path) -> None:
    """As an output of the model and as an operand of what is in float16."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Sigmoid", "a", "b"),
        node(op_type, "b", "c"),
        node("Add", "b c", "y"),
    ]
    made = batched(nodes, {"w": scaled(16, 16)}, {"x": scaled(16, 16)})
    made.model.graph.output.append(helper.make_tensor_value_info("c", FLOAT, [16, 16]))
    new, target = converted(made, tmp_path)
    assert new.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    assert [array.dtype for array in run(open_session(target), made.feeds)] == [np.float32, np.float32]


def test_what_a_loop_carries_stays(tmp_path: Path) -> None:
    """And its body reads a weight of the graph around it, in float16."""
    values = [helper.make_tensor_value_info(n, FLOAT, None) for n in ("s", "s2")]
    flags = [helper.make_tensor_value_info(n, onnx.TensorProto.BOOL, []) for n in ("go", "go2")]
    count = helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [])
    body = helper.make_graph(
        [node("Identity", "go", "go2"), node("MatMul", "s w", "m"), node("Tanh", "m", "s2")],
        "body",
        [count, flags[0], values[0]],
        [flags[1], values[1]],
    )
    nodes = [
        node("MatMul", "x w", "h"),
        node("Loop", "n go0 h", "l", body=body),
        node("MatMul", "l w", "y"),
    ]
    weights = {"w": scaled(16, 16), "n": np.array(3), "go0": np.array(True)}
    made = batched(nodes, weights, {"x": scaled(2, 16)})
    new, _ = converted(made, tmp_path)
    assert new.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    assert error(made, tmp_path) < 5e-3


def test_nothing_vanishes_and_nothing_becomes_infinite() -> None:
    given = np.array([1e-12, -1e-12, 0, 1e9, -1e9, np.inf, 1], np.float32)
    found = halved(given)
    assert found.dtype == np.float16
    assert found[0] > 0 > found[1]
    assert found[2:].tolist() == [0, LARGEST, -LARGEST, np.inf, 1]


DRAWN = [
    ("RandomNormalLike", {}),
    ("RandomUniformLike", {}),
    ("RandomNormalLike", {"dtype": FLOAT}),
    ("Bernoulli", {}),
    ("Multinomial", {"sample_size": 2, "dtype": onnx.TensorProto.INT32}),
    ("EyeLike", {}),
]


@pytest.mark.parametrize(("op_type", "attributes"), DRAWN)
def test_what_draws_numbers_stays(op_type: str, attributes: dict[str, int], tmp_path: Path) -> None:
    """Its result has the type of its input where no attribute gives one."""
    nodes = [node("MatMul", "x w", "a"), node("Sigmoid", "a", "s"), node(op_type, "s", "r", **attributes)]
    if op_type == "Multinomial":
        nodes += [node("Cast", "r", "f", to=FLOAT), node("ReduceSum", "f", "t"), node("Add", "t s", "y")]
    else:
        nodes += [node("Add", "r s", "t"), node("MatMul", "t w", "y")]
    made = batched(nodes, {"w": scaled(16, 16)}, {"x": scaled(4, 16)})
    new, target = converted(made, tmp_path)
    assert new.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    assert np.isfinite(run(open_session(target), made.feeds)[0]).all()


QUANTIZED = [
    ("DynamicQuantizeLinear", "x", "a b c", ""),
    ("QuantizeLinear", "x one", "a", ""),
    ("DequantizeLinear", "bytes one", "a", ""),
    ("MatMulInteger", "bytes bytes", "a", ""),
    ("ConvInteger", "bytes bytes", "a", ""),
    ("DynamicQuantizeMatMul", "x bytes one", "a", "com.microsoft"),
    ("MatMulNBits", "x bytes one", "a", "com.microsoft"),
]


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize(("op_type", "inputs", "outputs", "domain"), QUANTIZED)
def test_quantized_models_are_refused(
    op_type: str, inputs: str, outputs: str, domain: str, precision: str
) -> None:
    nodes = [node(op_type, inputs, outputs, domain=domain), node("MatMul", "x w", "y")]
    weights = {"w": scaled(16, 16), "one": np.ones(1, np.float32), "bytes": np.ones((16, 16), np.uint8)}
    model = ir.from_proto(batched(nodes, weights, {"x": scaled(4, 16)}).model)
    with pytest.raises(ModelError, match=f"quantized already: --quantize {precision}"):
        prepared(model) if precision == "int8" else fp16(model)


@pytest.mark.parametrize(("dtype", "name"), [("bfloat16", "bfloat16"), ("float16", "float16")])
@pytest.mark.parametrize("constant", [True, False])
def test_narrow_weights_are_refused_or_taken(dtype: str, name: str, constant: bool) -> None:
    stored = helper.make_tensor("w", onnx.TensorProto.DataType.Value(dtype.upper()), [1], [1.0])
    nodes = [node("Cast", "w", "f", to=FLOAT), node("Mul", "x f", "y")]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=stored))
    made = batched(nodes, {}, {"x": scaled(4, 16)})
    if not constant:
        made.model.graph.initializer.append(stored)
    model = ir.from_proto(made.model)
    with pytest.raises(ModelError, match=f"the model has {name} weights"):
        prepared(model)
    if name == "bfloat16":
        with pytest.raises(ModelError, match="--quantize fp16 is for float32 models"):
            fp16(model)
    else:
        assert fp16(model).graph.initializers.keys() == model.graph.initializers.keys()


def test_a_model_in_float16_stays_as_it_is() -> None:
    nodes = [node("MatMul", "x w", "y")]
    model = batched(nodes, {"w": scaled(16, 16)}, {"x": scaled(4, 16)}, dtype="float16").model
    done = Quantize(kind="fp16").call(ir.from_proto(model))
    assert not done.modified
    assert done.notes == ("nothing became float16: the model is in float16 already",)
