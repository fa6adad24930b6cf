"""What models compute, in ONNX Runtime, and what they consist of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.core.layer import Array

Source = onnx.ModelProto | ir.Model | Path | bytes


def session(source: Source, *, optimize: bool = True) -> ort.InferenceSession:
    """One thread on the CPU; quantized weights count as the numbers that they stand for."""
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # Else a MatMul after a DequantizeLinear rounds its activation to 8 bits.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if isinstance(source, ir.Model):
        source = ir.to_proto(source)
    if isinstance(source, onnx.ModelProto):
        source = source.SerializeToString()
    content = str(source) if isinstance(source, Path) else source
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(source: Source, feeds: Mapping[str, Array], *, optimize: bool = True) -> list[Array]:
    """The outputs; without `optimize`, of the graph as it is."""
    return [np.asarray(out) for out in session(source, optimize=optimize).run(None, dict(feeds))]


def values(model: ir.Model, names: Sequence[str], feeds: Sequence[Mapping[str, Array]]) -> list[Array]:
    """What the model computes inside for the feeds, one batch."""
    feed = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    observer = open_observer(model, names, threads=1)
    found = dict(zip(observer.names, observer.run(feed), strict=True))
    return [found[name] for name in names]


def close(actual: Array, expected: Array, tolerance: float) -> bool:
    """Whether the largest difference is at most `tolerance` of the largest number."""
    scale = float(np.abs(expected).max(initial=1e-6))
    return actual.shape == expected.shape and bool(
        np.abs(actual - expected).max(initial=0) <= tolerance * scale
    )


def op_types(subject: ir.Model) -> Counter[str]:
    """How many nodes of each type the main graph has."""
    return Counter(node.op_type for node in subject.graph)
