"""Other views of the same images, for the student and the teacher alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch.nn import functional

from onnxdecomp.errors import UsageError

Tensor: TypeAlias = torch.Tensor


def augmented(x: Tensor, names: Sequence[str], draws: Tensor) -> Tensor:
    """Each image [N, C, H, W] changed in the ways named, as its numbers say.

    Args:
        x: The images.
        names: The ways, in order.
        draws: Random numbers in 0…1 [samples, 3]; the N images are those of the samples, one after the other.

    Raises:
        UsageError: The input is no batch of images.
    """
    if not names:
        return x
    if x.ndim != 4 or not x.is_floating_point():
        raise UsageError(f"augment is for images [N, C, H, W], not for an input of shape {list(x.shape)}")
    own = draws.repeat_interleave(x.shape[0] // len(draws), 0)
    for name in names:
        x = _WAYS[name](x, own)
    return x


def _flip(x: Tensor, draws: Tensor) -> Tensor:
    turned = draws[:, 0] < 0.5
    return torch.where(turned.to(x.device).reshape(-1, 1, 1, 1), x.flip(-1), x)


def _crop(x: Tensor, draws: Tensor) -> Tensor:
    """A window of the same size in the image with a border of an eighth, mirrored."""
    n, _, height, width = x.shape
    dy, dx = height // 8, width // 8
    wide = functional.pad(x, (dx, dx, dy, dy), mode="reflect")
    top = (draws[:, 1] * (2 * dy + 1)).long().clamp_max(2 * dy)  # 1 - ε times a size may round up
    left = (draws[:, 2] * (2 * dx + 1)).long().clamp_max(2 * dx)
    rows = (top[:, None] + torch.arange(height)).to(x.device)
    columns = (left[:, None] + torch.arange(width)).to(x.device)
    which = torch.arange(n, device=x.device)[:, None, None]
    return wide.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


_WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"flip": _flip, "crop": _crop}
