"""How many samples the output is looked at on, where it is looked at often."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.statistics import Calibration, parted, shortened
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.search import sensitivity
from onnxdecomp.search.sensitivity import for_looks, original_outputs, output_errors
from tests.builders.graphs import from_x
from tests.search.test_channel_profiles import branches, calibration, opened


@pytest.mark.parametrize(("looks", "samples"), [(1, 10), (50, 10), (100, 5), (1000, 4)])
def test_many_looks_are_at_fewer_samples(looks: int, samples: int) -> None:
    """Of 2e9 MACs each: there is time for ten, and for fewer where there are more than 50 looks."""
    model, _, _ = opened(branches())
    judging = parted(calibration())[1]
    outputs = original_outputs(model, judging, 2_000_000_000)
    assert sum(len(feed["x"]) for feed in outputs.feeds) == 10
    found = for_looks(outputs, model, judging, 2_000_000_000, looks)
    assert sum(len(feed["x"]) for feed in found.feeds) == samples
    assert (found is outputs) == (samples == 10)
    assert found.names == outputs.names


def test_two_samples_are_enough_where_one_gives_layers_their_rows() -> None:
    model, _, _ = opened(branches())
    judging = parted(calibration())[1]
    outputs = original_outputs(model, judging, 2_000_000_000)
    found = for_looks(outputs, model, judging, 2_000_000_000, 1000, 1)
    assert sum(len(feed["x"]) for feed in found.feeds) == 2


def test_of_light_models_no_more_are_looked_at_than_tell_changes_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _, _ = opened(branches())
    judging = parted(calibration())[1]
    outputs = original_outputs(model, judging, 1)
    whole = sum(len(feed["x"]) for feed in outputs.feeds)
    assert for_looks(outputs, model, judging, 1, 1) is outputs
    monkeypatch.setattr(sensitivity, "_LOOKED", 6)
    assert whole > 6
    assert sum(len(feed["x"]) for feed in for_looks(outputs, model, judging, 1, 1).feeds) == 6


@pytest.mark.parametrize(("macs", "provider"), [(1_000_000, "cpu"), (20_000_000_000, "cuda")])
def test_little_work_is_for_the_processor(macs: int, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session on a card takes as long to open as a processor takes for that much."""
    model, _, _ = opened(branches())
    judging = replace(parted(calibration())[1], provider="cuda")
    asked: list[Any] = []

    def observed(*model: Any, **given: Any) -> Any:
        asked.append(given.pop("provider"))
        return open_observer(*model, **given)

    monkeypatch.setattr(sensitivity, "open_observer", observed)
    outputs = original_outputs(model, judging, macs)
    assert not any(output_errors(model, outputs, judging))
    assert set(asked) == {outputs.provider} == {provider}
    assert [outputs.where(runs) for runs in (1, 10**6)] == [provider, "cuda"]


def test_of_sorted_inputs_every_part_has_all_classes() -> None:
    """What is fitted to, judged by, and what is drawn of it where there is little time."""
    rows = tuple({"x": np.full((1, 20), k // 20, np.float32)} for k in range(200))
    node = helper.make_node("Gemm", ["x", "w"], ["y"])
    classifier = from_x([node], {"w": np.ones((20, 3), np.float32)}, ["N", 20])
    fitted, others = parted(Calibration(Feeds(rows, "sorted", stackable=True)))
    outputs = original_outputs(classifier, others, 10**9)
    assert sum(len(feed["x"]) for feed in outputs.feeds) == 20
    for feeds in (fitted.feeds, others.feeds, shortened(fitted, 10**10).feeds, outputs.feeds):
        seen = {int(k) for feed in feeds for k in feed["x"][:, 0]}
        assert seen == set(range(10))
