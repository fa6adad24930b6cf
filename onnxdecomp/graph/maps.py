"""Outputs that are maps, as classifiers of scikit-learn have them: onnx_ir knows no such type.

A model is held without the types of these outputs, which ONNX Runtime infers by itself, and gets them back
wherever it is written.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

_META = "onnxdecomp.maps"


def take_out(proto: onnx.ModelProto) -> dict[str, bytes]:
    """Take the types that hold maps out of the main graph, in place; they, serialized, by output."""
    taken = {}
    for value in proto.graph.output:
        if _holds_map(value.type):
            taken[value.name] = value.type.SerializeToString(deterministic=True)
            value.ClearField("type")
    known = [value for value in proto.graph.value_info if not _holds_map(value.type)]
    if len(known) < len(proto.graph.value_info):
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(known)
    return taken


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """A model of one that is serialised, which stays as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    types = take_out(copy)
    model = ir.from_proto(copy)
    keep(model, types)
    return model


def keep(model: ir.Model, types: Mapping[str, bytes]) -> None:
    """Let the model remember the types that were taken out."""
    if types:
        model.graph.meta[_META] = dict(types)


def kept(model: ir.Model) -> dict[str, bytes]:
    """What the model remembers."""
    found = model.graph.meta.get(_META)
    return dict(found) if isinstance(found, dict) else {}


def put_back(proto: onnx.ModelProto, types: Mapping[str, bytes]) -> None:
    """Give the outputs of a serialised model their types again, in place."""
    for value in proto.graph.output:
        if value.name in types and not value.HasField("type"):
            value.type.ParseFromString(types[value.name])


def _holds_map(kind: onnx.TypeProto) -> bool:
    match kind.WhichOneof("value"):
        case "map_type":
            return True
        case "sequence_type":
            return _holds_map(kind.sequence_type.elem_type)
        case "optional_type":
            return _holds_map(kind.optional_type.elem_type)
    return False
