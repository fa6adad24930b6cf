"""8 bits for weights and activations, by ONNX Runtime's static quantizer, as QDQ nodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.biases import own_biases
from onnxdecomp.graph.walk import operands, places
from onnxdecomp.quantization.files import converted, load_tools, silent
from onnxdecomp.quantization.prepare import choose_sizes, raised
from onnxdecomp.quantization.scheme import Scheme
from onnxdecomp.sites.quantized import OLDEST_OPSET

if TYPE_CHECKING:
    import onnx

    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.runtime.session import Feed

_STACKED = 1 << 15
"""Numbers of inputs that run together: all activations of a run are in memory until its end."""

_LARGE = 1_800_000_000
"""Bytes of a file from which the quantizer is asked for external data; protobuf ends at 2 GiB."""


def int8(model: ir.Model, feeds: Feeds, scheme: Scheme, *, samples: int = 256) -> ir.Model:
    """The model with weights and activations in 8 bits; it stays as it is.

    The ranges of the activations are the least and the largest number seen on the calibration inputs.
    Nodes in subgraphs and functions stay in floating point, and so do nodes that read an initializer which
    a caller may override, or a weight that a subgraph reads too.

    Args:
        model: In float32; its opset is raised to 13 where it is older.
        feeds: Calibration inputs.
        scheme: How.
        samples: At most so many of the inputs are used.

    Raises:
        ModelError: The model is quantized already, its opset cannot be raised, the quantizer fails, or
            what it wrote does not run.
    """
    load_tools()
    from onnxruntime.quantization import QuantFormat, quantize_static

    model = prepared(model)
    reader = Reader(feeds.first(samples))

    def convert(source: Path, target: Path) -> None:
        quantize_static(
            str(source),
            str(target),
            reader,
            quant_format=QuantFormat.QDQ,
            use_external_data_format=_size(source) > _LARGE,
            **_arguments(model, scheme),
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

    def convert(source: Path, target: Path) -> None:
        import onnx

        made = rough_proto(load_model_with_shape_infer(source), model, scheme)
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
    arguments = _arguments(model, scheme)
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
        ModelError: There is none.
    """
    copy = model.clone()
    nodes = [node for place in places(copy) for node in place.graph]
    if any(node.op_type in ("QuantizeLinear", "QLinearConv", "QLinearMatMul") for node in nodes):
        raise ModelError(
            "the model is quantized already: --quantize int8 is for floating-point models, --requantize "
            "stores the factors of quantized weights as int8"
        )
    if any(v.dtype == ir.DataType.FLOAT16 for v in copy.graph.initializers.values()):
        raise ModelError("the model has float16 weights: --quantize int8 is for float32 models")
    if copy.opset_imports.get("", 1) < OLDEST_OPSET:
        copy = raised(copy, OLDEST_OPSET)
    own_biases(copy)
    choose_sizes(copy)
    return copy


class Reader:
    """Calibration inputs as the quantizer asks for them, small ones stacked where the batch size is free."""

    def __init__(self, feeds: Feeds) -> None:
        numbers = sum(array.size for array in feeds[0].values())
        self._batches = feeds.batches(max(1, _STACKED // max(1, numbers)))

    def get_next(self) -> Feed | None:
        return next(self._batches, None)


def operators() -> frozenset[str]:
    """The types of operators that the quantizer takes."""
    load_tools()
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return frozenset((*QDQRegistry, *QLinearOpsRegistry))


def _arguments(model: ir.Model, scheme: Scheme) -> dict[str, Any]:
    """What the quantizer is told."""
    from onnxruntime.quantization import QuantType

    return {
        "op_types_to_quantize": sorted(operators() - scheme.leave),
        "per_channel": scheme.per_channel,
        "reduce_range": scheme.reduce_range,
        "activation_type": QuantType.QInt8 if scheme.signed else QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "nodes_to_exclude": sorted({*scheme.exclude, *_bound(model)}),
        "extra_options": {"ActivationSymmetric": scheme.signed},
    }


def _bound(model: ir.Model) -> set[str]:
    """Nodes whose initializers must stay as they are: callers may override them, or subgraphs read them."""
    graph = model.graph
    kept = {value for value in graph.inputs if value.name in graph.initializers}
    for node in graph:
        kept |= {*operands(node)} - {*node.inputs}
    constants = set(graph.initializers.values())
    return {str(node.name) for node in graph if kept & constants & {*node.inputs}}


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
