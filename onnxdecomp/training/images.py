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
        names: The ways, in order; those that need a second image are left to `blended`.
        draws: Random numbers in 0…1 [samples, DRAWS]; the N images are those of the samples, one after the
            other.

    Raises:
        UsageError: The input is no batch of images.
    """
    if not names:
        return x
    if x.ndim != 4 or not x.is_floating_point():
        raise UsageError(f"augment is for images [N, C, H, W], not for an input of shape {list(x.shape)}")
    own = draws.repeat_interleave(x.shape[0] // len(draws), 0)
    for name in names:
        if name in _WAYS:
            x = _WAYS[name](x, own)
    return x


def blends(names: Sequence[str]) -> bool:
    """Whether some of the ways need a second image for each."""
    return any(name in _BLENDS for name in names)


def blended(x: Tensor, other: Tensor, names: Sequence[str], draws: Tensor) -> Tensor:
    """Every second image or so, with a part of another one, in the ways named.

    What comes out shows no class, but a teacher has an opinion of it (Beyer et al. 2022): it is as good as
    more data.

    Args:
        x, other: Images [N, C, H, W] of one shape.
        names, draws: As in `augmented`.
    """
    own = draws.repeat_interleave(x.shape[0] // len(draws), 0)
    ways = [name for name in names if name in _BLENDS]
    which = (own[:, 4] * len(ways)).long()
    for place, name in enumerate(ways):
        chosen = (which == place).to(x.device).reshape(-1, 1, 1, 1)
        x = torch.where(chosen, _BLENDS[name](x, other, own), x)
    return x


def _share(draws: Tensor) -> Tensor:
    """How much of the second image is seen: nothing in half of the cases, else up to a half."""
    return (draws[:, 3] - 0.5).clamp_min(0)


def _mix(x: Tensor, other: Tensor, draws: Tensor) -> Tensor:
    """A weighted mean (mixup, Zhang et al. 2018)."""
    return torch.lerp(x, other, _share(draws).to(x.device).reshape(-1, 1, 1, 1))


def _cut(x: Tensor, other: Tensor, draws: Tensor) -> Tensor:
    """A window of the other image in its own place (CutMix, Yun et al. 2019)."""
    side = _share(draws).sqrt()
    inside = torch.ones(1, dtype=torch.bool)
    for size, start, shape in ((x.shape[2], draws[:, 1], (-1, 1)), (x.shape[3], draws[:, 2], (1, -1))):
        first = start * (1 - side) * size
        at = torch.arange(size) + 0.5
        row = (at >= first[:, None]) & (at < (first + side * size)[:, None])
        inside = inside & row.reshape(len(row), 1, *shape)
    return torch.where(inside.to(x.device), other, x)


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


def _warp(x: Tensor, draws: Tensor) -> Tensor:
    """Larger or smaller by up to a half, turned by up to 17 degrees, shifted by up to a tenth."""
    scale, angle = torch.exp(0.8 * (draws[:, 5] - 0.5)), 0.6 * (draws[:, 6] - 0.5)
    sine, cosine = scale * angle.sin(), scale * angle.cos()
    down, right = 0.4 * (draws[:, 7] - 0.5), 0.4 * (draws[:, 8] - 0.5)
    rows = (torch.stack([cosine, -sine, right], 1), torch.stack([sine, cosine, down], 1))
    grid = functional.affine_grid(torch.stack(rows, 1).to(x), list(x.shape), align_corners=False)
    seen = functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return torch.where(_touched(x, draws), seen, x)


def _light(x: Tensor, draws: Tensor) -> Tensor:
    """Contrast times 0.74 to 1.35, and brighter or darker by up to 0.4 standard deviations."""
    contrast = torch.exp(0.6 * (draws[:, 9] - 0.5)).to(x).reshape(-1, 1, 1, 1)
    brighter = 0.8 * (draws[:, 10] - 0.5).to(x).reshape(-1, 1, 1, 1)
    spread = x.std((1, 2, 3), keepdim=True)
    return torch.where(_touched(x, draws), x * contrast + brighter * spread, x)


def _touched(x: Tensor, draws: Tensor) -> Tensor:
    """Which images are warped and lit: two of three, so that the student sees some as they are."""
    return (draws[:, 11] < 2 / 3).to(x.device).reshape(-1, 1, 1, 1)


_WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "flip": _flip,
    "crop": _crop,
    "warp": _warp,
    "light": _light,
}

_BLENDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"mix": _mix, "cut": _cut}

DRAWS = 12
"""Random numbers for each image: to flip, top, left; how much of another, in which way; scale, angle, down,
right; contrast, brightness; whether the last six count."""
