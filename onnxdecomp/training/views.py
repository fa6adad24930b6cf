"""How an epoch sees its images: turned, cropped and blended by numbers that only its view decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import Feed
from onnxdecomp.training.autograd.tensors import as_tensor, as_tensors
from onnxdecomp.training.images import DRAWS, augmented, blended, blends
from onnxdecomp.training.samples import Samples
from onnxdecomp.training.settings import Settings

Tensor: TypeAlias = torch.Tensor


@dataclass(frozen=True, eq=False)
class View:
    """What happens to every sample.

    Attributes:
        number: Epochs of the same number see the same.
        ways: Of augmentation, by name.
        draws: Random numbers [samples, DRAWS] for `augmented` and `blended`.
        others: The sample that each is blended with; empty where none is.
    """

    number: int
    ways: tuple[str, ...]
    draws: Tensor
    others: Sequence[int]


def drawn(settings: Settings, epoch: int, samples: int) -> View:
    """The view of an epoch."""
    ways = settings.augmentations
    if not ways:
        return View(0, (), torch.empty(0), ())
    number = epoch % settings.views if settings.views else epoch
    generator = torch.Generator().manual_seed(settings.seed * 100_019 + number)
    draws = torch.rand(samples, DRAWS, generator=generator)
    others = torch.randperm(samples, generator=generator).tolist() if blends(ways) else ()
    return View(number, ways, draws, others)


def shown(samples: Samples, feed: Feed, rows: Sequence[int], view: View) -> dict[str, Tensor]:
    """The feed of some of the samples as a view shows them.

    Raises:
        UsageError: The inputs are no images, or images that cannot be blended.
    """
    if not view.ways:
        return as_tensors(feed)
    draws = view.draws[list(rows)]
    seen = {name: augmented(x, view.ways, draws) for name, x in as_tensors(feed).items()}
    if not view.others:
        return seen
    others = [view.others[row] for row in rows]
    (more, *rest) = samples.batch(others).feeds
    if rest or any(more[name].shape != x.shape for name, x in seen.items()):
        raise UsageError("augment mix and cut are for images of one size, in models of any batch size")
    there = view.draws[others]
    return {
        name: blended(x, augmented(as_tensor(more[name]), view.ways, there), view.ways, draws)
        for name, x in seen.items()
    }
