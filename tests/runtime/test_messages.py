"""ONNX Runtime's messages on one line."""

from __future__ import annotations

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
