"""Products of tall matrices on a graphics card by torch, where it is there, else on the processor."""

from __future__ import annotations

import warnings

import numpy as np

from onnxdecomp.core.layer import Array

_WORTH = 1 << 28
"""Multiplications from which on copying to a card is worth it: there and back takes about a millisecond."""


def inner(x: Array, y: Array, device: str = "cpu") -> Array:
    """x.T @ y of matrices of equally many rows, in their own type.

    Args:
        x, y: [n, a] and [n, b].
        device: As torch names it; "cpu" is the processor. Where torch is missing, has no such device or too
            little memory, the processor does it.
    """
    if device != "cpu" and x.shape[0] * x.shape[1] * y.shape[1] >= _WORTH:
        try:
            import torch

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # arrays that cannot be written to are only read
                a, b = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (x, y))
            found: Array = (a.T @ b).cpu().numpy()
            return found
        except (ImportError, RuntimeError, AssertionError, TypeError):  # torch without CUDA asserts
            pass
    return np.asarray(x.T @ y)
