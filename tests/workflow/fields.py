"""A model in which every field of the ONNX format that may hold something does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.core.layer import Array

FLOAT = TensorProto.FLOAT


def whole(*, control_flow: bool = True, opset: int = 20) -> onnx.ModelProto:
    """x -> Conv "conv" -> c (-> If -> h -> a function's call -> f) -> Conv "last" -> y -> Relu -> z.

    Everything that has a name has a doc string and metadata that tell it.
    """
    then, other = (
        helper.make_graph(
            [helper.make_node(kind, ["c"], [kind], name=f"in {kind}", doc_string=f"doc of in {kind}")],
            kind,
            [],
            [_value(kind, None)],
            doc_string=f"doc of {kind}",
        )
        for kind in ("Relu", "Neg")
    )
    middle = [
        helper.make_node("If", ["flag"], ["h"], name="choose", then_branch=then, else_branch=other),
        helper.make_node("Block", ["h"], ["f"], name="call", domain="local", overload="v1"),
    ]
    last = "f" if control_flow else "c"
    nodes = [
        helper.make_node("Identity", ["x"], ["copy"], name="idle"),
        helper.make_node("Conv", ["copy", "w", "b"], ["c"], name="conv", pads=[1] * 4),
        *(middle if control_flow else ()),
        helper.make_node("Conv", [last, "w2"], ["y"], name="last", pads=[1] * 4),
        helper.make_node("Relu", ["y"], ["z"], name="end"),
    ]
    for node in nodes:
        node.doc_string = f"doc of {node.name}"
        for attr in node.attribute:
            attr.doc_string = f"doc of {node.name}'s {attr.name}"
    sizes = ["N", 16, 6, 6]
    inputs = [_value("x", ["N", 16, 6, 6])]
    inputs += [_value("flag", [], TensorProto.BOOL)] if control_flow else []
    graph = helper.make_graph(
        nodes,
        "graph",
        inputs,
        [_value("y", sizes), _value("z", sizes)],
        [_stored("w", normal(16, 16, 3, 3)), _stored("b", normal(16)), _stored("w2", normal(16, 16, 3, 3))],
        doc_string="doc of graph",
        value_info=[_value("c", sizes), *([_value("h", sizes)] if control_flow else [])],
    )
    for name in ("x", "c", "y", "w2"):
        entry = graph.quantization_annotation.add(tensor_name=name)
        entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=f"scale of {name}")
    inner = [helper.make_node("Relu", ["a"], ["r"], name="inner", doc_string="doc of inner")]
    inner.append(helper.make_node("Neg", ["r"], ["o"], name="inner2"))
    imports = [helper.make_opsetid(domain, n) for domain, n in (("com.microsoft", 1), ("", opset))]
    body = helper.make_function(
        "local", "Block", ["a"], ["o"], inner, imports[1:], doc_string="doc of Block", overload="v1"
    )
    model = helper.make_model(
        graph,
        opset_imports=[*([helper.make_opsetid("local", 1)] if control_flow else []), *imports],
        functions=[body] if control_flow else [],
        ir_version=10,
        producer_name="producer",
        producer_version="1.2",
        domain="org.example",
        model_version=7,
        doc_string="doc of model",
    )
    for told in (*nodes, then, other, graph, body, model):
        _metadata(told, getattr(told, "name", "model"))
    training = model.training_info.add()
    training.initialization.CopyFrom(helper.make_graph([], "begin", [], []))
    training.algorithm.CopyFrom(helper.make_graph([], "step", [], []))
    return model


def normal(*shape: int) -> Array:
    return (np.random.default_rng(0).standard_normal(shape) / 12).astype(np.float32)


def said(model: onnx.ModelProto) -> dict[str, object]:
    """Every field that is set, under a path made of fields' and things' names, except tensors' numbers."""
    return dict(_said(model, ""))


def _said(message: Any, path: str) -> Iterator[tuple[str, object]]:
    for field, value in message.ListFields():
        if field.name in ("raw_data", "float_data"):
            continue
        here = f"{path}/{field.name}"
        items: Any = value if field.is_repeated else [value]
        for position, item in enumerate(items):
            if hasattr(item, "ListFields"):
                yield from _said(item, f"{here}[{_title(item, position)}]")
            else:
                yield f"{here}[{position}]", item


def _title(item: Any, position: int) -> object:
    for key in ("name", "tensor_name", "key", "domain"):
        if key in item.DESCRIPTOR.fields_by_name and getattr(item, key):
            return getattr(item, key)
    return position


def _value(name: str, shape: list[Any] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    made = helper.make_tensor_value_info(name, kind, shape, doc_string=f"doc of {name}")
    made.type.denotation = "TENSOR"
    for position, dim in enumerate(made.type.tensor_type.shape.dim):
        dim.denotation = f"AXIS_{position}"
    _metadata(made, name)
    return made


def _stored(name: str, array: Array) -> TensorProto:
    made = numpy_helper.from_array(array, name)
    made.doc_string = f"doc of {name}"
    _metadata(made, name)
    return made


def _metadata(told: Any, name: str) -> None:
    told.metadata_props.add(key="about", value=f"about {name}")
