"""Errors of changes of a part: those of the whole copies, with the rest of the model opened once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import onnx_ir as ir
import pytest

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.statistics import parted
from onnxdecomp.search import changed_part
from onnxdecomp.search.changed_part import errors_of_changes
from onnxdecomp.search.sensitivity import original_outputs, output_error
from tests.search.test_channel_profiles import branches, calibration, opened


def scaled(model: ir.Model, name: str) -> list[Callable[[], ir.Model]]:
    """Copies with an initializer a little larger, one copy for each factor."""

    def made(factor: float) -> ir.Model:
        copy = model.clone()
        value = copy.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * factor, name=name)
        return copy

    return [partial(made, factor) for factor in (1.0, 1.1, 0.5)]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_errors_are_those_of_whole_copies(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, matched, _ = opened(branches())
    judging = parted(calibration())[1]
    outputs = original_outputs(model, judging, 1)
    match = matched[place]
    for _ in outputs.window.advance([match.x.name or ""], {*match.nodes}):
        pass
    known, name = outputs.window.held(), str(match.weight.name)
    opens: list[tuple[str, ...]] = []

    def observed(model: ir.Model, names: list[str], **given: Any) -> Any:
        opens.append(tuple(names))
        return open_observer(model, names, **given)

    monkeypatch.setattr(changed_part, "open_observer", observed)
    asked = (model, match.nodes, [match.output], scaled(model, name), outputs, judging, known)
    found = list(errors_of_changes(*asked))
    expected = [output_error(make(), outputs, judging, known) for make in scaled(model, name)]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert found[0] == pytest.approx(0, abs=1e-10)
    assert min(found[1:]) > 1e-6
    assert opens.count(outputs.names) == 1
    assert len(opens) == 4


def test_a_part_that_does_not_end_there_is_run_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said to be all that it gives is not."""
    model, matched, _ = opened(branches())
    judging = parted(calibration())[1]
    outputs = original_outputs(model, judging, 1)
    first, last = matched[0], matched[1]
    for _ in outputs.window.advance([first.x.name or ""], {*first.nodes}):
        pass
    known, name = outputs.window.held(), str(first.weight.name)

    def fails(*_: Any, **__: Any) -> Any:
        raise AssertionError("opened in parts")

    monkeypatch.setattr(changed_part, "open_observer", fails)
    asked = (model, first.nodes, [last.x], scaled(model, name), outputs, judging, known)
    found = list(errors_of_changes(*asked))
    assert len(found) == 3
    assert found[2] > 1e-6
