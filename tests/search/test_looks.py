"""How many samples the output is looked at on, where it is looked at often."""

from __future__ import annotations

import pytest

from onnxdecomp.calibration.statistics import parted
from onnxdecomp.search.sensitivity import for_looks, original_outputs
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
