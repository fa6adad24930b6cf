"""Kernels of a card, for bench/cuda: multiples of channels that they work in, and what timing many costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np


def kernels(provider: str, small: bool) -> dict[str, Any]:
    """The multiples that kernels work in, by precision; what many chains cost in few sessions and in many."""
    from onnxdecomp.core.layer import ConvSpec, Layer
    from onnxdecomp.decompositions.base import outline
    from onnxdecomp.decompositions.registry import get
    from onnxdecomp.latency import opened
    from onnxdecomp.latency.cache import where
    from onnxdecomp.latency.chain_model import chain_model, frame_model
    from onnxdecomp.latency.measure import typical_times
    from onnxdecomp.latency.quantum import measured_quanta
    from onnxdecomp.runtime.device import device_of
    from onnxdecomp.runtime.providers import provider_of
    from onnxdecomp.runtime.setting import setting_of

    row, found = provider_of(provider), dict[str, Any]()
    for precision in () if small else ("fp32", "tf32", "fp16"):
        if precision in row.precisions:
            under = setting_of(
                provider, 0, precision=precision, profile="deploy" if row.deploy else "default"
            )
            began = time.monotonic()
            multiples = measured_quanta(under.quick, under.converted or "float")
            found[precision] = {"multiples": multiples, "seconds": round(time.monotonic() - began, 1)}
    width, count = (32, 10) if small else (256, 100)
    spec = ConvSpec((1, 1), (1, 1), (1, 1, 1, 1))
    layer = Layer("conv", "Conv", np.zeros((width, width, 3, 3), np.float32), None, spec)
    shape = (8, width, 14, 14)
    ranks = np.linspace(width // count + 1, width - 1, count).round().astype(int)
    chains = [outline(get("svd"), layer, (int(rank),)) for rank in ranks]
    models = [frame_model(layer, shape), *(chain_model(chain, layer, shape) for chain in chains)]
    on = where(setting_of(provider, 1).quick)
    took, times = dict[str, float](), dict[str, Any]()
    for name, together in {"branches": lambda _: True, "sessions": lambda _: False}.items():
        began = time.monotonic()
        with mock.patch.object(opened, "together", together):
            runs = [run for run in opened.runnables(models, on) if not isinstance(run, str)]
        ms = typical_times(runs, 10.0, clock=device_of(on.setting).meter(on.setting))
        took[name], times[name] = round(time.monotonic() - began, 1), ms[1:] - ms[0]
    apart = np.abs(times["branches"] / times["sessions"] - 1)
    return {"multiples": found, "chains": count, "seconds": took, "apart": float(np.median(apart))}


def kernels_said(found: Mapping[str, Any]) -> str:
    """A sentence on the kernels."""
    multiples = "; ".join(
        f"{precision}: " + ", ".join(f"{kind}s in multiples of {n}" for kind, n in own["multiples"].items())
        for precision, own in found["multiples"].items()
    )
    took = found["seconds"]
    return (
        f"{multiples or 'No multiples were measured'}. {found['chains']} chains took {took['branches']} s "
        f"as branches and {took['sessions']} s in sessions of their own; their times differ by "
        f"{found['apart']:.0%} in the median."
    )
