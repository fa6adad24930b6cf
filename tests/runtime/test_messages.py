"""ONNX Runtime's messages on one line."""

from __future__ import annotations

import pytest

from onnxdecomp.runtime.messages import one_line


def test_codes_and_places_in_the_source_are_left_out() -> None:
    place = (
        "/onnxruntime_src/onnxruntime/python/state.cc:729 void onnxruntime::python::Register("
        "Options&, const Provider&) Please install\nTensorRT libraries (10 or later)."
    )
    assert one_line(RuntimeError(place)) == "Please install TensorRT libraries (10 or later)."
    coded = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : unexpected rank (3) of x"
    assert one_line(RuntimeError(coded)) == "unexpected rank (3) of x"


def test_long_messages_are_bounded_and_empty_ones_named() -> None:
    assert len(one_line(RuntimeError("x" * 1000))) == 300
    assert one_line(RuntimeError("")) == "RuntimeError"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "/onnxruntime_src/python/onnxruntime_pybind_state.cc:729 void onnxruntime::python::"
            "RegisterPlugins(PySessionOptions&, const ProviderOptions&) Please install TensorRT.",
            "Please install TensorRT.",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/core/session/provider_bridge_ort.cc:2195 "
            "onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : "
            "Failed to load library libonnxruntime_providers_tensorrt.so",
            "Failed to load library libonnxruntime_providers_tensorrt.so",
        ),
        (
            "/src/cuda/cuda_call.cc:129 std::conditional_t<THRW, void, Status> ort::CudaCall(ERRTYPE, "
            "const char*, int) [with ERRTYPE = cudaError; bool THRW = true] CUDA failure 100: no device "
            "; GPU=0 ; hostname=h ; file=/src/cuda/provider.cc ; line=282 ; expr=cudaSetDevice(id);",
            "CUDA failure 100: no device ; GPU=0;",
        ),
    ],
)
def test_no_place_in_the_source_is_left(message: str, expected: str) -> None:
    assert one_line(RuntimeError(message)) == expected
