"""Chains on a device where each costs a session: a few are timed, and only those are kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.latency.cache import FILE
from onnxdecomp.latency.few_timings import MOST
from onnxdecomp.latency.kernels import chain_kernels
from onnxdecomp.latency.measure import Request, time_chains
from onnxdecomp.runtime.setting import Setting
from tests.builders.fake_device import FakeDevice, install
from tests.builders.layers import hollow_conv

SHAPE = (16, 128, 16, 16)
ON = Setting("cuda")


def test_the_others_are_guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = install(monkeypatch, FakeDevice())
    layer = hollow_conv(128, 128)
    ranks = range(8, 129, 8)
    asked = [Request(layer, outline(get("tucker"), layer, (rank, rank)), SHAPE) for rank in ranks]
    notes: list[str] = []
    found = time_chains(asked, setting=ON, cache=tmp_path / FILE, note=notes.append)
    timed = [timing for timing in found if not timing.guessed]
    assert len(timed) == MOST
    assert (fake.loads, fake.branches) == (1, MOST + 2)
    assert notes == [f"of 16 chains {MOST} were timed; a model of the device says the rest"]
    own = fake.line.us(chain_kernels(dense_chain(layer), SHAPE))
    for request, timing in zip(asked, found, strict=True):
        truth = fake.line.us(chain_kernels(request.chain, SHAPE)) / own
        assert timing.ratio == pytest.approx(truth, rel=0.3)
    again = time_chains(asked, setting=ON, cache=tmp_path / FILE)
    assert [timing.cached for timing in again].count(True) == MOST


def test_on_the_processor_all_are_timed() -> None:
    layer = hollow_conv(8, 8)
    asked = [Request(layer, outline(get("svd"), layer, (rank,)), (1, 8, 4, 4)) for rank in range(1, 9)]
    assert not any(timing.guessed for timing in time_chains(asked, seconds=0.0))


def test_a_hundred_chains_take_three_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers that differ: a session holds as many branches as tell which of the next are worth timing."""
    fake = install(monkeypatch, FakeDevice())
    asked = []
    for width in range(64, 184, 8):
        layer = hollow_conv(width, width)
        shape = (4, width, 8, 8)
        asked += [Request(layer, outline(get("tucker"), layer, (r, r)), shape) for r in range(8, 64, 8)]
    found = time_chains(asked, setting=ON)
    assert len(asked) == 105
    assert all(timing.ratio > 0 for timing in found)
    assert 2 <= fake.loads <= 3


def test_a_session_that_has_no_time_left_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer is timed however short the time is; the second, in another session, is guessed."""
    fake = install(monkeypatch, FakeDevice())
    asked = []
    for width in (64, 48):
        layer = hollow_conv(width, width)
        shape = (16, width, 16, 16)
        asked += [Request(layer, outline(get("tucker"), layer, (r, r)), shape) for r in (8, 16, 24, 32)]
    found = time_chains(asked, setting=Setting("cuda", profile="deploy"), seconds=0.0)
    assert [timing.guessed for timing in found] == [False] * 4 + [True] * 4
    assert fake.loads == 4 + 2
    assert all(timing.dense_ms > 0 and timing.ratio > 0 for timing in found)
