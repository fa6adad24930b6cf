"""Execution providers: their short names, and which of them really start.

ONNX Runtime lists the providers that it was built with. Whether one starts is another matter: without
its libraries a CUDA session silently runs on the CPU. So a session is asked which providers it got.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxdecomp.errors import ProviderError, UsageError
from onnxdecomp.runtime.messages import one_line
from onnxdecomp.runtime.process_state import Undo, no_stdout, shared

ORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "cann": "CANNExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "acl": "ACLExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "azure": "AzureExecutionProvider",
}

NVIDIA = frozenset({"cuda", "tensorrt"})
"""Providers that keep tensors on a CUDA device and need CUDA's libraries."""

_WARNINGS, _SILENT = 2, 4
"""Severities of ONNX Runtime's log: its default, and the one of which there is nothing."""

_INSTALL = {
    "cuda": "install its libraries with: pip install 'onnxdecomp[cuda]'",
    "tensorrt": "install its libraries with: pip install 'onnxdecomp[cuda]' tensorrt",
    "openvino": "install it with: pip install onnxruntime-openvino (in an environment of its own)",
    "dml": "install it with: pip install onnxruntime-directml (Windows, in an environment of its own)",
}


@dataclass(frozen=True)
class Start:
    """What came of starting a session on one provider.

    Attributes:
        provider: Its short name.
        listed: Whether ONNX Runtime was built with it.
        started: Whether a session really got it.
        reason: Why it did not start.
        remedy: What to type then.
    """

    provider: str
    listed: bool
    started: bool
    reason: str | None = None
    remedy: str | None = None


def ort_name(provider: str) -> str:
    """ONNX Runtime's name of a provider given by its short name (or by that name already).

    Raises:
        UsageError: There is no such provider.
    """
    wanted = provider.strip()
    for short, full in ORT_NAMES.items():
        if wanted.lower() in (short, full.lower()):
            return full
    raise UsageError(f"unknown provider {provider!r}; known are {', '.join(ORT_NAMES)}")


def short_name(name: str) -> str:
    """The short name of ONNX Runtime's provider `name`, or that name where it has none."""
    return next((short for short, full in ORT_NAMES.items() if full == name), name)


def listed() -> tuple[str, ...]:
    """Short names of the providers that the installed ONNX Runtime was built with."""
    import onnxruntime as ort

    return tuple(short_name(name) for name in ort.get_available_providers())


def preference(provider: str) -> list[str]:
    """What a session is asked for, in order; the CPU takes the nodes that are left over."""
    short = short_name(ort_name(provider))
    wanted = {"cpu": [], "tensorrt": ["tensorrt", "cuda"]}.get(short, [short])
    return [ORT_NAMES[name] for name in (*wanted, "cpu")]


@contextlib.contextmanager
def quiet(provider: str) -> Iterator[None]:
    """Open a session in here: CUDA's libraries are loaded and nothing is printed.

    `preload_dlls` and a provider that cannot start print to stdout, where results belong, and ONNX
    Runtime logs to stderr what is raised as one clear error here.
    """
    import onnxruntime as ort

    def change() -> Undo:
        ort.set_default_logger_severity(_SILENT)
        return lambda: ort.set_default_logger_severity(_WARNINGS)  # nothing tells what it was

    short = short_name(ort_name(provider))
    with contextlib.nullcontext() if short == "cpu" else no_stdout():
        if short in NVIDIA and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        with shared("ONNX Runtime's logger", change):
            yield


def start(provider: str) -> Start:
    """Start a session on a tiny model and ask it which providers it got."""
    import onnxruntime as ort

    full = ort_name(provider)
    short = short_name(full)
    if full not in ort.get_available_providers():
        without = f"this ONNX Runtime ({ort.__version__}) was built without it"
        return Start(short, False, False, without, _INSTALL.get(short))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    reason: str | None
    try:
        with quiet(provider):
            session = ort.InferenceSession(
                _tiny_model(), options, providers=preference(provider), enable_fallback=0
            )
        got = full in session.get_providers()
        reason = None if got else missing_library(short) or "the session fell back to the CPU"
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes, RuntimeError among them
        got = False
        reason = missing_library(short) or one_line(error)
    return Start(short, True, got, reason, None if got else _INSTALL.get(short))


def started(provider: str) -> bool:
    """Whether a session really starts on the provider."""
    return start(provider).started


def not_started(outcome: Start) -> ProviderError:
    """The error for a provider that was asked for and did not start."""
    name = outcome.provider.upper()
    listed_but = "is listed but did not start" if outcome.listed else "is not available"
    remedy = f"; {outcome.remedy}" if outcome.remedy else ""
    return ProviderError(
        f"{name} {listed_but}: {outcome.reason or 'the session fell back to the CPU'}{remedy}; "
        f"'onnxdecomp doctor --provider {outcome.provider}' says more"
    )


def missing_library(provider: str) -> str | None:
    """What the loader says is missing behind ONNX Runtime's own library of the provider, if anything.

    ONNX Runtime writes this to its log only, so the library is loaded once more here.
    """
    import onnxruntime as ort

    folder = Path(ort.__file__).parent / "capi"
    files = sorted(folder.glob(f"*onnxruntime_providers_{provider}.*"))
    if not files:
        return None
    try:
        ctypes.CDLL(str(files[0]))
    except OSError as error:
        text = str(error)
        # "undefined symbol" only says that it was loaded outside of ONNX Runtime: nothing is missing
        if "undefined symbol" not in text:
            return text.split(": cannot open", maxsplit=1)[0] + " is missing"
    return None


def _tiny_model() -> bytes:
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return bytes(model.SerializeToString())
