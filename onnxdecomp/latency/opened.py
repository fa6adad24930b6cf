"""Tiny models made ready to be timed: each in a session of its own, or many in one where those cost most."""

from __future__ import annotations

from collections.abc import Sequence

from onnxdecomp.errors import ModelError
from onnxdecomp.latency.branches import branched
from onnxdecomp.latency.cache import Where
from onnxdecomp.latency.chain_model import SerializedModel, noise, quantized_model
from onnxdecomp.runtime import device as devices
from onnxdecomp.runtime.providers import provider_of
from onnxdecomp.runtime.spinning import idling_of
from onnxdecomp.runtime.timing import Run


def together(on: Where) -> bool:
    """Whether many models are timed in one session: where each costs much, and no run is recorded."""
    return not provider_of(on.provider).synchronous and not on.setting.graph


def runnables(models: Sequence[SerializedModel | str], on: Where) -> list[Run | str]:
    """What runs each model once, warm, in one session where that is worth it; reasons are handed on.

    A session that does not start, for want of memory or of a kernel, is one for each model.

    Raises:
        ProviderError: The provider did not start.
    """
    if not together(on) or len(models) < 2:
        return [runnable(model, on) for model in models]
    try:
        prepared = [_prepared(model, on) for model in models if not isinstance(model, str)]
        model, feeds = branched(prepared)
        ready = iter(devices.device_of(on.setting).load_branches(model, on.setting, feeds))
    except (ModelError, TypeError, ValueError):  # ValueError: too large to be serialised
        return [runnable(model, on) for model in models]
    return [model if isinstance(model, str) else next(ready) for model in models]


def runnable(model: SerializedModel | str, on: Where) -> Run | str:
    """What runs a tiny model once, warm; a reason in place of the model is handed on.

    Raises:
        ProviderError: The provider did not start.
    """
    if isinstance(model, str):
        return model
    try:
        model = _prepared(model, on)
        feed = {name: noise(shape).astype(dtype) for name, (shape, dtype) in model.inputs.items()}
        loaded = devices.device_of(on.setting).load(
            model.model, on.setting, feed, idling=idling_of(on.threads, 2), weights=model.weights
        )
    except (ModelError, TypeError) as error:
        return f"its latency could not be measured: {error}"
    return loaded.run


def _prepared(model: SerializedModel, on: Where) -> SerializedModel:
    return model if on.precision == "float" else quantized_model(model, on.precision, on.provider)
