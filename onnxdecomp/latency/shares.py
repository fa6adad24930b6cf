"""How much of a model's latency each layer is.

What a layer takes alone, run again and again, is not what it takes in its model, where everything else has
driven its weight out of the caches: a layer with a large weight and a small activation was four times slower
there. So every dense layer runs as a tiny model of its own, one after the other in the model's order and in
turns with the whole model. What it takes less when run several times in a row, its weight being near then,
is what fetching the weight takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxdecomp.dense import dense_chain
from onnxdecomp.latency.cache import Where, where
from onnxdecomp.latency.measure import SHORTEST_MS, Request, runnable
from onnxdecomp.latency.tiny import chain_model, frame_model
from onnxdecomp.layer import Array
from onnxdecomp.runtime.idling import pause, together
from onnxdecomp.runtime.timing import Run

MIN_ROUNDS, MAX_ROUNDS = 5, 30


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
    provider: str = "cpu",
    threads: int = 1,
    precision: str = "float",
    seconds: float = 5.0,
) -> Shares:
    """Measure how much of the model's latency each layer is.

    Args:
        model: The model with all of its layers dense, as it would be saved if none were decomposed.
        feed: An input of it, by name, of the shapes that the layers' `input_shape` belong to.
        layers: The layers that run once for each input, in the model's order; their chains are not read.
        provider, threads, precision: Where and in what; as for measure.time_chains.
        seconds: About the time to take. However short, all run MIN_ROUNDS times.

    Raises:
        ModelError: The model does not load or run.
        ProviderError: The provider did not start.
        UsageError: There is no such provider.
    """
    from onnxdecomp.runtime import session

    on = where(provider, threads, precision)
    idling = together(threads, 2)
    opened = session.open_session(model, provider=provider, threads=threads, idling=idling)
    given = dict(feed)
    session.run(opened, given)
    runs = [_runs(layer, on) for layer in layers]
    measured = [index for index, pair in enumerate(runs) if pair is not None]
    dense = [pair[0] for pair in runs if pair is not None]
    frames = [pair[1] for pair in runs if pair is not None]
    whole, cold, warm = _rounds(lambda: opened.run(None, given), dense, frames, seconds, pause(idling))
    found = [Share(0.0, 0.0)] * len(layers)
    for index, share in zip(measured, _parts(whole, cold, warm), strict=True):
        found[index] = share
    return Shares(float(np.median(whole)), tuple(found))


def _runs(request: Request, on: Where) -> tuple[Run, Run] | None:
    """What runs the dense layer, and its neighbours alone: in sessions of its own, so with its own weight."""
    layer, shape, around = request.layer, request.input_shape, request.around.on(on.provider, on.precision)
    dense = runnable(chain_model(dense_chain(layer), layer, shape, around), on)
    frame = runnable(frame_model(layer, shape, around), on)
    return None if isinstance(dense, str) or isinstance(frame, str) else (dense, frame)


def _rounds(
    whole: Run, dense: Sequence[Run], frames: Sequence[Run], seconds: float, rest: float
) -> tuple[Array, Array, Array]:
    """Milliseconds [rounds] of the whole, and [rounds, layers] of the layers, first cold and then warm.

    Cold, all that has a weight runs once a round: what ran twice would keep its place in the caches better.
    Waking a session's threads is then timed too, of the layer as of its neighbours alone, and cancels out.
    """

    def once() -> Array:
        return np.array([_ms(run, rest) for run in (whole, *dense, *frames)])

    def third(run: Run) -> float:
        time.sleep(rest)
        run(), run()
        return _ms(run)

    def again() -> Array:
        return np.array([third(run) for run in (*dense, *frames)])

    once()
    cold = _repeated(once, 0.7 * seconds, MAX_ROUNDS)
    warm = _repeated(again, 0.3 * seconds, MIN_ROUNDS)
    count = len(dense)
    return cold[:, 0], cold[:, 1 : 1 + count] - cold[:, 1 + count :], warm[:, :count] - warm[:, count:]


def _repeated(turn: Callable[[], Array], seconds: float, most: int) -> Array:
    """The results of several turns, at least MIN_ROUNDS."""
    found: list[Array] = []
    start = time.perf_counter()
    while len(found) < MIN_ROUNDS or (len(found) < most and time.perf_counter() - start < seconds):
        found.append(turn())
    return np.array(found)


def _ms(run: Run, rest: float = 0.0) -> float:
    time.sleep(rest)
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def _parts(whole: Array, cold: Array, warm: Array) -> list[Share]:
    """The layers' shares; pairs of each round, for what slows a round down slows all in it."""
    parts = np.maximum(np.median(cold / whole[:, None], axis=0), 0.0)
    # Their sum is steadier than each: it takes as long as the whole, and is disturbed as often.
    total = float(np.median(cold.sum(axis=1) / whole)) if parts.size else 0.0
    parts *= min(max(total, 0.0), 1.0) / max(float(parts.sum()), 1e-12)
    typical = np.maximum(np.median(cold, axis=0), SHORTEST_MS)
    fetching = np.clip(1.0 - np.median(warm, axis=0) / typical, 0.0, 1.0)
    return [Share(float(part), float(share)) for part, share in zip(parts, fetching, strict=True)]
