"""Inputs of models and files of data for the tests of reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.runtime.session import TensorSpec

IMAGE = (TensorSpec("x", ("N", 3, 4, 4), "float32"),)
STATE = (
    TensorSpec("frame", (1, 4), "float32"),
    TensorSpec("state", (2, 1, 4), "float32"),
    TensorSpec("gain", (), "int64"),
)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def images(count: int) -> NDArray[np.float32]:
    """Different numbers [count, 3, 4, 4] for IMAGE."""
    return np.arange(count * 48, dtype=np.float32).reshape(count, 3, 4, 4)
