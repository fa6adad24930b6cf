"""The data in memory, split into a part to train on and a held-out part, drawn in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import psutil
import torch

from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds, nbytes
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import Feed

Tensor: TypeAlias = torch.Tensor

_PASS = 100
"""Samples that run together where no gradient is taken."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Feeds that run one after the other, or stacked, in one step.

    Attributes:
        feeds: Stacked as far as that is possible.
        labels: Class indices of each feed's rows, or None.
        rows: The positions of each feed's samples in Samples.
    """

    feeds: tuple[Feed, ...]
    labels: tuple[Array | None, ...]
    rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Samples:
    """Feeds in memory.

    Attributes:
        feeds: One per sample, or what a model of a fixed batch size takes.
        labels: Class indices [len(feeds), labels of a feed], or None.
        stackable: Whether feeds of the same shape can be stacked.
    """

    feeds: tuple[Feed, ...]
    labels: Array | None
    stackable: bool

    def __len__(self) -> int:
        return len(self.feeds)

    def take(self, rows: Sequence[int]) -> Samples:
        """Some of them."""
        labels = None if self.labels is None else self.labels[list(rows)]
        return Samples(tuple(self.feeds[row] for row in rows), labels, self.stackable)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Some of them as a batch."""
        groups: list[list[int]] = []
        for row in rows:
            alike = (
                groups and self.stackable and _shapes(self.feeds[groups[-1][0]]) == _shapes(self.feeds[row])
            )
            if alike:
                groups[-1].append(row)
            else:
                groups.append([row])
        feeds = tuple(_stacked([self.feeds[row] for row in group]) for group in groups)
        labels = tuple(None if self.labels is None else self.labels[g].reshape(-1) for g in groups)
        return Batch(feeds, labels, tuple(map(tuple, groups)))

    def passes(self) -> Iterator[Batch]:
        """All of them in order."""
        for start in range(0, len(self), _PASS):
            yield self.batch(range(start, min(start + _PASS, len(self))))


def split(feeds: Feeds, share: float, seed: int) -> tuple[Samples, Samples]:
    """What is trained on and what is held out, drawn at random.

    Raises:
        UsageError: There are fewer than two samples, they do not fit into the memory, or their labels are
            no numbers.
    """
    if feeds.labels is not None and feeds.labels.dtype.kind not in "iufb":
        raise UsageError(f"training takes class indices as labels, not {feeds.labels.dtype}")
    if len(feeds) < 2:
        raise UsageError(f"training needs at least two samples, not {len(feeds)}")
    free = psutil.virtual_memory().available // 2
    held: list[Feed] = []
    used = 0
    for feed in feeds:
        used += nbytes(feed)
        if used > free:
            raise UsageError(
                f"the data take more than {free / 2**30:.1f} GiB of memory: give fewer by --samples"
            )
        held.append(feed)
    labels = feeds.labels
    if labels is not None:
        labels = labels.reshape(len(held), -1).astype(np.int64)
    whole = Samples(tuple(held), labels, feeds.stackable)
    order = [int(row) for row in np.random.default_rng(seed).permutation(len(whole))]
    count = min(max(1, round(share * len(whole))), len(whole) - 1)
    return whole.take(sorted(order[count:])), whole.take(sorted(order[:count]))


def _shapes(feed: Feed) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in feed.values()]


def _stacked(feeds: Sequence[Feed]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
