"""Models in one session take no more of a card's memory than is free on it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.steps import Shape
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.latency.measure import Request, time_chains
from onnxdecomp.latency.room import fitting, room, taken
from onnxdecomp.runtime.device import Runtime
from onnxdecomp.runtime.setting import Setting
from tests.builders.fake_device import FakeDevice, install
from tests.builders.layers import hollow_conv

RANKS = (8, 16, 24, 32)


@dataclass(frozen=True, eq=False)
class Job:
    group: str
    dense: Chain
    chain: Chain
    input_shape: Shape
    dtype: str = "float32"


def jobs(width: int, samples: int, ranks: tuple[int, ...] = RANKS) -> list[Job]:
    layer, shape = hollow_conv(width, width), (samples, width, 8, 8)
    chains = (outline(get("tucker"), layer, (rank, rank)) for rank in ranks)
    return [Job(f"{width}", dense_chain(layer), chain, shape) for chain in chains]


@given(
    st.lists(st.tuples(st.sampled_from([8, 16, 32]), st.integers(1, 64)), min_size=1, max_size=5),
    st.floats(1e4, 1e8),
    st.booleans(),
)
def test_parts_are_all_of_it_and_fit(layers: list[tuple[int, int]], most: float, joint: bool) -> None:
    groups = [
        [replace(job, group=f"{k}") for job in jobs(width, samples, (4, 8))]
        for k, (width, samples) in enumerate(layers)
    ]
    parts = list(fitting(groups, most, joint=joint))
    got = [job.chain for part in parts for group in part for job in group]
    assert got == [job.chain for group in groups for job in group]
    assert all(len({job.group for job in group}) == 1 for part in parts for group in part)
    for part in parts:
        assert taken(part, joint=joint) <= most or [len(group) for group in part] == [1]
    for part, following in itertools.pairwise(parts):  # no part is smaller than it must be
        job = following[0][0]
        same = part[-1][0].group == job.group
        grown = [*part[:-1], [*part[-1], job]] if same else [*part, [job]]
        assert taken(grown, joint=joint) > most


@pytest.mark.parametrize(("joint", "times"), [(True, 1), (False, len(RANKS) + 1)])
def test_activations_count(joint: bool, times: int) -> None:
    """Those of the largest model in one session, those of all in sessions of their own."""
    few, many = (taken([jobs(32, samples)], joint=joint) for samples in (1, 33))
    through = 2 * 32 * 32 * 64 * 4  # in and out
    assert times * through <= many - few <= 2.1 * times * through


def test_half_of_what_is_free() -> None:
    assert room(None) == math.inf
    assert room(1000) == 500


def test_a_small_card_takes_more_sessions_and_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for width in (64, 72, 80):
        layer, shape = hollow_conv(width, width), (1, width, 8, 8)
        asked += [Request(layer, outline(get("tucker"), layer, (r, r)), shape) for r in RANKS]
    large = install(monkeypatch, FakeDevice())
    free = time_chains(asked, setting=Setting("cuda"))
    assert large.loads == 1
    small = install(monkeypatch, FakeDevice(spare=large.largest))
    found = time_chains(asked, setting=Setting("cuda"))
    assert 2 <= small.loads <= 4
    assert small.largest <= large.largest / 2
    assert [timing.ratio for timing in found] == pytest.approx([timing.ratio for timing in free])


@pytest.mark.parametrize(("said", "free"), [("81000 MiB", 81000 << 20), ("", None), ("[N/A]", None)])
def test_what_the_driver_tells(monkeypatch: pytest.MonkeyPatch, said: str, free: int | None) -> None:
    monkeypatch.setattr("onnxdecomp.runtime.environment.nvidia", lambda what: said)
    assert Runtime().free() == Runtime().memory() == free
