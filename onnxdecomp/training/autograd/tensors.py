"""NumPy's arrays as torch's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch

from onnxdecomp.core.layer import Array

Tensor: TypeAlias = torch.Tensor


def as_tensor(array: Array) -> Tensor:
    """The same numbers; a copy where torch could not write to the array's memory or walk it backwards."""
    array = np.asarray(array)
    if not array.flags.writeable or any(step < 0 for step in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def as_tensors(feed: Mapping[str, Array]) -> dict[str, Tensor]:
    """A feed."""
    return {name: as_tensor(array) for name, array in feed.items()}
