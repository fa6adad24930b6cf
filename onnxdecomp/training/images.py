"""Other views of the same images, for the student and the teacher alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch.nn import functional

from onnxdecomp.errors import UsageError

Tensor: TypeAlias = torch.Tensor


def augmented(x: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Each image [N, C, H, W] changed at random in the ways named.

    Raises:
        UsageError: The input is no batch of images.
    """
    if not names:
        return x
    if x.ndim != 4 or not x.is_floating_point():
        raise UsageError(f"augment is for images [N, C, H, W], not for an input of shape {list(x.shape)}")
    for name in names:
        x = _WAYS[name](x, generator)
    return x


def _flip(x: Tensor, generator: torch.Generator) -> Tensor:
    turned = torch.rand(x.shape[0], generator=generator) < 0.5
    return torch.where(turned.to(x.device).reshape(-1, 1, 1, 1), x.flip(-1), x)


def _crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """A window of the same size in the image with a border of an eighth, mirrored."""
    n, _, height, width = x.shape
    dy, dx = height // 8, width // 8
    wide = functional.pad(x, (dx, dx, dy, dy), mode="reflect")
    top = torch.randint(0, 2 * dy + 1, (n,), generator=generator)
    left = torch.randint(0, 2 * dx + 1, (n,), generator=generator)
    rows = (top[:, None] + torch.arange(height)).to(x.device)
    columns = (left[:, None] + torch.arange(width)).to(x.device)
    which = torch.arange(n, device=x.device)[:, None, None]
    return wide.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


_WAYS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"flip": _flip, "crop": _crop}
