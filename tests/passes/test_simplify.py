"""simplify: what comes back has the interface, weights and metadata of the original, or is not taken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxdecomp_passes import simplify
from onnxdecomp_passes._simplify_worker import difference
from onnxdecomp_passes._skeleton import put_back, skeleton
from onnxdecomp_passes.simplify import Simplify

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline.base import PassResult
from tests.builders.commands import environment
from tests.builders.graphs import model
from tests.builders.running import close, op_types, run

node = helper.make_node


def weight(rng: np.random.Generator, *shape: int) -> Array:
    return np.asarray(rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)


def rich_model(**more: Any) -> onnx.ModelProto:
    """Symbolic dimensions, a shape computed from constants, large and overridable weights, metadata."""
    rng = np.random.default_rng(0)
    large = numpy_helper.from_array(weight(rng, 64, 32), "large")
    nodes = [
        node("Constant", [], ["large"], value=large, name="constant"),
        node("MatMul", ["x", "big"], ["h"], name="first", doc_string="says something"),
        node("Constant", [], ["two"], value_ints=[-1, 8], name="shape_a"),
        node("Constant", [], ["eight"], value_ints=[8], name="shape_b"),
        node("Concat", ["two", "eight"], ["shape"], axis=0, name="shape_c"),
        node("Reshape", ["h", "shape"], ["r"], name="split"),
        node("Reshape", ["r", "back"], ["s"], name="join"),
        node("Identity", ["s"], ["i"], name="idle"),
        node("Gelu", ["i"], ["g"], name="custom", domain="com.microsoft"),
        node("MatMul", ["g", "large"], ["m"], name="second"),
        node("Add", ["m", "override"], ["y"], name="bias"),
    ]
    nodes[1].metadata_props.add(key="pkg.torch.name", value="layer.0")
    weights = {
        "big": weight(rng, 40, 64),
        "back": np.array([-1, 64]),
        "override": weight(rng, 32),
    }
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    result = model(
        nodes,
        {"x": ["batch", 40]},
        ["y"],
        weights,
        listed=["override"],
        opset_imports=imports,
        producer_name="someone",
        doc_string="a model",
        **more,
    )
    result.metadata_props.add(key="author", value="me")
    result.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32]))
    return result


@pytest.fixture(scope="module", params=["onnxsim", "onnxscript"])
def simplified(
    request: pytest.FixtureRequest,
) -> tuple[onnx.ModelProto, ir.Model, PassResult, ir.Model]:
    """The rich model, its clone's simplification and the result, and the untouched ir.Model."""
    proto = rich_model()
    original = ir.from_proto(proto)
    subject = original.clone()
    result = Simplify(tool=request.param)(subject)
    assert isinstance(result, PassResult)
    assert result.model is subject
    assert result.notes == ()
    assert result.record["tool"] == request.param
    return proto, subject, result, original


Simplified = tuple[onnx.ModelProto, ir.Model, PassResult, ir.Model]


def test_simplified_computes_the_same(simplified: Simplified) -> None:
    proto, subject, result, _ = simplified
    assert result.modified
    assert op_types(subject)["Concat"] == 0
    assert len(subject.graph) < len(proto.graph.node)
    x = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32)
    for feeds in ({"x": x}, {"x": x, "override": np.ones(32, np.float32)}):
        assert close(run(subject, feeds, optimize=False)[0], run(proto, feeds, optimize=False)[0], 1e-5)


def test_interface_versions_and_metadata_stay(simplified: Simplified) -> None:
    proto, subject, _, _ = simplified
    after = ir.to_proto(subject)
    assert [*after.graph.input] == [*proto.graph.input]
    assert [*after.graph.output] == [*proto.graph.output]
    assert (after.ir_version, [*after.opset_import]) == (proto.ir_version, [*proto.opset_import])
    assert [*after.metadata_props] == [*proto.metadata_props]
    assert (after.producer_name, after.doc_string) == ("someone", "a model")
    named = {n.name: n for n in after.graph.node}
    assert {"first", "second", "custom", "bias"} <= set(named)
    assert [(p.key, p.value) for p in named["first"].metadata_props] == [("pkg.torch.name", "layer.0")]
    assert named["first"].doc_string == "says something"
    assert all(not p.key.startswith("pkg.onnxscript") for n in named.values() for p in n.metadata_props)


@pytest.mark.parametrize("tool", ["onnxsim", "onnxscript"])
def test_a_shape_that_an_output_leaves_open_stays_open(tool: Literal["onnxsim", "onnxscript"]) -> None:
    nodes = [
        node("Identity", ["x"], ["i"]),
        node("Relu", ["i"], ["y"]),
        node("SplitToSequence", ["y", "size"], ["parts"], axis=1),
    ]
    proto = model(nodes, {"x": ["n", 8]}, ["y"], {"size": np.array(4)})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.output.append(helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None))
    result = Simplify(tool=tool)(ir.from_proto(proto))
    assert result.modified
    assert [*ir.to_proto(result.model).graph.output] == [*proto.graph.output]


def test_large_tensors_are_the_same_objects(simplified: Simplified) -> None:
    _, subject, _, original = simplified
    stored = subject.graph.initializers
    assert stored["big"].const_value is original.graph.initializers["big"].const_value
    constant = next(n for n in original.graph if n.name == "constant")
    assert stored["large"].const_value is constant.attributes["value"].as_tensor()


def test_a_second_run_changes_nothing(simplified: Simplified) -> None:
    _, subject, result, _ = simplified
    before = ir.to_proto(subject).SerializeToString(deterministic=True)
    again = Simplify(tool=result.record["tool"])(subject)  # type: ignore[arg-type]
    assert not again.modified
    assert ir.to_proto(subject).SerializeToString(deterministic=True) == before


def test_none_does_nothing() -> None:
    subject = ir.from_proto(rich_model())
    graph = subject.graph
    result = Simplify(tool="none")(subject)
    assert not result.modified
    assert subject.graph is graph


def test_timeout_must_be_positive() -> None:
    with pytest.raises(UsageError, match="timeout_s"):
        Simplify(timeout_s=0)


BAD = {
    "segfault": "it crashed (signal 11)",
    "hang": "it took more than 1 s",
    "error": "ValueError: an honest error",
    "garbage": "what it wrote is not an ONNX model",
    "silence": "it failed without a word",
    "renames output": "the outputs are not the same in its result",
    "loses input": "the input 'override' is gone",
    "changes type": "the type of 'y' is not the same in its result",
    "raises opset": "its result needs opset 18 of ai.onnx",
    "adds operator": ("its result has an operator that the model did not: com.microsoft::Add"),
}


@pytest.fixture
def bad_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a process that misbehaves in the simplifier's place."""
    monkeypatch.setattr(simplify, "WORKER", "tests.passes.bad_worker")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return lambda behaviour: monkeypatch.setenv("BAD_WORKER", behaviour)


@pytest.mark.parametrize("behaviour", BAD)
def test_a_misbehaving_tool_is_not_believed(
    behaviour: str, bad_worker: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    bad_worker(behaviour)
    subject = ir.from_proto(rich_model())
    before = ir.to_proto(subject).SerializeToString()
    result = Simplify(timeout_s=1.0 if behaviour == "hang" else 60.0)(subject)
    assert isinstance(result, PassResult)
    assert result.notes == (
        f"onnxsim could not be used: {BAD[behaviour]}",
        f"onnxscript could not be used: {BAD[behaviour]}",
        "the model is left as it is",
    )
    assert ir.to_proto(subject).SerializeToString() == before
    assert not result.modified
    assert capfd.readouterr() == ("", "")


def test_onnxscript_steps_in_for_onnxsim(bad_worker: Callable[[str], None]) -> None:
    bad_worker("fails for onnxsim only")
    result = Simplify()(ir.from_proto(rich_model()))
    assert isinstance(result, PassResult)
    assert result.notes == ("onnxsim could not be used: ValueError: an honest error",)
    assert result.record["tool"] == "onnxscript"


def test_control_flow_goes_to_onnxscript_and_weights_back_into_subgraphs() -> None:
    rng = np.random.default_rng(2)

    def branch(name: str) -> onnx.GraphProto:
        large = numpy_helper.from_array(weight(rng, 40, 40), "w")
        nodes = [
            node("Constant", [], ["w"], value=large, name=f"{name}_w"),
            node("MatMul", ["x", "w"], ["t"], name=f"{name}_m"),
        ]
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N", 40])]
        )

    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0, name="sum"),
        node("Greater", ["s", "zero"], ["f"], name="greater"),
        node("Identity", ["f"], ["flag"], name="idle"),
        node("If", ["flag"], ["y"], name="if", then_branch=branch("a"), else_branch=branch("b")),
    ]
    proto = model(nodes, {"x": ["N", 40]}, ["y"], {"zero": np.zeros((), np.float32)})
    subject = ir.from_proto(proto)
    result = Simplify()(subject)
    assert isinstance(result, PassResult)
    assert result.notes == (
        "the model has control flow, which onnxsim would unroll; onnxscript's optimizer is used in its place",
    )
    assert set(subject.graph.initializers) <= {"zero"}
    for sign in (1.0, -1.0):
        x = {"x": (np.abs(weight(rng, 3, 40)) * sign).astype(np.float32)}
        assert close(run(subject, x, optimize=False)[0], run(proto, x, optimize=False)[0], 1e-5)


def test_functions_stay() -> None:
    rng = np.random.default_rng(3)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    body = [node("MatMul", ["u", "w"], ["v"], name="m")]
    function = helper.make_function("local", "Linear", ["u", "w"], ["v"], body, imports[:1])
    proto = model(
        [
            node("Identity", ["x"], ["i"], name="idle"),
            node("Linear", ["i", "w"], ["y"], domain="local", name="call"),
        ],
        {"x": ["N", 40]},
        ["y"],
        {"w": weight(rng, 40, 40)},
        opset_imports=imports,
        functions=[function],
    )
    subject = ir.from_proto(proto)
    kept = list(subject.functions.values())
    result = Simplify()(subject)
    assert isinstance(result, PassResult)
    assert "functions of its own" in result.notes[0]
    assert [n.op_type for n in subject.graph][-1] == "Linear"
    assert list(subject.functions.values()) == kept
    x = {"x": weight(rng, 3, 40)}
    assert close(run(subject, x, optimize=False)[0], run(proto, x, optimize=False)[0], 1e-5)


def test_a_skeleton_put_back_is_the_model_it_came_from() -> None:
    proto = rich_model(ir_version=8)
    subject = ir.from_proto(proto)
    bare = skeleton(subject)
    assert set(bare.weights) == {"big", "large", "override"}
    assert len(ir.to_proto(bare.model).SerializeToString()) < 3000
    result = ir.from_proto(ir.to_proto(bare.model))
    subject.graph = put_back(bare, result, subject.ir_version)
    x = {"x": np.random.default_rng(4).standard_normal((2, 40)).astype(np.float32)}
    assert np.array_equal(run(subject, x, optimize=False)[0], run(proto, x, optimize=False)[0])


def test_before_ir_version_4_initializers_stay_inputs() -> None:
    rng = np.random.default_rng(5)
    weights = {"w": weight(rng, 40, 40), "b": weight(rng, 40)}
    nodes = [node("MatMul", ["x", "w"], ["h"], name="m"), node("Add", ["h", "b"], ["y"], name="a")]
    proto = model(nodes, {"x": [1, 40]}, ["y"], weights, opset=8, ir_version=3, listed=["w", "b"])
    subject = ir.from_proto(proto)
    bare = skeleton(subject)
    assert [v.name for v in bare.model.graph.inputs] == ["x", "w"]
    result = ir.from_proto(ir.to_proto(bare.model))
    subject.graph = put_back(bare, result, subject.ir_version)
    assert [v.name for v in subject.graph.inputs] == ["x", "w", "b"]
    assert set(subject.graph.initializers) == {"w", "b"}


def test_external_data_is_not_looked_for_beside_the_temporary_file(tmp_path: Path) -> None:
    proto = rich_model()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    subject = ir.load(path)
    result = ir.from_proto(ir.to_proto(skeleton(subject).model))
    stored = result.graph.initializers["back"].const_value
    assert stored is not None
    assert stored.numpy().tolist() == [-1, 64]


def test_minus_one_for_a_free_dimension_is_not_calculated_with() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": [-1, 4]}, ["y"], {})
    inputs = skeleton(ir.from_proto(proto)).model.graph.inputs
    assert [d if isinstance(d, int) else None for d in inputs[0].shape or ()] == [None, 4]


def test_the_trial_sees_a_difference() -> None:
    def scaled(factor: float) -> onnx.ModelProto:
        nodes = [node("Mul", ["x", "k"], ["y"], name="mul")]
        return model(nodes, {"x": ["N", "C"]}, ["y"], {"k": np.array(factor, np.float32)})

    assert difference(scaled(1.0), scaled(1.0)) is None
    assert difference(scaled(1.0), scaled(1.001)) == (
        "the simplified model computes something else at the output 'y'"
    )


def test_onnxsim_runs_without_the_large_packages_that_it_would_import(tmp_path: Path) -> None:
    """They take four times as long as the rest of the process."""
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(rich_model(), source)
    line = [sys.executable, "-X", "importtime", "-m", simplify.WORKER, "onnxsim", str(source), str(target)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True)
    imported = {entry.rpartition("|")[2].strip() for entry in done.stderr.splitlines()}
    assert "onnxsim" in imported
    assert not {name for name in imported if name.startswith(("torch.", "sympy."))}
    assert target.is_file()
