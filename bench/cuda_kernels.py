"""Kernels of a card, for bench/cuda: multiples of channels that they work in, and what timing many costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from bench.provenance import markdown

if TYPE_CHECKING:
    from onnxdecomp.core.layer import Array
    from onnxdecomp.latency.chain_model import SerializedModel
    from onnxdecomp.runtime.setting import Setting

LAYERS = (
    ((32, 256, 14, 14), (32, 64, 72, 100, 128)),
    ((1, 256, 14, 14), (32, 64, 128)),
    ((32, 512, 14, 14), (64, 128, 256)),
    ((1, 64, 512, 512), (16, 32, 48)),
)
"""Activations of 3 x 3 convolutions that keep the channels, and Tucker ranks of both sides."""


def kernels(provider: str, small: bool) -> dict[str, Any]:
    """The multiples that kernels work in, by precision; what chains take with recorded runs and without; what
    many chains cost in few sessions and in many.
    """
    from onnxdecomp.latency.quantum import measured_quanta
    from onnxdecomp.runtime.providers import provider_of

    row, found = provider_of(provider), dict[str, Any]()
    for precision in () if small else ("fp32", "tf32", "fp16"):
        if precision in row.precisions:
            under = _setting(provider, precision)
            began = time.monotonic()
            multiples = measured_quanta(under, under.converted or "float")
            found[precision] = {"multiples": multiples, "seconds": round(time.monotonic() - began, 1)}
    layers = [] if small else [_layer(provider, shape, ranks) for shape, ranks in LAYERS]
    return {"multiples": found, "layers": layers, **_many(provider, *((32, 10) if small else (256, 100)))}


def _setting(provider: str, precision: str) -> Setting:
    from onnxdecomp.runtime.providers import provider_of
    from onnxdecomp.runtime.setting import setting_of

    profile = "deploy" if provider_of(provider).deploy else "default"
    return setting_of(provider, 0, precision=precision, profile=profile).quick


def _layer(provider: str, shape: Sequence[int], ranks: Sequence[int]) -> dict[str, Any]:
    """Microseconds of a convolution and of its Tucker chains: as recorded runs, and as branches."""
    models = _models("tucker", shape, [(rank, rank) for rank in ranks])
    fp16 = _setting(provider, "fp16")
    us = {
        name: _timed(models, under, together=together)[0]
        for name, under, together in (
            ("recorded", fp16, False),
            ("branches", fp16.without_graph, True),
        )
    }
    taken = {name: [round(float(own - each[0]), 1) for own in each[1:]] for name, each in us.items()}
    return {"shape": list(shape), "ranks": list(ranks), **taken}


def _many(provider: str, width: int, count: int) -> dict[str, Any]:
    """What timing so many chains costs as branches of one session, and each in a session."""
    from onnxdecomp.runtime.setting import setting_of

    ranks = np.linspace(width // count + 1, width - 1, count).round().astype(int)
    models = _models("svd", (8, width, 14, 14), [(int(rank),) for rank in ranks])
    under, took, times = setting_of(provider, 1).quick, dict[str, float](), dict[str, Any]()
    for name, together in {"branches": True, "sessions": False}.items():
        us, seconds = _timed(models, under, together=together)
        took[name], times[name] = round(seconds, 1), us[1:] - us[0]
    apart = np.abs(times["branches"] / times["sessions"] - 1)
    return {"chains": count, "seconds": took, "apart": float(np.median(apart))}


def _models(method: str, shape: Sequence[int], ranks: Sequence[tuple[int, ...]]) -> list[Any]:
    """The frame, a 3 x 3 convolution that keeps its channels, and its chains."""
    from onnxdecomp.core.dense import dense_chain
    from onnxdecomp.core.layer import ConvSpec, Layer
    from onnxdecomp.decompositions.base import outline
    from onnxdecomp.decompositions.registry import get
    from onnxdecomp.latency.chain_model import chain_model, frame_model

    width, spec, activation = shape[1], ConvSpec((1, 1), (1, 1), (1, 1, 1, 1)), tuple(shape)
    layer = Layer("conv", "Conv", np.zeros((width, width, 3, 3), np.float32), None, spec)
    chains = [dense_chain(layer), *(outline(get(method), layer, own) for own in ranks)]
    return [frame_model(layer, activation), *(chain_model(chain, layer, activation) for chain in chains)]


def _timed(models: Sequence[SerializedModel], under: Setting, *, together: bool) -> tuple[Array, float]:
    """Microseconds of each model, and the seconds that finding them took."""
    from onnxdecomp.latency import opened
    from onnxdecomp.latency.cache import where
    from onnxdecomp.latency.measure import typical_times
    from onnxdecomp.runtime.device import device_of

    began, on = time.monotonic(), where(under, under.converted or "float")
    with mock.patch.object(opened, "together", return_value=together):
        runs = [run for run in opened.runnables(models, on) if not isinstance(run, str)]
    ms = typical_times(runs, 5.0, clock=device_of(on.setting).meter(on.setting))
    return 1e3 * ms, time.monotonic() - began


def kernels_said(found: Mapping[str, Any]) -> str:
    """A sentence on the kernels, and a table of layers."""
    multiples = "; ".join(
        f"{precision}: " + ", ".join(f"{kind}s in multiples of {n}" for kind, n in own["multiples"].items())
        for precision, own in found["multiples"].items()
    )
    took = found["seconds"]
    said = (
        f"{multiples or 'No multiples were measured'}. {found['chains']} chains took {took['branches']} s "
        f"as branches and {took['sessions']} s in sessions of their own; their times differ by "
        f"{found['apart']:.0%} in the median."
    )
    rows = [
        (" x ".join(map(str, own["shape"])), name, str(recorded), str(branches))
        for own in found["layers"]
        for name, recorded, branches in zip(
            ("dense", *(f"rank {rank}" for rank in own["ranks"])),
            own["recorded"],
            own["branches"],
            strict=True,
        )
    ]
    return f"{said}\n\n{markdown(('activation', 'layer', 'recorded, us', 'as branches, us'), rows)}"
