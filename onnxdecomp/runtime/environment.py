"""What a result depends on besides the model: versions, the machine, the number of cores."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxdecomp._version import __version__
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.providers import ort_name, provider_of

_PER_CORE = 4
"""Threads per core that may be asked for."""

_RELEVANT = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxsim",
    "onnxscript",
    "tensorly",
)


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def most_threads() -> int:
    """The most threads that may be asked for: some more than the machine has cores."""
    return _PER_CORE * (os.cpu_count() or 1)


def check_threads(*counts: int | None) -> None:
    """Refuse numbers of threads that would bring the machine down.

    Raises:
        UsageError: One of them is negative, or far above the number of cores.
    """
    for count in counts:
        if count is not None and count < 0:
            raise UsageError(f"the number of threads must be 0 (one per core) or more, not {count}")
        if count is not None and count > most_threads():
            raise UsageError(
                f"{count} threads are far too many: this machine has {os.cpu_count() or 1} cores; give at "
                f"most {most_threads()} by --threads and --bench-threads"
            )


def tool() -> dict[str, str]:
    """Name and version of this tool."""
    return {"name": "onnxdecomp", "version": __version__}


def cpu() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The processor's features as Linux names them ("avx512_vnni"); none where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _RELEVANT:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


UNKNOWN = "unknown"
"""How the name of a device begins that cannot be had."""


def device(provider: str | None) -> str:
    """The name of what a provider (its short name) runs on.

    That is the processor's, the first graphics card's for NVIDIA's providers, and for others what ONNX
    Runtime says of their devices; a name that begins with UNKNOWN where it says nothing.
    """
    where = "processor" if provider is None else provider_of(provider).device
    if where == "processor":
        return cpu()
    if where != "nvidia":
        return _listed_devices(str(provider)) or f"{UNKNOWN} {provider} device"
    return nvidia("name") or f"{UNKNOWN} NVIDIA device"


def nvidia(what: str) -> str:
    """A fact of the first NVIDIA card, by nvidia-smi's name ("memory.used" with its unit); "" without one."""
    try:
        command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(done.stdout.splitlines()), "").strip()


def _listed_devices(provider: str) -> str:
    """The devices that ONNX Runtime lists for a provider, with their options; empty where it lists none."""
    import onnxruntime

    found = []
    for listed in getattr(onnxruntime, "get_ep_devices", list)():
        if listed.ep_name == ort_name(provider):
            here = listed.device
            facts = {**here.metadata, **listed.ep_options}
            name = f"{here.vendor} {here.vendor_id:x}:{here.device_id:x}"
            found.append(" ".join([name, *(f"{key}={facts[key]}" for key in sorted(facts))]))
    return "; ".join(found)


def describe(provider: str | None, threads: int | None, *, ran: bool = False) -> dict[str, Any]:
    """The environment part of the JSON record.

    Args:
        provider: The short name that was asked for; None where nothing was to be run.
        threads: Threads within an operator.
        ran: Whether a model was run: then it was on that provider, for a fallback is an error.
    """
    found = versions()
    installed = next((found[name] for name in ("onnxruntime-gpu", "onnxruntime") if name in found), None)
    # Of two that are installed the one that is imported counts.
    runtime = getattr(sys.modules.get("onnxruntime"), "__version__", installed)
    return {
        "onnxruntime": runtime,
        "provider_requested": provider,
        "provider_used": provider if ran else None,
        "device": device(provider),
        "threads": threads,
        "platform": platform.platform(),
        "versions": found,
    }
