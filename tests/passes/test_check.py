"""check and annotate: a broken model does not pass, a valid one passes unchanged, metadata is stable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnxdecomp_passes.annotate import Annotate
from onnxdecomp_passes.check import Check

import onnxdecomp
from onnxdecomp.errors import ModelError
from onnxdecomp.pipeline import pipeline
from onnxdecomp.pipeline.base import Pass, PassContext, PassResult
from tests.builders.graphs import model

node = helper.make_node


@dataclass(frozen=True)
class Damage(Pass):
    """Do to a model what no pass may."""

    name: ClassVar[str] = "damage"
    summary: ClassVar[str] = "Damage the model"

    how: Callable[[ir.Model], None]

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        self.how(model)
        return PassResult(model, modified=True)


def two_matmuls() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((40, 40)).astype(np.float32) for name in ("v", "w")}
    nodes = [
        node("MatMul", ["x", "v"], ["h"], name="first"),
        node("MatMul", ["h", "w"], ["y"], name="second"),
    ]
    return model(nodes, {"x": ["N", 40]}, ["y"], weights)


def test_a_valid_model_passes_unchanged(capfd: pytest.CaptureFixture[str]) -> None:
    subject = ir.from_proto(two_matmuls())
    before = ir.to_proto(subject).SerializeToString()
    result = Check()(subject)
    assert isinstance(result, PassResult)
    assert (result.modified, result.notes) == (False, ())
    assert ir.to_proto(subject).SerializeToString() == before
    assert capfd.readouterr() == ("", "")


def same_node_names(subject: ir.Model) -> None:
    subject.graph[1].name = "first"


def same_value_names(subject: ir.Model) -> None:
    subject.graph[1].outputs[0].name = "h"


def wrong_order(subject: ir.Model) -> None:
    first, second = subject.graph
    subject.graph.remove(first)
    subject.graph.insert_after(second, first)


def dangling_value(subject: ir.Model) -> None:
    subject.graph[1].replace_input_with(1, ir.Value(name="nowhere"))


def unknown_attribute(subject: ir.Model) -> None:
    subject.graph[1].attributes["nonsense"] = ir.AttrInt64("nonsense", 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (same_node_names, "2 nodes are named 'first'"),
        (same_value_names, "2 values of one graph are named 'h'"),
        (wrong_order, "node 'second' reads 'h', which nothing before it defines"),
        (dangling_value, "node 'second' reads 'nowhere', which nothing before it defines"),
        (unknown_attribute, "nonsense"),
    ],
)
def test_a_broken_model_is_refused(damage: Callable[[ir.Model], None], message: str) -> None:
    subject = ir.from_proto(two_matmuls())
    damage(subject)
    with pytest.raises(ModelError, match=f"{message}.*this is a bug in onnxdecomp, please report"):
        Check()(subject)


def rename_input(subject: ir.Model) -> None:
    subject.graph.inputs[0].name = "other"


def rename_output(subject: ir.Model) -> None:
    subject.graph.outputs[0].name = "other"


def raise_opset(subject: ir.Model) -> None:
    subject.opset_imports[""] = 18


def raise_ir_version(subject: ir.Model) -> None:
    subject.ir_version = 9


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (rename_input, "inputs"),
        (rename_output, "outputs"),
        (raise_opset, "opsets"),
        (raise_ir_version, "IR version"),
    ],
)
def test_what_came_in_must_go_out(damage: Callable[[ir.Model], None], what: str) -> None:
    subject = ir.from_proto(two_matmuls())
    with pytest.raises(ModelError, match=f"its {what} were .* and are"):
        pipeline.run(subject, [Damage(damage), Check()])


def test_names_that_were_shared_before_may_be() -> None:
    subject = ir.from_proto(two_matmuls())
    same_node_names(subject)
    assert pipeline.run(subject, [Check()]).notes == ()


def test_operators_of_other_domains_pass() -> None:
    nodes = [node("Gelu", ["x"], ["h"], domain="com.microsoft"), node("Own", ["h"], ["y"], domain="me")]
    imports = [helper.make_opsetid(d, v) for d, v in (("", 17), ("com.microsoft", 1), ("me", 3))]
    proto = model(nodes, {"x": [2, 2]}, ["y"], {}, opset_imports=imports)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2]))
    assert not Check()(ir.from_proto(proto)).modified


def test_experimental_operators_pass_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [node("ImageScaler", ["x"], ["y"], bias=[0.0], scale=2.0, name="scaler")]
    proto = model(nodes, {"x": [1, 1, 2, 2]}, ["y"], {}, opset=7, ir_version=3)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2]))
    Check()(ir.from_proto(proto))
    assert capfd.readouterr() == ("", "")


def test_what_onnxruntime_loads_passes_with_a_note() -> None:
    proto = two_matmuls()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    result = Check()(ir.from_proto(proto))
    assert isinstance(result, PassResult)
    assert "onnx's checker objects" in result.notes[0]


def test_annotations_are_written_once() -> None:
    subject = ir.from_proto(two_matmuls())
    for one, method in zip(subject.graph, ("tucker", "svd"), strict=True):
        one.metadata_props["pkg.onnxdecomp.method"] = method
    producer = subject.producer_name
    assert Annotate(plan_sha256="ab" * 32)(subject).modified
    assert dict(subject.metadata_props) == {
        "pkg.onnxdecomp.version": onnxdecomp.__version__,
        "pkg.onnxdecomp.methods": "svd,tucker",
        "pkg.onnxdecomp.plan_sha256": "ab" * 32,
    }
    assert subject.producer_name == producer
    assert not Annotate(plan_sha256="ab" * 32)(subject).modified
