"""Timings for readers, which decide nothing: further settings, and where the time of one run goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnxdecomp.errors import ModelError
from onnxdecomp.evaluate.benchmark import BenchResult
from onnxdecomp.graph.load import load
from onnxdecomp.latency.kernel_profile import Profile, profile
from onnxdecomp.latency.kernels import Demand, demand, kernels_of
from onnxdecomp.latency.meter import LatencyMeter
from onnxdecomp.runtime.providers import provider_of


def profiles(new: Path, names: Sequence[str], meter: LatencyMeter) -> tuple[Profile, Profile] | None:
    """The time that every layer takes in one run, in the original and in the new model; only on the CPU.

    Elsewhere a kernel returns before its work is done, and its time says nothing.

    Args:
        new: The result's file.
        names: Of the layers.
        meter: Says where, and on what.
    """
    if not provider_of(meter.provider).synchronous:
        return None

    def of(path: Path) -> Profile:
        return profile(path, load(path), names, meter.inputs()[0], threads=meter.threads)

    return of(meter.original), of(new)


def demands(new: Path, meter: LatencyMeter) -> tuple[Demand, Demand] | None:
    """What one run of the original and of the new model asks of the hardware, at the sizes that are timed.

    None for a file that is too large to be read as a whole.
    """
    import onnx

    shapes = {name: array.shape for name, array in meter.inputs()[0].items()}

    def of(path: Path) -> Demand:
        return demand(kernels_of(onnx.load(path, load_external_data=False), shapes))

    try:
        return of(meter.original), of(new)
    except (ValueError, onnx.shape_inference.InferenceError):  # above the 2 GB of a protobuf, or not inferred
        return None


def timed_elsewhere(
    first: BenchResult | None,
    new: Path,
    meter: LatencyMeter,
    batches: Sequence[int],
    threads: Sequence[int],
    *,
    decide: bool = False,
) -> tuple[BenchResult, tuple[str, ...]]:
    """The timing that decides, and those at further batch sizes and numbers of threads.

    Args:
        first: The timing that decided, at the meter's batch; made now where there is none.
        new: The result's file.
        meter: Times.
        batches, threads: Every further combination is timed.
        decide: The first goes on until it is known whether the result is faster.

    Returns:
        All timings, and notes on what could not be timed.
    """
    first = first or meter.time(new, decide=decide)
    settings, notes = list(first.settings), []
    known = {(meter.threads, meter.batch or 1), (meter.threads, first.settings[0].models[0].batch)}
    for count in threads or (meter.threads,):
        for batch in batches:
            if (count, batch) in known:
                continue
            try:
                found = meter.time(new, threads=count, batch=batch).settings
            except ModelError as error:
                notes.append(f"not timed at batch {batch}: {error}")
                break
            if batch != found[0].models[0].batch and (batch != 1 or meter.batch is not None):
                notes.append(
                    f"not timed at batch {batch}: the model takes {found[0].models[0].batch} at a time"
                )
                break
            settings.extend(found)
    return replace(first, settings=tuple(settings)), tuple(dict.fromkeys(notes))
