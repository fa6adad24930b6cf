"""A device that is not there: models load, and running them moves a clock on as a roofline says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.latency.kernels import kernels_of
from onnxdecomp.latency.roofline import Roof, Roofline
from onnxdecomp.runtime import device, environment, provider_start
from onnxdecomp.runtime.device import Feeding, Loaded
from onnxdecomp.runtime.provider_start import Start
from onnxdecomp.runtime.providers import provider_of
from onnxdecomp.runtime.session import Feed, TensorSpec, inputs_of, open_session
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.runtime.spinning import Idling
from onnxdecomp.runtime.timing import Clock, Run

LAUNCH_BOUND = Roofline(
    100.0,
    {
        "product": Roof(1e-4, 1 / 60e3, 8),
        "convolution": Roof(1e-4, 1 / 30e3, 8),
        "depthwise": Roof(1e-4, 1 / 2e3),
        "other": Roof(1e-5),
    },
)
"""A large graphics card for networks that are hundreds of times smaller than those it is for: of one sample
the launches take most, of many little. So slow that a timing of a second has few rounds."""


@dataclass(eq=False)
class FakeDevice:
    """A clock that obeys a roofline.

    Attributes:
        line: The hardware.
        graph_us: Microseconds of a launch in a recorded graph.
        now: Nanoseconds so far.
        loads: How many sessions were opened.
        branches: How many models were branches of one.
        spare: Bytes that are free on it; None where it does not tell.
        largest: Bytes of the weights of the session of branches that has most.
    """

    line: Roofline = LAUNCH_BOUND
    graph_us: float = 30.0
    now: int = 0
    loads: int = 0
    branches: int = 0
    spare: int | None = None
    largest: int = 0
    seen: list[Setting] = field(default_factory=list)

    def load(
        self,
        model: str | Path | bytes,
        setting: Setting,
        feeding: Feeding,
        *,
        idling: Idling = "spin",
        weights: Mapping[str, Array] | None = None,
        count: bool = False,
    ) -> Loaded:
        self.loads += 1
        self.seen.append(setting)
        specs: tuple[TensorSpec, ...] = ()
        if callable(feeding):
            opened = open_session(model, low_memory=True)
            feed, specs = feeding(opened), inputs_of(opened)
        else:
            feed = dict(feeding)
        proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model)
        kernels = kernels_of(proto, {name: array.shape for name, array in feed.items()})
        run = partial(self._pass, self._takes(proto, feed, setting))
        return Loaded(run, feed, specs, {setting.provider: len(kernels)}, bound=True, graph=setting.graph)

    def load_branches(self, model: bytes, setting: Setting, feeds: Sequence[Feed]) -> list[Run]:
        self.loads += 1
        self.branches += len(feeds)
        self.seen.append(setting)
        proto = onnx.load_model_from_string(model)
        ways = [taken(proto, feed) for feed in feeds]
        self.largest = max(self.largest, sum(map(_weights, ways)))
        return [
            partial(self._pass, self._takes(way, feed, setting))
            for way, feed in zip(ways, feeds, strict=True)
        ]

    def _takes(self, proto: onnx.ModelProto, feed: Feed, setting: Setting) -> int:
        """Nanoseconds of a run."""
        kernels = kernels_of(proto, {name: array.shape for name, array in feed.items()})
        launch = self.graph_us if setting.graph else self.line.launch_us
        return round(Roofline(launch, self.line.roofs).us(kernels) * 1e3)

    def _pass(self, nanoseconds: int) -> None:
        self.now += nanoseconds

    def clock(self) -> int:
        return self.now

    def memory(self) -> int | None:
        return self.loads << 20

    def free(self) -> int | None:
        return self.spare

    def meter(self, setting: Setting) -> Clock:
        return self.clock


def _weights(model: onnx.ModelProto) -> int:
    """Bytes of the weights, all in float32."""
    return sum(4 * int(math.prod(tensor.dims)) for tensor in model.graph.initializer)


def taken(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """The branch that a run on this feed takes, as a model without conditions."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = model.graph
    while graph.node[0].op_type == "If":
        ways = {attribute.name: attribute.g for attribute in graph.node[0].attribute}
        graph = ways["then_branch" if feed[graph.node[0].input[0]] else "else_branch"]
    for part in ("node", "initializer", "value_info", "output"):
        del getattr(made.graph, part)[:]
        getattr(made.graph, part).extend(getattr(graph, part))
    return made


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeDevice) -> FakeDevice:
    """Put the device in the place of a graphics card: everything that runs on one is timed by it."""
    real: Any = device.device_of
    monkeypatch.setattr(device, "device_of", lambda s: fake if provider_of(s.provider).on_cuda else real(s))
    monkeypatch.setattr(provider_start, "start", lambda provider: Start(provider, True, True))
    named: Any = environment.device
    monkeypatch.setattr(
        environment, "device", lambda provider: "a fake card" if provider == "cuda" else named(provider)
    )
    return fake
