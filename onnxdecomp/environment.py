"""What a result depends on besides the model: versions, the machine, the number of cores."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxdecomp import __version__

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


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _RELEVANT:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(provider: str, threads: int) -> dict[str, Any]:
    """The environment part of the JSON record."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "device": cpu(),
        "provider": provider,
        "threads": threads,
    }
