"""What models take of a card's memory that are timed there together: known before they are opened."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.steps import Shape

_SHARE = 0.5
"""Of what is free: kernels ask for workspaces, and other programs use the card, too."""


class Held(Protocol):
    """A chain that is timed beside its layer."""

    @property
    def group(self) -> str:
        """What it shares with others of that layer."""
        ...

    @property
    def dense(self) -> Chain: ...

    @property
    def chain(self) -> Chain: ...

    @property
    def input_shape(self) -> Shape: ...

    @property
    def dtype(self) -> str: ...


T = TypeVar("T", bound=Held)


def room(free: int | None) -> float:
    """Bytes that may be taken where so many are free; where that is not told, there is no bound."""
    return math.inf if free is None else _SHARE * free


def fitting(groups: Sequence[Sequence[T]], most: float, *, joint: bool) -> Iterator[list[list[T]]]:
    """The groups in parts of which each takes at most so many bytes, or is a single chain with its layer.

    Args:
        groups: Chains, those of one layer together.
        most: See `room`.
        joint: See `taken`.
    """
    part: list[list[T]] = []
    for job in (job for group in groups for job in group):
        same = bool(part) and part[-1][0].group == job.group
        grown = [*part[:-1], [*part[-1], job]] if same else [*part, [job]]
        if part and taken(grown, joint=joint) > most:
            yield part
            grown = [[job]]
        part = grown
    if part:
        yield part


def taken(groups: Sequence[Sequence[Held]], *, joint: bool) -> int:
    """Bytes that these chains take when they are opened at the same time, with their layers.

    The weights of all are there. So are activations where each has a session of its own; in one session they
    lie where those of the run before lay, and the largest count.

    Args:
        groups: As for `fitting`.
        joint: Whether all are in one session.
    """
    weights, passing = 0, list[int]()
    for group in groups:
        shape, size = group[0].input_shape, np.dtype(group[0].dtype).itemsize
        chains = [group[0].dense, *(job.chain for job in group)]
        weights += size * sum(chain.params for chain in chains)
        passing += [size * (math.prod(shape) + chain.traffic(shape)) for chain in chains]
    return weights + (max(passing, default=0) if joint else sum(passing))
