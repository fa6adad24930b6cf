"""Models bound to a device: the same numbers, and a place of their own for outputs of recorded runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError
from onnxdecomp.runtime import device, session
from onnxdecomp.runtime.device import Runtime, device_of
from onnxdecomp.runtime.session import Feed, open_session, outputs_of, run
from onnxdecomp.runtime.setting import Setting, setting_of
from tests.builders.models import thin_middle

FEED: Feed = {"x": np.ones((2, 8, 6, 6), np.float32)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(thin_middle(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize("placed", [False, True])
def test_a_bound_run_is_the_same_run(model: Path, placed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    opened, kept = open_session(model), []
    real = ort.OrtValue.ortvalue_from_shape_and_type

    def keeping(*given: Any) -> Any:
        kept.append(real(*given))
        return kept[-1]

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", staticmethod(keeping))
    places = device._places(opened, FEED) if placed else None
    once = device._bound(opened, FEED, "cpu", places)
    once()
    once()
    expected = run(opened, FEED)
    assert len(kept) == (len(expected) if placed else 0)
    for value, array in zip(kept, expected, strict=False):
        np.testing.assert_array_equal(value.numpy(), array)


def test_outputs_have_their_sizes_before_the_first_run(model: Path) -> None:
    opened = open_session(model)
    assert any(not isinstance(dim, int) for dim in outputs_of(opened)[0].shape)
    (place,) = device._places(opened, FEED)
    assert place.shape == run(opened, FEED)[0].shape


def test_a_model_that_cannot_be_recorded_runs_without(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime refuses with CUDA graphs: seen here on a device that stands in for one."""
    asked: list[bool] = []
    real = session.open_session

    def opened(model: Path, *, provider: str, options: dict[str, str], **given: Any) -> Any:
        asked.append(options.get("enable_cuda_graph") == "1")
        if asked[-1] and refusing:
            raise ModelError("no graph capture: the model has control flow nodes")
        return real(model, **given)

    monkeypatch.setattr(session, "open_session", opened)
    bound = device._bound
    monkeypatch.setattr(device, "_bound", lambda made, feed, on, *places: bound(made, feed, "cpu", *places))
    under = setting_of("cuda", 1, profile="deploy")
    for refusing in (True, False):
        loaded = Runtime().load(model, under, lambda _: FEED)
        assert (loaded.bound, loaded.graph) == (True, not refusing)
        loaded.run()
    assert asked == [False, True, False, False, True]


def test_a_model_of_known_sizes_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain that is timed: every session costs time on a card."""
    made = thin_middle()
    for value, rows in ((made.graph.input[0], 2), (made.graph.output[0], 2)):
        value.type.tensor_type.shape.dim[0].dim_value = rows
    onnx.save(made, tmp_path / "net.onnx")
    asked: list[bool] = []
    real = session.open_session

    def opened(model: Path, *, provider: str, options: dict[str, str], **given: Any) -> Any:
        asked.append(options.get("enable_cuda_graph") == "1")
        return real(model, **given)

    monkeypatch.setattr(session, "open_session", opened)
    bound = device._bound
    monkeypatch.setattr(device, "_bound", lambda made, feed, on, *places: bound(made, feed, "cpu", *places))
    loaded = Runtime().load(tmp_path / "net.onnx", setting_of("cuda", 1, profile="deploy"), FEED)
    assert (asked, loaded.graph) == ([True], True)


def test_what_does_not_run_is_an_error(model: Path) -> None:
    wrong = {"x": np.ones((2, 3, 6, 6), np.float32)}
    with pytest.raises(ModelError):
        device_of(Setting()).load(model, Setting(), lambda _: wrong)
    with pytest.raises(ModelError):
        device._bound(open_session(model), {"other": FEED["x"]}, "cpu")
