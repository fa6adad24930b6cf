"""Observers: the values inside a graph that ONNX Runtime computes for given inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import ModelError, ProviderError
from onnxdecomp.runtime import session
from onnxdecomp.runtime.providers import provider_of
from onnxdecomp.runtime.session import Feed, TensorSpec
from onnxdecomp.runtime.shared_weights import share_weights

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(eq=False)
class Observer:
    """A session that computes some values of a model's main graph, and only what they need.

    Attributes:
        names: The values' names, in the order in which `run` returns them.
        inputs: The names of the model's inputs, and of the values given, that they depend on.
    """

    names: tuple[str, ...]
    inputs: frozenset[str]
    _session: ort.InferenceSession
    _lent: dict[str, Array] = field(default_factory=dict)
    _on_processor: Callable[[], ort.InferenceSession] | None = None

    def run(self, feed: Feed) -> list[Array]:
        """The values for one feed of the whole model, with the values that were said to be known.

        What fails on a device, for want of its memory most of all, is done by the processor from then on.

        Raises:
            ModelError: ONNX Runtime fails on it.
        """
        own = {k: v for k, v in feed.items() if k in self.inputs}
        try:
            return session.run(self._session, own)
        except ModelError:
            if self._on_processor is None:
                raise
            self._session, self._on_processor = self._on_processor(), None
            return session.run(self._session, own)

    def specs(self) -> tuple[TensorSpec, ...]:
        """The inputs that must be fed."""
        return session.inputs_of(self._session)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the values are, in the order of `names`."""
        return session.outputs_of(self._session)


def open_observer(
    model: ir.Model,
    names: Sequence[str],
    *,
    provider: str = "cpu",
    threads: int = 0,
    known: Mapping[str, Array] | None = None,
    integers: bool = False,
    consume: bool = False,
    low_memory: bool = False,
) -> Observer:
    """An observer of values of the main graph, its inputs and initializers among them.

    Args:
        model: The model.
        names: Of the values.
        provider, threads: Where it is computed: in single precision, and by the processor where the provider
            does not take the model.
        known: Values of the main graph that will be fed; nothing before them is computed. The arrays only
            show their types and ranks.
        integers: As for `open_session`.
        consume: Nobody needs the model any more: it is taken apart, and not copied.
        low_memory: As for `open_session`: for the whole model and a run or two.

    Raises:
        KeyError: The main graph has no such value.
        ModelError: ONNX Runtime does not load what is left of the model.
    """
    copy = model if consume else model.clone()
    graph = copy.graph
    values = {value.name: value for value in (*graph.initializers.values(), *graph.inputs)}
    values |= {out.name: out for node in graph for out in node.outputs if out.name}
    graph.outputs.clear()
    for name, array in (known or {}).items():
        computed = values[name]
        computed.name = f"{name}/computed"
        values[name] = fed = ir.val(name, ir.DataType.from_numpy(array.dtype), [None] * array.ndim)
        computed.replace_all_uses_with(fed)
        graph.inputs.append(fed)
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        value = values[name]
        if value.producer() is None:  # ONNX Runtime wants a node behind an output
            node = ir.node("Identity", [value], name=f"{name}/tap")
            node.outputs[0].name = f"{name}/tapped"
            graph.append(node)
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            value = node.outputs[0]
        graph.outputs.append(value)
    RemoveUnusedNodesPass()(copy)
    RemoveUnusedFunctionsPass()(copy)  # type: ignore[no-untyped-call]
    used = {v.name for node in graph.all_nodes() for v in node.inputs if v is not None}
    for value in [v for v in graph.inputs if v.name not in used]:
        graph.inputs.remove(value)
        # An initializer that nothing reads is dropped by ONNX Runtime, and then cannot be shared with it.
        graph.initializers.pop(str(value.name), None)
    needed = frozenset(str(v.name) for v in graph.inputs if v.name not in graph.initializers)
    weights = share_weights(copy)
    serialized = ir.to_proto(copy).SerializeToString()

    def opened(on: str) -> ort.InferenceSession:
        return session.open_session(
            serialized,
            provider=on,
            options=dict(provider_of(on).precisions.get("fp32", ())),
            threads=threads,
            integers=integers,
            idling="sleep",
            low_memory=low_memory,
            weights=weights,
        )

    if provider_of(provider).name == "cpu":
        return Observer(tuple(wanted), needed, opened(provider), weights)
    try:
        return Observer(tuple(wanted), needed, opened(provider), weights, partial(opened, "cpu"))
    except (ModelError, ProviderError):
        return Observer(tuple(wanted), needed, opened("cpu"), weights)
