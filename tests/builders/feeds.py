"""Numbers for weights and inputs, files of them, and calibration on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.runtime.session import TensorSpec

IMAGE = (TensorSpec("x", ("N", 3, 4, 4), "float32"),)
STATE = (
    TensorSpec("frame", (1, 4), "float32"),
    TensorSpec("state", (2, 1, 4), "float32"),
    TensorSpec("gain", (), "int64"),
)


def normal(*shape: int, seed: int = 0) -> Array:
    """Normal numbers in float32; others for every shape and seed."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    """A vector of int64, as sizes and axes are given."""
    return np.asarray(values, np.int64)


def scalar(value: float) -> Array:
    """Of float32, without axes."""
    return np.asarray(value, np.float32)


def npz(path: Path, **arrays: Any) -> Path:
    """A file of these arrays."""
    np.savez(path, **arrays)
    return path


def counted(count: int) -> NDArray[np.float32]:
    """Different numbers [count, 3, 4, 4] for IMAGE."""
    return np.arange(count * 48, dtype=np.float32).reshape(count, 3, 4, 4)


def samples(path: Path, count: int = 3, **arrays: Any) -> Path:
    """A file of data for `models.network`, or of the arrays given."""
    x = np.random.default_rng(1).standard_normal((count, 8, 8, 8), dtype=np.float32)
    return npz(path, **(arrays or {"x": x}))


def images(count: int = 10) -> list[dict[str, Array]]:
    """Feeds of `models.residual`."""
    return [{"x": normal(1, 3, 8, 5, seed=index)} for index in range(count)]


def calibration(feeds: Sequence[Mapping[str, Array]], **more: Any) -> Calibration:
    """Of all rows that the feeds have, unless told otherwise."""
    stackable = bool(more.pop("stackable", True))
    settings = {"batch": 4, "rows": 10**7, "threads": 1, **more}
    return Calibration(
        Feeds(tuple(dict(feed) for feed in feeds), "the test", stackable=stackable), **settings
    )
