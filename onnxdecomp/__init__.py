"""onnxdecomp: make trained ONNX models smaller and faster by tensor decomposition.

The functions below are the whole public interface; each returns a value and leaves its arguments alone.
They are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxdecomp._version import __version__

if TYPE_CHECKING:
    from onnxdecomp.evaluate.benchmark import bench
    from onnxdecomp.evaluate.verify import verify
    from onnxdecomp.workflow.compress import compress, inspect
    from onnxdecomp.workflow.config import CompressConfig
    from onnxdecomp.workflow.finetune import Finetuned, finetune
    from onnxdecomp.workflow.recipes.registry import recipe
    from onnxdecomp.workflow.result import Result

__all__ = [
    "CompressConfig",
    "Finetuned",
    "Result",
    "__version__",
    "bench",
    "compress",
    "finetune",
    "inspect",
    "recipe",
    "verify",
]

_HOME = {
    "CompressConfig": "onnxdecomp.workflow.config",
    "Finetuned": "onnxdecomp.workflow.finetune",
    "Result": "onnxdecomp.workflow.result",
    "compress": "onnxdecomp.workflow.compress",
    "finetune": "onnxdecomp.workflow.finetune",
    "inspect": "onnxdecomp.workflow.compress",
    "bench": "onnxdecomp.evaluate.benchmark",
    "recipe": "onnxdecomp.workflow.recipes.registry",
    "verify": "onnxdecomp.evaluate.verify",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'onnxdecomp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
