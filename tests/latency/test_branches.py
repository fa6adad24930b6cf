"""Many models in one session: each branch gives what its model gives, and a run takes one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.errors import ModelError
from onnxdecomp.latency.branches import branched
from onnxdecomp.latency.cache import where
from onnxdecomp.latency.chain_model import SerializedModel, chain_model, frame_model
from onnxdecomp.latency.context import Neighbours
from onnxdecomp.latency.measure import typical_times
from onnxdecomp.latency.opened import runnable, runnables
from onnxdecomp.runtime.device import Runtime
from onnxdecomp.runtime.session import Feed
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.runtime.timing import Run, clock_of
from tests.builders.fake_device import FakeDevice, install, taken
from tests.builders.layers import hollow_conv, hollow_linear

AROUND = Neighbours(True, True, "Relu")


def models(count: int, size: int = 6) -> list[SerializedModel]:
    """The frame, the dense convolution and chains of it, and a linear layer at the end."""
    conv, linear = hollow_conv(32, 32), hollow_linear(16, 8)
    shape = (1, 32, size, size)
    chains = [outline(get("tucker"), conv, (rank, rank)) for rank in range(2, 2 * count + 1, 2)]
    made = [frame_model(conv, shape, AROUND)]
    made += [chain_model(chain, conv, shape, AROUND) for chain in (dense_chain(conv), *chains)]
    made.append(chain_model(dense_chain(linear), linear, (4, 8)))
    assert not any(isinstance(model, str) for model in made)
    return [model for model in made if not isinstance(model, str)]


@pytest.mark.parametrize("count", [1, 4, 6])
def test_each_branch_is_its_model(count: int) -> None:
    alone = models(count)
    joint, feeds = branched(alone)
    assert len(feeds) == len(alone)
    runs = Runtime().load_branches(joint, Setting(), feeds)
    for model, run, feed in zip(alone, runs, feeds, strict=True):
        own = {name: feed["x0" if shape[-1] == 6 else "x1"] for name, (shape, _) in model.inputs.items()}
        once = Runtime().load(model.model, Setting(), own, weights=model.weights).run
        got: Any = run()
        expected: Any = once()
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, atol=1e-6)


def test_a_run_takes_one_branch() -> None:
    """The dense layer takes as many times the frame's time as alone; all together would take one time."""
    alone = models(8, size=24)[:3]
    many = [*alone, *[alone[1]] * 13]
    here = where(Setting("cpu", 1))
    joint = Runtime().load_branches(*_asked(branched(many)))
    single = [run for run in (runnable(model, here) for model in alone) if not isinstance(run, str)]
    clock = clock_of("cpu", 1)
    together, apart = (typical_times(runs[:3], 0.2, clock=clock) for runs in (joint, single))
    assert together[0] < 0.5 * together[1]
    assert together[1] < 3 * apart[1]


def _asked(parts: tuple[bytes, list[Feed]]) -> tuple[bytes, Setting, list[Feed]]:
    return parts[0], Setting(), parts[1]


def test_conditions_lead_to_every_branch() -> None:
    joint, feeds = branched(models(3))
    proto = onnx.load_model_from_string(joint)
    found = [taken(proto, feed).graph.output[0].name.partition("_")[0] for feed in feeds]
    assert found == [f"b{index}" for index in range(len(feeds))]


@pytest.mark.parametrize("graph", [False, True])
def test_one_session_on_a_card_but_where_runs_are_recorded(
    monkeypatch: pytest.MonkeyPatch, graph: bool
) -> None:
    fake = install(monkeypatch, FakeDevice())
    on = where(Setting("cuda", profile="deploy" if graph else "default"))
    alone = models(5)
    runs = runnables([*alone, "no such kernel"], on)
    assert runs.pop() == "no such kernel"
    assert fake.loads == (len(alone) if graph else 1)
    clock = [_took(run, fake) for run in runs]
    assert clock == [_took(runnable(model, on), fake) for model in alone]
    assert len(set(clock)) > 3


def _took(run: Run | str, fake: FakeDevice) -> int:
    before = fake.clock()
    assert not isinstance(run, str)
    run()
    return fake.clock() - before


def test_what_does_not_start_together_starts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeDevice())

    def fails(model: bytes, setting: Setting, feeds: Sequence[Feed]) -> list[Run]:
        raise ModelError("out of memory")

    monkeypatch.setattr(fake, "load_branches", fails)
    alone = models(2)
    assert len(runnables(alone, where(Setting("cuda")))) == len(alone) == fake.loads
