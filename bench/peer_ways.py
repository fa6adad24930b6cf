"""Ways to compress an ONNX model, each as somebody would do it who has the file and some inputs.

    python -m bench.peer_ways WAY SOURCE TARGET CALIB.npz FACTS.json

What ONNX Runtime's own tools do, the usual recipes of decomposition, and onnxdecomp. One way runs in one
process, so that its time and memory can be told.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx

from bench import spatial_greedy, straightforward
from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.read import read_feeds
from onnxdecomp.evaluate.preflight import inputs
from onnxdecomp.quantization.int8 import Reader

Way: TypeAlias = Callable[[Path, Path, Path], dict[str, Any]]
"""Compresses a file into another with the inputs in a third; returns facts about it."""

SAMPLES = 256
"""Calibration inputs of static quantization: as many as onnxdecomp uses."""

NARROW = 16
"""The usual recipes leave layers alone that have fewer inputs or outputs."""


class NotForThisError(Exception):
    """A way does not apply to a model."""


def static_int8(source: Path, target: Path, calib: Path) -> dict[str, Any]:
    """ONNX Runtime's static quantization of the model that its own preprocessing made."""
    from onnxruntime.quantization import QuantType, quantize_static

    def quantize(ready: Path) -> None:
        quantize_static(
            str(ready),
            str(target),
            Reader(_feeds(source, calib).first(SAMPLES)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )

    return _quantized(source, quantize)


def dynamic_int8(source: Path, target: Path, calib: Path) -> dict[str, Any]:
    """Weights in int8, the ranges of activations found anew in every run."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _quantized(
        source, lambda ready: quantize_dynamic(str(ready), str(target), weight_type=QuantType.QUInt8)
    )


def half(source: Path, target: Path, calib: Path) -> dict[str, Any]:
    """float16 by ONNX Runtime's converter, with float32 inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(_simplified(source), keep_io_types=True), target)
    return {}


def tucker_third(source: Path, target: Path, calib: Path) -> dict[str, Any]:
    """Tucker-2 by TensorLy, ranks a third of the channels."""
    return _recipe(source, target, lambda matrix: round(min(matrix.shape) / 3))


def tucker_evbmf(source: Path, target: Path, calib: Path) -> dict[str, Any]:
    """Tucker-2 by TensorLy, ranks by EVBMF of the unfoldings (Kim et al. 2016)."""
    from scipy.linalg import svdvals

    from onnxdecomp.ranks.evbmf import evbmf

    return _recipe(source, target, lambda matrix: evbmf(svdvals(matrix), *matrix.shape))


def spatial_svd(source: Path, target: Path, calib: Path) -> dict[str, Any]:
    """Spatial SVD to half of the MACs, greedy ratios as AIMET finds them."""
    feeds = list(_feeds(source, calib))
    made, facts = spatial_greedy.compress(_simplified(source), feeds, ratio=0.5)
    if made is None:
        raise NotForThisError("it has no convolution that this way takes")
    onnx.save(made, target)
    return facts


def ours(source: Path, target: Path, calib: Path) -> dict[str, Any]:
    """onnxdecomp as it is: the fastest within an output error of 0.05."""
    return _ours(source, target, calib, "none")


def ours_int8(source: Path, target: Path, calib: Path) -> dict[str, Any]:
    """The same with --quantize int8."""
    return _ours(source, target, calib, "int8")


WAYS: Mapping[str, Way] = {
    "ONNX Runtime static int8": static_int8,
    "ONNX Runtime dynamic int8": dynamic_int8,
    "ONNX Runtime fp16": half,
    "Tucker-2, EVBMF ranks": tucker_evbmf,
    "Tucker-2, a third": tucker_third,
    "spatial SVD, greedy": spatial_svd,
    "onnxdecomp": ours,
    "onnxdecomp, then int8": ours_int8,
}


def main() -> None:
    """Run one way; what it fails with becomes a fact."""
    way, source, target, calib, facts = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    try:
        found = WAYS[way](Path(source), Path(target), Path(calib))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
        session.run(None, _feeds(Path(source), Path(calib))[0])
    except NotForThisError as reason:
        found = {"not_for_this": str(reason)}
    except Exception as error:  # whatever a tool raises is its result
        said = " ".join(str(error).replace(target, Path(target).name).split())
        found = {"failed": said[:300] or type(error).__name__}
    Path(facts).write_text(json.dumps(found))


def _ours(source: Path, target: Path, calib: Path, quantize: Literal["none", "int8"]) -> dict[str, Any]:
    import onnxdecomp

    # Without the method fewer bits would be all that is asked for.
    done = onnxdecomp.compress(
        source, target, calib=calib, quantize=quantize, method="auto", threads=1, samples=64, overwrite=True
    )
    totals = done.record["totals"]["macs"]
    return {
        # Of quantized layers only the plan knows; where it knows none, the file is asked.
        **({"macs": totals["after"]} if totals["before"] else {}),
        "decomposed": len(done.plan.decomposed),
        "notes": list(done.notes),
        "quantize": done.record["passes"].get("quantize"),
    }


def _recipe(source: Path, target: Path, rank: Callable[[Array], int]) -> dict[str, Any]:
    """Tucker-2 of convolutions and the SVD of matrices, where a chain is smaller than its layer."""
    model = _simplified(source)
    ranks = dict(_ranks(model, rank))
    if not ranks:
        raise NotForThisError("it has no layer that this way makes smaller")
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.onnx"
        onnx.save(model, start)
        straightforward.compress(start, target, ranks)
    return {"decomposed": len(ranks)}


def _ranks(model: onnx.ModelProto, rank: Callable[[Array], int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for node, weight in straightforward.layers(model):
        outputs, ins = weight.shape[:2] if node.op_type == "Conv" else weight.shape
        if min(outputs, ins) < NARROW:
            continue
        if weight.ndim == 4 and weight.shape[2:] != (1, 1):
            last = max(1, rank(weight.reshape(outputs, -1)))
            first = max(1, rank(weight.swapaxes(0, 1).reshape(ins, -1)))
            last, first = min(last, outputs), min(first, ins)
            found: tuple[int, ...] = (last, first)
            size = outputs * last + ins * first + last * first * weight[0, 0].size
        else:
            matrix = weight.reshape(outputs, ins)
            found = (max(1, rank(matrix)),)
            size = found[0] * (outputs + ins)
        if size < weight.size:
            yield node.name, found


def _simplified(source: Path) -> onnx.ModelProto:
    """What onnxsim makes of the file, with a name for every node."""
    import onnxsim

    made, _ = onnxsim.simplify(onnx.shape_inference.infer_shapes(onnx.load(source)), check_n=0)
    for index, node in enumerate(made.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    result: onnx.ModelProto = made
    return result


def _quantized(source: Path, quantize: Callable[[Path], None]) -> dict[str, Any]:
    """Quantize what ONNX Runtime's preprocessing makes of the model; where that fails, what onnxsim does."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            quantize(_preprocessed(source, Path(folder)))
        except Exception as error:
            simplified = Path(folder) / "simplified.onnx"
            onnx.save(_raised(_simplified(source)), simplified)
            quantize(simplified)
            return {"notes": [f"of the model simplified by onnxsim, for otherwise it fails: {error}"]}
    return {}


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at opset 13 at least: scales for each channel need it."""
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return onnx.version_converter.convert_version(model, 13) if opset < 13 else model


def _preprocessed(source: Path, folder: Path) -> Path:
    """As the quantization guide asks for, the opset raised before."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    raised = folder / "raised.onnx"
    onnx.save(_raised(onnx.load(source)), raised)
    ready = folder / "ready.onnx"
    try:
        quant_pre_process(str(raised), str(ready))
    except Exception:  # symbolic shape inference gives up on some models, which the guide foresees
        quant_pre_process(str(raised), str(ready), skip_symbolic_shape=True)
    return ready


def _feeds(source: Path, calib: Path) -> Feeds:
    return read_feeds(calib, inputs(source))


if __name__ == "__main__":
    main()
