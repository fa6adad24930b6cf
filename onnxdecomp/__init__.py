"""onnxdecomp: make trained ONNX models smaller and faster by tensor decomposition.

The functions below are the whole public interface; each returns a value and leaves its arguments alone.
They are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxdecomp.api import Result, compress, inspect
    from onnxdecomp.benchmark import bench
    from onnxdecomp.training.run import Finetuned, finetune
    from onnxdecomp.verification import verify

__all__ = ["Finetuned", "Result", "__version__", "bench", "compress", "finetune", "inspect", "verify"]

_HOME = {
    "Finetuned": "onnxdecomp.training.run",
    "Result": "onnxdecomp.api",
    "compress": "onnxdecomp.api",
    "finetune": "onnxdecomp.training.run",
    "inspect": "onnxdecomp.api",
    "bench": "onnxdecomp.benchmark",
    "verify": "onnxdecomp.verification",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'onnxdecomp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
