"""Where torch computes: the one place that chooses."""

from __future__ import annotations

import torch

from onnxdecomp.errors import UsageError


def torch_device(name: str = "auto") -> str:
    """The device that a name stands for: "auto" is CUDA where torch finds it, else the processor.

    Raises:
        UsageError: CUDA is asked for, and torch finds none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {name}: torch finds no CUDA here; --device cpu")
    return name
