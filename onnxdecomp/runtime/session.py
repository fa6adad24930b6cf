"""Sessions of ONNX Runtime: quiet, on the provider that was asked for or not at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array, Dim
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.runtime import provider_start, providers
from onnxdecomp.runtime.environment import check_threads
from onnxdecomp.runtime.messages import one_line
from onnxdecomp.runtime.regular_files import require_regular
from onnxdecomp.runtime.spinning import Idling, set_idling

if TYPE_CHECKING:
    import onnxruntime as ort

Feed: TypeAlias = dict[str, Array]

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "string": "str",
    "bool": "bool",
}


_UNKNOWN_OPTION = re.compile(r"provider.option|invalid option", re.IGNORECASE)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: Its name.
        shape: A size, a symbolic name or None per dimension.
        dtype: NumPy's name ("float32", "str" for strings), or ONNX Runtime's type, "seq(tensor(float))",
            for what is no tensor.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str

    @property
    def is_tensor(self) -> bool:
        return "(" not in self.dtype

    @property
    def is_float(self) -> bool:
        return self.dtype in ("float16", "float32", "float64", "bfloat16")

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {self.dtype}[{dims}]"


@dataclass(frozen=True)
class Placement:
    """A node of the optimised graph and the provider (short name) that runs it."""

    node: str
    op_type: str
    provider: str


def open_session(
    model: str | Path | bytes,
    *,
    provider: str = "cpu",
    options: Mapping[str, str] | None = None,
    threads: int = 1,
    inter_op: int = 1,
    low_memory: bool = False,
    idling: Idling = "spin",
    record_nodes: bool = False,
    integers: bool = True,
    weights: Mapping[str, Array] | None = None,
    profile: Path | None = None,
    optimize: bool = True,
) -> ort.InferenceSession:
    """A session on `provider`, with the CPU only for what the provider does not take.

    Args:
        model: A file, or a serialised model.
        provider: A short name, see onnxdecomp.runtime.providers.
        options: Of the provider, by ONNX Runtime's names.
        threads: Threads within an operator; 0 lets ONNX Runtime take one per core.
        inter_op: Threads between operators.
        low_memory: Give memory back after each run and keep one copy of each weight, but run slower.
        idling: How idle threads wait, see onnxdecomp.runtime.spinning.
        record_nodes: Keep what `placements` reads.
        weights: The numbers of initializers that the model declares as external data, by name; they are
            not copied and must stay as they are while the session lives.
        profile: Where ONNX Runtime's own trace of every kernel goes: the beginning of a file's name, which
            the session's `end_profiling` tells in full.
        optimize: Let ONNX Runtime fuse and rearrange nodes.
        integers: Let kernels compute with the integers before a DequantizeLinear, rounding activations too.

    Raises:
        ModelError: ONNX Runtime does not load the model.
        ProviderError: The provider did not start.
        UsageError: There is no such provider, it does not know an option, or the number of threads is absurd.
    """
    import onnxruntime as ort

    check_threads(threads, inter_op)
    wanted = providers.ort_name(provider)
    if wanted not in ort.get_available_providers():
        raise provider_start.not_started(provider_start.start(provider))
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = inter_op
    if low_memory:
        settings.enable_cpu_mem_arena = False
        settings.enable_mem_pattern = False
        settings.add_session_config_entry("session.disable_prepacking", "1")
    set_idling(settings, idling)
    if not optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not integers:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if record_nodes:
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        settings.add_external_initializers(list(weights), values)
    if not isinstance(model, bytes):
        require_regular(Path(model))
    source = model if isinstance(model, bytes) else str(model)
    try:
        with provider_start.quiet(provider):
            session = ort.InferenceSession(
                source, settings, providers=providers.preference(provider, options), enable_fallback=0
            )
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
        if wanted != providers.ort_name("cpu"):
            _blame(provider, options, error)
        raise ModelError(f"ONNX Runtime does not load {_label(model)}: {one_line(error)}") from error
    if wanted not in session.get_providers():
        raise provider_start.not_started(provider_start.start(provider))
    session.disable_fallback()
    return session


def _blame(provider: str, options: Mapping[str, str] | None, error: Exception) -> None:
    """Raise what is the provider's fault, or that of the options that it was given."""
    outcome = provider_start.start(provider)
    if not outcome.started:
        raise provider_start.not_started(outcome) from error
    if options and _UNKNOWN_OPTION.search(str(error)):
        raise UsageError(f"{outcome.provider} does not take an option: {one_line(error)}") from error


def run(session: ort.InferenceSession, feed: Mapping[str, Array]) -> list[Array]:
    """All outputs for one feed, in the model's order.

    Raises:
        ModelError: ONNX Runtime fails on it; one line.
    """
    try:
        outputs: list[Array] = session.run(None, dict(feed))
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
        raise ModelError(one_line(error)) from error
    return outputs


def inputs_of(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    """The inputs that must be fed (initializers that may be overridden are left out)."""
    return tuple(_spec(arg) for arg in session.get_inputs())


def outputs_of(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    """The outputs."""
    return tuple(_spec(arg) for arg in session.get_outputs())


def placements(session: ort.InferenceSession) -> tuple[Placement, ...]:
    """Which provider runs which node: of a session opened with `record_nodes`, else ().

    The nodes are those at the time of partitioning: a fused node has the name of the fusion.
    """
    read = getattr(session, "get_provider_graph_assignment_info", None)
    if read is None:  # ONNX Runtime before 1.24
        return ()
    return tuple(
        Placement(node.name, node.op_type, providers.short_name(part.ep_name))
        for part in read()
        for node in part.get_nodes()
    )


def nodes_per_provider(session: ort.InferenceSession) -> dict[str, int]:
    """How many nodes each provider runs."""
    return dict(Counter(placement.provider for placement in placements(session)))


def dtype_of(spec: TensorSpec) -> np.dtype[np.generic]:
    """The NumPy type that the tensor is fed in."""
    return np.dtype(object if spec.dtype == "str" else spec.dtype)


def _spec(arg: ort.NodeArg) -> TensorSpec:
    match = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    dtype = _DTYPES.get(match[1], match[1]) if match else arg.type
    shape = tuple(None if isinstance(d, int) and d < 0 else d for d in arg.shape or ())
    return TensorSpec(arg.name, shape, dtype)


def _label(model: str | Path | bytes) -> str:
    return "the model" if isinstance(model, bytes) else str(model)
