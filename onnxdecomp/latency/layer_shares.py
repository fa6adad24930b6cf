"""How much of a model's latency each layer is.

What a layer takes alone, run again and again, is not what it takes in its model, where everything else has
driven its weight out of the caches: a layer with a large weight and a small activation was four times slower
there. So every dense layer runs as a tiny model of its own, one after the other in the model's order and in
turns with the whole model. What it takes less when run several times in a row, its weight being near then,
is what fetching the weight takes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Array
from onnxdecomp.latency.cache import Where, key_of, where
from onnxdecomp.latency.chain_model import SerializedModel, chain_model, frame_model
from onnxdecomp.latency.measure import Request
from onnxdecomp.latency.opened import runnables
from onnxdecomp.runtime import device as devices
from onnxdecomp.runtime.providers import provider_of
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.runtime.spinning import idling_of, pause
from onnxdecomp.runtime.timing import ALONE_AFTER, Clock, Run, steady

MIN_ROUNDS, MAX_ROUNDS = 5, 30
_HERE = Setting()


@dataclass(frozen=True)
class Share:
    """A layer's part of its model's latency.

    Attributes:
        part: Of the model's latency, from 0 to 1; 0 where the layer could not be measured.
        cold: The part of it that goes into fetching the weight, from 0 to 1.
    """

    part: float
    cold: float


@dataclass(frozen=True)
class Shares:
    """The whole model, and its layers.

    Attributes:
        whole_ms: The model's latency, median, milliseconds.
        layers: In the order asked for; their parts add up to 1 at most.
    """

    whole_ms: float
    layers: tuple[Share, ...]


def shares(
    model: str | Path | bytes,
    feed: Mapping[str, Array],
    layers: Sequence[Request],
    *,
    setting: Setting = _HERE,
    precision: str = "float",
    seconds: float = 5.0,
) -> Shares:
    """Measure how much of the model's latency each layer is.

    Args:
        model: The model with all of its layers dense, as it would be saved if none were decomposed.
        feed: An input of it, by name, of the shapes that the layers' `input_shape` belong to.
        layers: The layers that run once for each input, in the model's order; their chains are not read.
        setting, precision: Where and in what; as for measure.time_chains.
        seconds: About the time to take. However short, all run MIN_ROUNDS times.

    Raises:
        ModelError: The model does not load or run.
        ProviderError: The provider did not start.
        UsageError: There is no such provider.
    """
    on = where(setting.quick, precision)
    idling = idling_of(setting.threads, 2)
    device = devices.device_of(setting)
    loaded = device.load(model, setting, feed, idling=idling)
    keys = _keys(layers, on)
    opened = _opened(dict(zip(keys, layers, strict=True)), on)
    runs = {key: pair for key in keys if (pair := opened[key]) is not None}
    whole, *parts = _rounds(
        loaded.run,
        [dense for dense, _ in runs.values()],
        [frame for _, frame in runs.values()],
        seconds,
        pause(idling),
        clock=device.meter(setting),
    )
    measured = [index for index, key in enumerate(keys) if key in runs]
    places = [list(runs).index(keys[index]) for index in measured]
    found = [Share(0.0, 0.0)] * len(layers)
    cold, warm = (each[:, places] for each in parts)
    for index, share in zip(measured, _parts(whole, cold, warm), strict=True):
        found[index] = share
    return Shares(float(np.median(whole)), tuple(found))


def _keys(layers: Sequence[Request], on: Where) -> list[str]:
    """Equal for layers that are timed as one: those of equal shapes, where each costs a session on a device.

    On the processor each has its own weight, which is to be fetched.
    """
    if provider_of(on.provider).synchronous:
        return [str(index) for index in range(len(layers))]
    keys = []
    for request in layers:
        dense = dense_chain(request.layer)
        around = request.around.on(on.provider, on.precision)
        keys.append(key_of(dense, dense, request.layer, request.input_shape, around, on))
    return keys


def _opened(layers: Mapping[str, Request], on: Where) -> dict[str, tuple[Run, Run] | None]:
    """What runs each dense layer with its own weight, and its neighbours alone."""
    models: list[SerializedModel | str] = []
    for request in layers.values():
        layer, shape = request.layer, request.input_shape
        around = request.around.on(on.provider, on.precision)
        models.append(chain_model(dense_chain(layer), layer, shape, around))
        models.append(frame_model(layer, shape, around))
    runs = runnables(models, on)
    pairs = zip(runs[::2], runs[1::2], strict=True)
    return {
        key: None if isinstance(dense, str) or isinstance(frame, str) else (dense, frame)
        for key, (dense, frame) in zip(layers, pairs, strict=True)
    }


def _rounds(
    whole: Run, dense: Sequence[Run], frames: Sequence[Run], seconds: float, rest: float, *, clock: Clock
) -> tuple[Array, Array, Array]:
    """Milliseconds [rounds] of the whole, and [rounds, layers] of the layers, first cold and then warm.

    Cold, the layers run one after the other, twice, and the second time is taken: each finds its weight where
    the others have left it, as in their model. Waking a session's threads is then timed too, of the layer as
    of its neighbours alone, and cancels out.
    """

    def ms(run: Run, before: int = ALONE_AFTER) -> float:
        return steady(run, rest=rest, before=before, clock=clock) / 1e6

    def once() -> Array:
        first = ms(whole)
        for run in dense:
            run()
        near = [ms(run, before=0) for run in (*dense, *frames)]
        return np.array([first, *near, *map(ms, (*dense, *frames))])

    once()
    found: list[Array] = []
    start = time.perf_counter()
    while len(found) < MIN_ROUNDS or (len(found) < MAX_ROUNDS and time.perf_counter() - start < seconds):
        found.append(once())
    rounds = np.array(found)
    parts = rounds[:, 1:].reshape(len(rounds), 4, len(dense))
    return rounds[:, 0], parts[:, 0] - parts[:, 1], parts[:, 2] - parts[:, 3]


def _parts(whole: Array, cold: Array, warm: Array) -> list[Share]:
    """The layers' shares; ratios within each round, for what slows a round down slows all in it.

    Fetching gets what the layers with their weights near leave of the whole, if it needs so much: in a run of
    layers that are models of their own more is driven out of the caches, and their threads have to be woken.
    """
    near = np.maximum(np.median(warm / whole[:, None], axis=0), 0.0)
    fetching = np.maximum(np.median((cold - warm) / whole[:, None], axis=0), 0.0)
    # Sums are steadier than what they add up: they take as long as the whole, and are disturbed as often.
    total = float(np.median(warm.sum(axis=1) / whole)) if near.size else 0.0
    near *= min(max(total, 0.0), 1.0) / max(float(near.sum()), 1e-12)
    room = max(1.0 - float(near.sum()), 0.0)
    fetching *= min(1.0, room / max(float(fetching.sum()), 1e-12))
    parts = near + fetching
    return [
        Share(float(part), float(cold / part) if part > 0 else 0.0)
        for part, cold in zip(parts, fetching, strict=True)
    ]
