"""What compress makes of every model of the corpus goes through ONNX Runtime's quantizer as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdecomp.data.random_inputs import random_feeds, trial_of
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.load import load
from onnxdecomp.quantization.int8 import Reader, int8
from onnxdecomp.quantization.scheme import scheme_for
from onnxdecomp.runtime.session import inputs_of, open_session, run
from onnxdecomp.workflow import compress
from tests.corpus.case import REST, Case, each

REFUSED = {
    "resnet20_qdq_int8": "quantized already",
    "squeezenet1.1_qdq_u8s8": "quantized already",
    "resnet44_fp16": "float16 weights",
    "winml_SqueezeNet_fp16": "float16 weights",
    "winml_candy": "opset 13",  # opset 7, with operators that ONNX never had in a release
}
"""Not float32, or of an opset that the quantizer does not take and ONNX's converter cannot raise."""

OVERRIDABLE = ("nanodet_m",)
"""Its weights are inputs that callers may override; the quantizer alone takes them for constants."""

RANKS: dict[str, Any] = {
    "method": "tucker,svd",
    "rank": "0.3",
    "verify": False,
    "bench": False,
    "config": REST,
}


def feeds_for(path: Any) -> Any:
    """Two random inputs that the model runs on."""
    session = open_session(path)
    found = random_feeds(
        inputs_of(session), trial_of(lambda feed: run(session, feed)), per_binding=1, count=2
    )
    assert not isinstance(found, str), found
    return found


KINDS = (
    *("silero_vad", "gtcrn", "winml_mnist", "winml_candy", "basic_pitch_nmp", "dtln_model_1"),
    *("magika_standard_v3_3", "resnet20_qdq_int8", "meshnet_model20chan3cls", "ultraface_version-RFB-320"),
)
"""Models that between them hold the kinds of nodes that a quantizer meets."""


@each(usual=KINDS)
def test_what_is_written_can_be_quantized(case: Case) -> None:
    from onnxruntime.quantization import QuantType, quantize_static

    case.folder.mkdir(exist_ok=True)
    written, quantized = case.folder / "small.onnx", case.folder / "int8.onnx"
    compress.compress(case.prepared, written, **RANKS)
    feeds, model = feeds_for(written), load(written)
    if case.name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[case.name]):
            int8(model, feeds, scheme_for("cpu"))
        return
    made = int8(model, feeds, scheme_for("cpu"))
    outputs = run(open_session(ir.to_proto(made).SerializeToString()), feeds[0])
    assert all(np.isfinite(y).all() for y in outputs if y.dtype.kind == "f")
    if case.name in OVERRIDABLE:
        return
    quantize_static(
        str(written),
        str(quantized),
        Reader(feeds),
        per_channel=model.opset_imports[""] >= 13,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    assert run(open_session(quantized), feeds[0])
