"""What layers take with the kernels of a precision, beside what they take in floating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.latency.cache import Stored, Where, key_of, load, store, where
from onnxdecomp.latency.chain_model import chain_model, frame_model
from onnxdecomp.latency.context import ALONE
from onnxdecomp.latency.measure import SHORTEST_MS, Request, typical_times
from onnxdecomp.latency.opened import runnable
from onnxdecomp.runtime import device as devices
from onnxdecomp.runtime.environment import UNKNOWN
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.runtime.spinning import idling_of, pause

_FLOAT = "float"
_HERE = Setting()


def ratios(
    requests: Sequence[Request],
    precision: str,
    *,
    setting: Setting = _HERE,
    cache: Path | None = None,
    seconds: float = 5.0,
) -> list[float | None]:
    """The time of each layer under a precision over that in floating point; None where it cannot be timed.

    The two run in turns. Equal layers at equal shapes are timed once, and kept on disk.

    Args:
        requests: The layers; their chains are not read.
        precision: The kernels.
        setting, cache: As for `time_chains`.
        seconds: About the time to take for all.

    Raises:
        ProviderError: The provider did not start.
        UsageError: There is no such provider.
    """
    on = where(setting, precision)
    if on.device.startswith(UNKNOWN):
        cache = None
    keys = [_key(request, on) for request in requests]
    known: dict[str, Stored] = {} if cache is None else load(keys, cache)[0]
    left = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
    for key, request in left.items():
        found = _timed(request, on, seconds / len(left))
        if found is not None:
            known[key] = found
            if cache is not None:
                store({key: found}, cache)
    return [known[key].ratio if key in known else None for key in keys]


def _key(request: Request, on: Where) -> str:
    """Of a timing beside floating point: of a name that no precision has."""
    dense = dense_chain(request.layer)
    beside = replace(on, precision=f"{on.precision}/{_FLOAT}")
    return key_of(dense, dense, request.layer, request.input_shape, ALONE, beside)


def _timed(request: Request, on: Where, seconds: float) -> Stored | None:
    layer, shape = request.layer, request.input_shape
    models = frame_model(layer, shape), chain_model(dense_chain(layer), layer, shape)
    plain = replace(on, precision=_FLOAT)
    runs = [runnable(models[0], plain), runnable(models[1], plain), runnable(models[1], on)]
    ready = [run for run in runs if not isinstance(run, str)]
    if len(ready) < len(runs):
        return None
    rest, meter = pause(idling_of(on.threads, len(ready))), devices.device_of(on.setting).meter(on.setting)
    frame, floats, others = typical_times(ready, seconds, rest, meter)
    dense = max(float(floats - frame), SHORTEST_MS)
    return Stored(dense, max(float(others - frame), 0.0) / dense)
