"""Calibration samples in batches, and where each of them stands in both models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch

from onnxdecomp.data.mask import Mask
from onnxdecomp.runtime.session import Feed
from onnxdecomp.training.autograd.network import Network
from onnxdecomp.training.autograd.tensors import as_tensors
from onnxdecomp.training.refinement.trimming import Trimming
from onnxdecomp.training.samples import Samples

Tensor: TypeAlias = torch.Tensor


@dataclass(eq=False)
class Batch:
    """Some samples that run together.

    Attributes:
        feed: The inputs, and what the original has chosen and drawn.
        count: How many samples.
        weight: What the batch counts in a mean: its samples, or its real positions where others are padding.
        new, old: Values at the beginning of the block at hand, of the compressed model and of the original.
    """

    feed: dict[str, Tensor]
    count: int
    weight: int
    new: Mapping[str, Tensor] = field(default_factory=dict)
    old: Mapping[str, Tensor] = field(default_factory=dict)

    def rewind(self) -> None:
        """Back to the inputs."""
        self.new = self.old = {}


def batches(
    samples: Sequence[Feed],
    size: int,
    seed: int,
    *,
    stackable: bool,
    trimming: Trimming | None = None,
    mask: Mask | None = None,
) -> list[Batch]:
    """Batches of samples, at most so many in each, drawn at random: of the same shapes, or of like lengths.

    Args:
        samples: The feeds.
        size: Of a batch.
        seed: Of the draw.
        stackable: Whether feeds can be stacked.
        trimming: How padding is cut off; None: it is not.
        mask: Which positions are padding.
    """
    order = [int(row) for row in np.random.default_rng(seed).permutation(len(samples))]
    whole = Samples(tuple(samples), None, stackable)
    if trimming is not None and stackable:
        groups = trimming.groups(samples, size, order)
    else:
        groups = _of_one_shape(samples, size, order)
    found = []
    for rows in groups:
        drawn = whole.batch(rows)
        for feed, own in zip(drawn.feeds, drawn.rows, strict=True):
            cut = feed if trimming is None else trimming.cut(feed, trimming.length(feed))
            tensors = as_tensors(cut)
            weight = len(own) if mask is None else int(tensors[mask.inputs[0].name].sum())
            found.append(Batch(tensors, len(own), max(weight, 1)))
    return found


def _of_one_shape(samples: Sequence[Feed], size: int, order: Sequence[int]) -> list[list[int]]:
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for row in order:
        shapes = tuple(array.shape for array in samples[row].values())
        alike.setdefault(shapes, []).append(row)
    return [rows[start : start + size] for rows in alike.values() for start in range(0, len(rows), size)]


def pin(found: Sequence[Batch], original: Network, names: Sequence[str]) -> None:
    """Hold what the original chooses and draws: the compressed model is given the same."""
    for batch in found if names else ():
        with torch.no_grad():
            batch.feed.update(original(batch.feed, names))


def real(mask: Mask | None, feed: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor | None:
    """Which numbers of a value are real, [*shape] of booleans; None for all."""
    if mask is None:
        return None
    told = {spec.name: feed[spec.name].cpu().numpy() for spec in mask.inputs}
    which = mask.values(told, tuple(shape))
    return None if which is None else torch.from_numpy(which.copy())


def positions(mask: Mask | None, feed: Mapping[str, Tensor]) -> Tensor | None:
    """Which rows of [batch x positions] are real, by the first mask; None for all."""
    if mask is None:
        return None
    told = {spec.name: feed[spec.name].numpy() for spec in mask.inputs}
    which = mask.rows(told, (feed[mask.inputs[0].name].numel(),))
    return None if which is None else torch.from_numpy(which.copy())
