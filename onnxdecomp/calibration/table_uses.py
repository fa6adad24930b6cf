"""Observing a table: how often each of its rows is looked up, and what it is multiplied with."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activation_cache import Window
from onnxdecomp.calibration.row_gatherer import RowGatherer
from onnxdecomp.calibration.statistics import Calibration, centred, draw_of, mask_feeds, unobservable
from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.moments import Moments, merged
from onnxdecomp.fitting.table import Uses
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.tables import Table
from onnxdecomp.runtime.session import Feed

_SHRINKAGE = 1e-2
"""Of the mean variance of an input, added to all: how much hardly matters (tried from 1e-3 to 1e-1)."""


@dataclass(frozen=True, eq=False)
class TableRows:
    """How a table is used on the calibration inputs.

    Attributes:
        uses: The lookups of batches to fit to, and the products of all.
        held_out: Lookups of the other batches; None without any.
        means: E[x] of each product that can take a bias for it; None of others.
    """

    uses: Uses
    held_out: Uses | None
    means: tuple[Array | None, ...]


def observe_table(
    table: Table, now: Window, calibration: Calibration, pending: Collection[ir.Node] = ()
) -> TableRows | str:
    """How the model of a window uses a table, or why that cannot be told, a phrase for people.

    Args:
        table: Its layers as they stand in that model.
        now: The model, which is looked at as it is by now: layers behind are not replaced yet.
        calibration, pending: As for `calibration.statistics.observe`.
    """
    if reason := next(filter(None, map(_hidden, table.members)), None):
        return reason
    draw = draw_of(calibration)
    size, width = table.matrix.shape
    gathers = [RowGatherer(_small(match, width), draw) for match in table.products]
    counts = [np.zeros(size), np.zeros(size)]
    lookups = len(table.lookups)
    names = [match.x.name or "" for match in (*table.lookups, *table.products)]
    for index, (values, feed) in enumerate(
        zip(now.advance(names, pending), mask_feeds(calibration), strict=False)
    ):
        for x in values[:lookups]:
            counts[draw.holds_out(index)] += np.bincount(_rows(x, feed, calibration, size), minlength=size)
        for x, gather in zip(values[lookups:], gathers, strict=True):
            for at in gather.places(x, feed):
                rows = gather.rows(x, at)
                gather.add(index, rows, rows[0])
    seen = [merged(*gather.halves()) for gather in gathers]
    if any(moments.count and not moments.finite for moments in seen):
        return "what it sees is not finite"
    seconds = [_second(own, match) for own, match in zip(seen, table.products, strict=True) if own.count]
    if not seconds and not any(own.any() for own in counts):
        return "no input reaches it"
    second = np.sum(seconds, axis=0) if seconds else None
    train, held = counts if counts[0].any() else counts[::-1]
    return TableRows(
        Uses(train if lookups else None, second),
        Uses(held) if held.any() else None,
        tuple(
            own.x[0] / own.count if own.count and centred(match) else None
            for own, match in zip(seen, table.products, strict=True)
        ),
    )


def _hidden(match: LayerMatch) -> str | None:
    """Why what a layer does with the table is not seen."""
    if not match.layer.lookup:
        return unobservable(_small(match, match.layer.inputs))
    return "it stands in a subgraph or a function" if match.place.path else None


def _small(match: LayerMatch, width: int) -> LayerMatch:
    """The layer with its inputs for outputs: what is gathered of it does not grow with the vocabulary."""
    eye = np.eye(width, dtype=match.layer.weight.dtype)
    return replace(match, layer=replace(match.layer, weight=eye, bias=None, lookup=False))


def _rows(x: Array, feed: Feed, calibration: Calibration, size: int) -> Array:
    """The rows that indices stand for, without those of padding."""
    real = None if calibration.mask is None else calibration.mask.rows(feed, x.shape)
    found = (x if real is None else x[real]).reshape(-1).astype(np.int64)
    return np.where(found < 0, found + size, found)


def _second(moments: Moments, match: LayerMatch) -> Array:
    """E[x xT], centred where a bias takes the means, and shrunk."""
    n, d = moments.count, moments.xx.shape[-1]
    second = moments.xx[0] / n
    if centred(match):
        mean = moments.x[0] / n
        second = second - np.outer(mean, mean)
    return np.asarray(second + _SHRINKAGE * max(math.fsum(np.diag(second)) / d, 1e-30) * np.eye(d))
