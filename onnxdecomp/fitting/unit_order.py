"""The units of a channel in the order in which its readers can do without them, and what each width loses.

Backward elimination by exact increases of the readers' losses (see `elimination`), as in ZipLM (Kurtic et al.
2023) for one layer: one pass from the whole width down has every width's loss. Many units go at once, so that
the updates are products of matrices: among three times as many candidates they go one by one. Forward
selection takes several times as long and loses as much, ridge leverage scores (MoDeGPT, Lin et al. 2024) lose
more, exchanges after it (OSSCAR, Meng et al. 2024) gain where units are few: bench/results/unit_selection.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.elimination import Part, ReaderMoments, tracked
from onnxdecomp.tensor.blas_threads import one_thread

SHRINKAGE = 1e-3
"""Of the fits along the pass (see `problem`)."""

_AT_ONCE = 32
"""One in so many of the units that are left go at once."""

_CANDIDATES = 3
"""Times as many are candidates."""

_JUDGED = 8
"""Widths at which held-out rows are asked."""


@dataclass(frozen=True, eq=False)
class UnitOrder:
    """Units in the order in which they stay.

    Attributes:
        order: int [U]; of width K the first K stay.
        losses: [U + 1], what width K loses: the sum over the readers of E |y - V x|² over E |y|², V fitted
            to the features that are left. It falls with K; exact at some widths, between them interpolated.
        held_out: The same on held-out rows, of fits to the others; None where a reader has none.
    """

    order: Array
    losses: Array
    held_out: Array | None


@one_thread()
def unit_order(
    readers: Sequence[ReaderMoments], width: int, *, blocks: int = 1, shrinkage: float = SHRINKAGE
) -> UnitOrder:
    """The order of a channel's units for its readers together.

    Args:
        readers: At least one.
        width: U, the number of units.
        blocks: The units are so many equal runs, of each of which equally many stay, at every width that is
            a multiple of it.
        shrinkage: Of the fits on the way.

    Raises:
        ValueError: `blocks` does not divide `width`.
    """
    parts = [part for reader in readers for part in tracked(reader, shrinkage)]
    judged = all(reader.held_out is not None for reader in readers)
    dropped: list[int] = []
    penalised = [sum(part.loss for part in parts)]
    widths, exact = [width], [penalised[0] - sum(part.pulled() for part in parts)]
    asked, outside = [width], [sum(part.outside() for part in parts)] if judged else []
    for chosen, increases in _dropped(parts, width, blocks):
        dropped += chosen.tolist()
        penalised += (penalised[-1] + np.cumsum(increases)).tolist()
        left = width - len(dropped)
        widths.append(left)
        exact.append(penalised[-1] - sum(part.pulled() for part in parts))
        if judged and (left == 0 or asked[-1] - left >= width / _JUDGED):
            asked.append(left)
            outside.append(sum(part.outside() for part in parts))
    along = np.array(penalised)
    losses = _interpolated(widths, exact, along)
    held_out = _interpolated(asked, outside, along) if judged else None
    return UnitOrder(np.array(dropped[::-1], dtype=np.int64), losses, held_out)


@one_thread()
def first_units(
    readers: Sequence[ReaderMoments], width: int, kept: int, *, blocks: int = 1, shrinkage: float = SHRINKAGE
) -> Array:
    """The first units [kept] of the order, sorted: without losses, and no further than that takes."""
    readers = [replace(reader, held_out=None) for reader in readers]
    parts = [part for reader in readers for part in tracked(reader, shrinkage)]
    dropped: list[int] = []
    rounds = _dropped(parts, width, blocks)
    while len(dropped) < width - kept:
        dropped += next(rounds)[0].tolist()
    return np.setdiff1d(np.arange(width), dropped[: width - kept])


def _dropped(parts: Sequence[Part], width: int, blocks: int) -> Iterator[tuple[Array, Array]]:
    """Drops units until none is left: those of each round, and what each adds to the loss.

    Raises:
        ValueError: `blocks` does not divide `width`.
    """
    if width % blocks:
        raise ValueError(f"{blocks} blocks do not divide {width} units")
    live = np.arange(width).reshape(blocks, -1)
    while live.size:
        chosen, increases = _worst(parts, live, max(1, live.shape[1] // _AT_ONCE))
        for part in parts:
            part.drop(chosen)
        yield chosen, increases
        live = live[~np.isin(live, chosen)].reshape(blocks, -1)


def _interpolated(widths: Sequence[int], values: Sequence[float], along: Array) -> Array:
    """Values at all widths, U downwards, from those at some; between them they move as `along` [U + 1] does.

    Returns [U + 1] from no unit on. With fewer units never less is lost than with more.
    """
    rising = np.maximum(np.maximum.accumulate(values), 0.0)
    dropped = widths[0] - np.array(widths)
    places = np.arange(len(along))
    # A curve of their own for the places, strictly rising: equal losses count for a little each.
    path = np.maximum.accumulate(along)
    path = path + places * (1e-9 * (path[-1] - path[0]) + 1e-300)
    return np.asarray(np.interp(path, path[dropped], rising)[::-1])


def _worst(parts: Sequence[Part], live: Array, rounds: int) -> tuple[Array, Array]:
    """The units [blocks * rounds] to drop next, so many of each block, and what each adds to the loss."""
    width = 1 + int(live.max())
    scores = np.sum([part.scores(width) for part in parts], axis=0)[live]  # [blocks, units left]
    count = min(live.shape[1], _CANDIDATES * rounds)
    near = np.argpartition(scores, count - 1, axis=1)[:, :count]
    units, owner = np.take_along_axis(live, near, axis=1).reshape(-1), np.repeat(np.arange(len(live)), count)
    local = [part.among(units) for part in parts]
    gone, chosen, increases = np.zeros(len(units), bool), [], []
    for _ in range(rounds):
        waiting = np.ones(len(live), bool)  # blocks of which none has gone in this round
        while waiting.any():
            now = np.sum([part.scores(width) for part in local], axis=0)[units]
            place = int(np.argmin(np.where(gone | ~waiting[owner], np.inf, now)))
            gone[place], waiting[owner[place]] = True, False
            chosen.append(int(units[place]))
            increases.append(max(0.0, float(now[place])))
            for part in local:
                part.drop(units[place : place + 1])
    return np.array(chosen), np.array(increases)
