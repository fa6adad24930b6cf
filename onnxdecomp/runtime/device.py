"""What models are timed on: a device that loads them and has a clock.

Everything that is timed goes through here, so that a test can put another device in place, whose clock obeys
a model of some hardware (`device_of` is looked up where it is called).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import ModelError
from onnxdecomp.runtime import environment, session
from onnxdecomp.runtime.messages import one_line
from onnxdecomp.runtime.providers import provider_of
from onnxdecomp.runtime.session import Feed, TensorSpec
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.runtime.spinning import Idling
from onnxdecomp.runtime.timing import Clock, Run, clock_of

if TYPE_CHECKING:
    import onnxruntime as ort


Feeding: TypeAlias = "Mapping[str, Array] | Callable[[ort.InferenceSession], Feed]"
"""What a model is fed; or what makes it, and may run the session that it is given to try."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that is ready to be timed, warm.

    Attributes:
        run: Runs it once, and returns when it has done its work.
        feed: What it is fed.
        inputs: Of the model.
        nodes: How many each provider runs, where that was asked for.
        bound: Inputs and outputs stay on the device.
        graph: A run is replayed from a recorded graph.
    """

    run: Run
    feed: Feed
    inputs: tuple[TensorSpec, ...]
    nodes: Mapping[str, int] = field(default_factory=dict)
    bound: bool = False
    graph: bool = False


class Device(Protocol):
    """Where models are timed."""

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
        """A model, run once.

        Args:
            model: A file, or a serialised model.
            setting: Under what.
            feeding: What it is fed, every time the same.
            idling: How idle threads wait.
            weights: Numbers that the model declares as external data, see session.open_session.
            count: Count the nodes that each provider runs.

        Raises:
            ModelError: It does not load or run.
            ProviderError: The provider did not start.
        """
        ...

    def load_branches(self, model: bytes, setting: Setting, feeds: Sequence[Feed]) -> list[Run]:
        """One session, and what runs it once on each of these feeds; all have run.

        Args:
            model: Serialised; its inputs say what a run computes, see latency.branches.
            setting: Under what, without a recorded graph.
            feeds: Arrays that several have in common lie on the device once.

        Raises:
            ModelError: It does not load or run.
            ProviderError: The provider did not start.
        """
        ...

    def clock(self) -> int:
        """Nanoseconds since some beginning."""
        ...

    def meter(self, setting: Setting) -> Clock:
        """What tells how long a run takes, see timing.clock_of."""
        ...

    def memory(self) -> int | None:
        """Bytes in use on it; None where that is not told."""
        ...

    def free(self) -> int | None:
        """Bytes that are free on it; None where that is not told."""
        ...


@dataclass(frozen=True)
class Runtime:
    """ONNX Runtime on this machine: on CUDA with inputs and outputs bound on the device."""

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
        def opened(under: Setting) -> ort.InferenceSession:
            return session.open_session(
                model,
                provider=under.provider,
                options=under.options,
                threads=under.threads,
                idling=idling,
                weights=weights,
                record_nodes=count,
            )

        bound = provider_of(setting.provider).on_cuda
        # To be recorded it is opened anew: what makes the feed needs no search for algorithms.
        first = setting.without_graph.quick if setting.graph else setting
        plain = None if setting.graph and not callable(feeding) else opened(first)
        feed = feeding(plain) if callable(feeding) else dict(feeding)
        made, run = plain, None
        if setting.graph:
            try:
                made = opened(setting)
                places = _declared(made) or _places(plain or opened(first), feed)
                run = _bound(made, feed, "cuda", places)
                run()
            except ModelError:  # control flow, nodes on the CPU, outputs of other sizes each time
                made, run = opened(setting.without_graph), None
        recorded = run is not None
        if run is None:
            run = _bound(made, feed, "cuda") if bound else partial(session.run, made, feed)
            run()
        nodes = session.nodes_per_provider(made) if count else {}
        kept = partial(_kept, run, weights)
        return Loaded(kept, feed, session.inputs_of(made), nodes, bound, recorded)

    def load_branches(self, model: bytes, setting: Setting, feeds: Sequence[Feed]) -> list[Run]:
        plain = setting.without_graph
        made = session.open_session(
            model, provider=plain.provider, options=plain.options, threads=plain.threads
        )
        if provider_of(setting.provider).on_cuda:
            known: dict[int, ort.OrtValue] = {}
            runs = [_bound(made, feed, "cuda", known=known) for feed in feeds]
        else:
            runs = [partial(session.run, made, feed) for feed in feeds]
        for run in runs:
            run()
        return runs

    def clock(self) -> int:
        return time.perf_counter_ns()

    def meter(self, setting: Setting) -> Clock:
        return clock_of(setting.provider, setting.threads)

    def memory(self) -> int | None:
        return _mebibytes("memory.used")

    def free(self) -> int | None:
        return _mebibytes("memory.free")


def device_of(setting: Setting) -> Device:
    """The device of a setting: ONNX Runtime on this machine for all of them."""
    return Runtime()


def _mebibytes(what: str) -> int | None:
    """Bytes of what nvidia-smi tells in MiB; None without a card."""
    try:
        return int(environment.nvidia(what).split()[0]) << 20
    except (ValueError, IndexError):
        return None


def _kept(run: Run, _: object) -> object:
    """Run; the weights are held, for they must live as long as the session."""
    return run()


def _declared(made: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    """The outputs, where the model says all of their sizes; else ()."""
    specs = session.outputs_of(made)
    return specs if all(isinstance(dim, int) for spec in specs for dim in spec.shape) else ()


def _places(plain: ort.InferenceSession, feed: Feed) -> tuple[TensorSpec, ...]:
    """The outputs with the sizes that a run gives."""
    specs, made = session.outputs_of(plain), session.run(plain, feed)
    return tuple(replace(spec, shape=array.shape) for spec, array in zip(specs, made, strict=True))


def _bound(
    made: ort.InferenceSession,
    feed: Feed,
    device: str,
    outputs: tuple[TensorSpec, ...] | None = None,
    known: dict[int, ort.OrtValue] | None = None,
) -> Run:
    """Run with inputs and outputs in the device's memory: copies to and from the host are not timed.

    Args:
        made: The session.
        feed: Copied to the device once.
        device: ONNX Runtime's name, "cuda" or "cpu".
        outputs: With all sizes known, where they are to have one place in all runs.
        known: Arrays that lie on the device already, by their identity; it is added to.
    """
    import onnxruntime as ort

    binding = made.io_binding()
    known = {} if known is None else known
    try:
        for name, array in feed.items():
            if id(array) not in known:
                # Conditions are read by the host.
                place = "cpu" if array.dtype == bool and not array.shape else device
                known[id(array)] = ort.OrtValue.ortvalue_from_numpy(array, place, 0)
            binding.bind_ortvalue_input(name, known[id(array)])
        for spec in outputs or session.outputs_of(made):
            if outputs is None:
                binding.bind_output(spec.name, device)
                continue
            output = ort.OrtValue.ortvalue_from_shape_and_type(
                list(spec.shape), np.dtype(spec.dtype), device, 0
            )
            binding.bind_ortvalue_output(spec.name, output)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
        raise ModelError(one_line(error)) from error

    def once() -> None:
        try:
            made.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
            raise ModelError(one_line(error)) from error
        binding.synchronize_outputs()

    return once
