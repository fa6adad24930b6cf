"""8 bits for weights and activations, by ONNX Runtime's static quantizer, as QDQ nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxdecomp.calibration.reachability import valueless
from onnxdecomp.graph.traversal import operands
from onnxdecomp.layers.int8_weights import OLDEST_OPSET
from onnxdecomp.layers.registry import adapter_of, per_channel
from onnxdecomp.quantization.files import converted, load_tools, silent
from onnxdecomp.quantization.neutral_names import Neutral
from onnxdecomp.quantization.prepare import choose_sizes, declare_types, raised, require_float
from onnxdecomp.quantization.scheme import Scheme
from onnxdecomp.quantization.unshare_biases import own_biases

if TYPE_CHECKING:
    import onnx

    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.runtime.session import Feed

_STACKED = 1 << 15
"""Numbers of inputs that run together: all activations of a run are in memory until its end."""

_LARGE = 1_800_000_000
"""Bytes of a file from which the quantizer is asked for external data; protobuf ends at 2 GiB."""


def int8(
    model: ir.Model, feeds: Feeds, scheme: Scheme, *, samples: int = 256, ranges: Path | None = None
) -> ir.Model:
    """The model with weights and activations in 8 bits; it stays as it is.

    The ranges of the activations are the least and the largest number seen on the calibration inputs.
    Nodes in subgraphs and functions stay in floating point, and so do nodes that read an initializer which
    a caller may override, or a weight that a subgraph reads too, and those of which no input shows a range.

    Args:
        model: In float32; its opset is raised to 13 where it is older.
        feeds: Calibration inputs.
        scheme: How.
        samples: At most so many of the inputs are used.
        ranges: A file for the ranges. Where it exists they are read from it, else written: it serves for the
            same model and inputs with a scheme that quantizes the same operators, or fewer.

    Raises:
        ModelError: The model is quantized already, its opset cannot be raised, the quantizer fails, or
            what it wrote does not run.
    """
    load_tools()
    from onnxruntime.quantization import QuantFormat, quantize_static

    model = prepared(model)
    keep = {*scheme.keep, *valueless(model, feeds.first(samples))}

    def convert(given: Neutral, source: Path, target: Path) -> None:
        reader = Reader(feeds.first(samples), given.inputs)
        quantize_static(
            str(source),
            str(target),
            reader,
            quant_format=QuantFormat.QDQ,
            use_external_data_format=_size(source) > _LARGE,
            calibration_cache_path=ranges,
            **_arguments(given.model, scheme, given.renamed(scheme.exclude, keep)),
        )

    return converted(model, "ONNX Runtime's quantizer", convert)


def rough(model: ir.Model, scheme: Scheme) -> ir.Model:
    """The same nodes without calibration: every range is [-1, 1]. It takes the same time to run.

    Raises:
        ModelError: As `int8`.
    """
    load_tools()
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    model = prepared(model)

    def convert(given: Neutral, source: Path, target: Path) -> None:
        import onnx

        own = replace(scheme, exclude=tuple(given.renamed(scheme.exclude, scheme.keep)), keep=frozenset())
        made = rough_proto(load_model_with_shape_infer(source), given.model, own)
        onnx.save(made, target, save_as_external_data=_size(source) > _LARGE)

    return converted(model, "ONNX Runtime's quantizer", convert)


def rough_proto(proto: onnx.ModelProto, model: ir.Model, scheme: Scheme) -> onnx.ModelProto:
    """`rough` for a serialised model with the types of all of its values; `model` is the same one."""
    load_tools()
    import numpy as np
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    add_infer_metadata(proto)
    graph = proto.graph
    ends = (np.float32(-1), np.float32(1))
    ranges = {value.name: ends for value in (*graph.value_info, *graph.input, *graph.output)}
    arguments = _arguments(model, scheme, scheme.exclude)
    with silent():
        quantizer = QDQQuantizer(
            proto,
            arguments["per_channel"],
            arguments["reduce_range"],
            arguments["weight_type"],
            arguments["activation_type"],
            TensorsData(CalibrationMethod.MinMax, ranges),
            [],
            arguments["nodes_to_exclude"],
            arguments["op_types_to_quantize"],
            arguments["extra_options"],
        )
        made: onnx.ModelProto = quantizer.quantize_model()
    return made


def prepared(model: ir.Model) -> ir.Model:
    """A copy that the quantizer takes.

    Raises:
        ModelError: There is none, or it has fewer bits already.
    """
    require_float(model, "int8")
    copy = model.clone()
    if copy.opset_imports.get("", 1) < OLDEST_OPSET:
        copy = raised(copy, OLDEST_OPSET)
    own_biases(copy)
    choose_sizes(copy)
    declare_types(copy)
    return copy


class Reader:
    """Calibration inputs as the quantizer asks for them, small ones stacked where the batch size is free."""

    def __init__(self, feeds: Feeds, names: Mapping[str, str] | None = None) -> None:
        """`names` are those that inputs have elsewhere, by their own."""
        self._batches = feeds.batches(stacked(feeds))
        self._names = names or {}

    def get_next(self) -> Feed | None:
        feed = next(self._batches, None)
        return None if feed is None else {self._names.get(name, name): array for name, array in feed.items()}


def stacked(feeds: Feeds) -> int:
    """How many small inputs run together."""
    return max(1, _STACKED // max(1, sum(array.size for array in feeds.largest().values())))


def operators() -> frozenset[str]:
    """The types of operators that the quantizer takes."""
    load_tools()
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return frozenset((*QDQRegistry, *QLinearOpsRegistry))


def _arguments(model: ir.Model, scheme: Scheme, exclude: Iterable[str]) -> dict[str, Any]:
    """What the quantizer is told; `exclude` are names of nodes in this model."""
    from onnxruntime.quantization import QuantType

    return {
        "op_types_to_quantize": sorted(operators() - scheme.leave),
        "per_channel": scheme.per_channel,
        "reduce_range": scheme.reduce_range,
        "activation_type": QuantType.QInt8 if scheme.signed else QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "nodes_to_exclude": sorted({*exclude, *_bound(model)}),
        "extra_options": {
            "ActivationSymmetric": scheme.signed,
            "TensorQuantOverrides": {name: [{"quant_type": QuantType.QInt8}] for name in _stacks(model)},
        },
    }


def _stacks(model: ir.Model) -> set[str]:
    """Weights that are several matrices: ONNX Runtime's kernel has no scale for each of their columns."""
    read = (node.inputs[1] for node in model.graph if _is_product(node))
    known = model.graph.initializers
    return {str(v.name) for v in read if v is not None and v.name in known and len(v.shape or ()) > 2}


def _is_product(node: ir.Node) -> bool:
    adapter = adapter_of(node)
    return adapter is not None and node.op_type in adapter.per_channel and adapter.feature_axis == -1


def _bound(model: ir.Model) -> set[str]:
    """Nodes that must stay as they are.

    Callers may override their initializers, subgraphs read them, or they are outputs, by way of an Identity
    here. What a Relu or a Clip cuts off is kept where others see it: the quantizer counts only the main
    graph's nodes when it gives the input of these the range of their output. And a layer's weight has a scale
    for every channel, which the quantizer would give to what a Transpose or a Gather makes of it, too.
    """
    graph = model.graph
    kept = {value for value in graph.inputs if value.name in graph.initializers}
    seen = set(graph.outputs)
    for node in graph:
        captured = {*operands(node)} - {*node.inputs}
        kept |= captured
        seen |= captured
        if node.op_type == "Identity" and node.outputs[0].is_graph_output():
            kept |= {*operands(node)}
    constants = kept & set(graph.initializers.values())
    layers = per_channel()
    weights = {value for node in graph if node.op_type in layers for value in node.inputs[:2]}
    weights &= set(graph.initializers.values())
    return {
        str(node.name)
        for node in graph
        if constants & {*node.inputs}
        or (node.op_type in ("Relu", "Clip") and node.inputs[0] in seen)
        or (node.op_type not in layers and weights & {*node.inputs})
    }


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
