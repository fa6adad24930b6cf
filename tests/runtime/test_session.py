from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from onnxdecomp.errors import ModelError, ProviderError, UsageError
from onnxdecomp.runtime import provider_start, providers
from onnxdecomp.runtime.session import (
    TensorSpec,
    inputs_of,
    nodes_per_provider,
    open_session,
    outputs_of,
    placements,
    run,
)
from tests.builders.graphs import model, saved, value
from tests.builders.models import scores, stateful

EYE = scores(np.eye(3)).SerializeToString()
CUDA = provider_start.started("cuda")


def test_specs_and_results() -> None:
    session = open_session(EYE)
    assert inputs_of(session) == (TensorSpec("x", ("N", 3), "float32"),)
    assert outputs_of(session) == (TensorSpec("scores", ("N", 3), "float32"),)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(run(session, {"x": x})[0], x)


@pytest.mark.parametrize("low_memory", [True, False])
def test_the_session_says_what_ran_where(low_memory: bool) -> None:
    session = open_session(stateful().SerializeToString(), record_nodes=True, low_memory=low_memory)
    placed = placements(session)
    assert {placement.op_type for placement in placed} >= {"ReduceSum", "Cast", "Add"}
    assert nodes_per_provider(session) == {"cpu": len(placed)}


def test_unnamed_dimensions_are_none() -> None:
    made = model([helper.make_node("Relu", ["x"], ["y"])], [value("x", [None, 2])], [value("y", [None, 2])])
    assert inputs_of(open_session(made.SerializeToString()))[0].shape == (None, 2)


def test_errors_are_one_line(tmp_path: Path) -> None:
    path = saved(scores(np.eye(3)), tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:40])
    for source in (path, tmp_path / "missing.onnx", b"no model"):
        with pytest.raises(ModelError) as caught:
            open_session(source)
        assert "\n" not in str(caught.value)
        assert "ONNXRuntimeError" not in str(caught.value)
    with pytest.raises(ModelError, match="Got: 4 Expected: 3") as caught:
        run(open_session(EYE), {"x": np.ones((1, 4), np.float32)})
    assert "\n" not in str(caught.value)


def test_names() -> None:
    assert providers.ort_name("cpu") == providers.ort_name("CPUExecutionProvider") == "CPUExecutionProvider"
    assert providers.short_name("CUDAExecutionProvider") == "cuda"
    assert providers.short_name("SomethingNew") == "SomethingNew"
    assert providers.preference("cpu") == ["CPUExecutionProvider"]
    assert providers.preference("tensorrt")[1] == "CUDAExecutionProvider"
    with pytest.raises(UsageError, match="unknown provider 'gpu'"):
        providers.ort_name("gpu")


def test_cpu_starts() -> None:
    assert provider_start.start("cpu") == provider_start.Start("cpu", listed=True, started=True)


def test_a_provider_that_is_not_built_in() -> None:
    absent = next(name for name in ("cann", "qnn", "coreml") if name not in providers.listed())
    with pytest.raises(ProviderError, match="is not available"):
        open_session(EYE, provider=absent)


@pytest.mark.skipif(CUDA, reason="CUDA works here")
@pytest.mark.skipif("cuda" not in providers.listed(), reason="built without CUDA")
def test_a_fallback_is_refused_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    for provider in ("cuda", "tensorrt"):
        if provider in providers.listed():
            with pytest.raises(ProviderError, match=r"is listed but did not start: .*pip install"):
                open_session(EYE, provider=provider)
    captured = capfd.readouterr()
    assert captured.out == ""


def test_a_session_without_the_provider_is_no_session_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime lists CUDA, does not complain, and gives a CPU session."""
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda source, options, providers, **_: real(source, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(ProviderError, match="CUDA is listed but did not start"):
        open_session(EYE, provider="cuda")


@pytest.mark.skipif(not CUDA, reason="needs CUDA")
def test_cuda_runs_nodes() -> None:
    assert nodes_per_provider(open_session(EYE, provider="cuda", record_nodes=True)).get("cuda")
