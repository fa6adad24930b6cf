"""Starting execution providers: which of those that ONNX Runtime lists really work here.

Without its libraries a CUDA session silently runs on the CPU. So a session is asked which providers it got.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxdecomp.errors import ProviderError
from onnxdecomp.runtime.messages import one_line
from onnxdecomp.runtime.process_state import Undo, no_stdout, shared
from onnxdecomp.runtime.providers import preference, provider_of

_WARNINGS, _SILENT = 2, 4
"""Severities of ONNX Runtime's log: its default, and the one of which there is nothing."""


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

    row = provider_of(provider)
    with contextlib.nullcontext() if row.name == "cpu" else no_stdout():
        if row.on_cuda and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        with shared("ONNX Runtime's logger", change):
            yield


def start(provider: str) -> Start:
    """Start a session on a tiny model and ask it which providers it got."""
    import onnxruntime as ort

    row = provider_of(provider)
    full, short = row.ort_name, row.name
    if full not in ort.get_available_providers():
        without = f"this ONNX Runtime ({ort.__version__}) was built without it"
        return Start(short, False, False, without, row.install)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    reason: str | None
    try:
        with quiet(provider):
            session = ort.InferenceSession(
                _probe_model(), options, providers=preference(provider), enable_fallback=0
            )
        got = full in session.get_providers()
        reason = None if got else missing_library(short) or "the session fell back to the CPU"
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes, RuntimeError among them
        got = False
        reason = missing_library(short) or one_line(error)
    return Start(short, True, got, reason, None if got else row.install)


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


def _probe_model() -> bytes:
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return bytes(model.SerializeToString())
