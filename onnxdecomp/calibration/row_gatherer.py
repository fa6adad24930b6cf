"""Gathering the rows of one layer: where they are drawn, what they are, and which of them are held out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxdecomp.calibration.im2col import (
    Positions,
    at_positions,
    conv_rows,
    draw_positions,
    kernel_first,
    output_sizes,
)
from onnxdecomp.core.layer import Array
from onnxdecomp.data.mask import Mask
from onnxdecomp.fitting.moments import Gatherer, Moments, features
from onnxdecomp.fitting.quadratic_loss import as_rows
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.runtime.session import Feed

_BLOCK = 1 << 24
"""Numbers of rows and wanted outputs that are made at once."""


@dataclass(frozen=True, eq=False)
class Draw:
    """How rows are drawn.

    Attributes:
        samples, batches: How many there are.
        rows, per_feature: See `wanted`.
        held_out: The share of the batches that is held out.
        seed: Of the positions.
        mask: Which positions are padding.
        device: Of torch, where moments are added up; "cpu" for the processor.
    """

    samples: int
    batches: int
    rows: int
    held_out: float
    seed: int
    mask: Mask | None
    per_feature: int = 24
    device: str = "cpu"

    def wanted(self, features: int) -> int:
        """Rows that are drawn where there are as many.

        At least `rows`, and `per_feature`; twice as many per feature where 4 times `rows` are as many.
        """
        each = self.per_feature * features
        return max(self.rows, each, min(2 * each, 4 * self.rows))

    def holds_out(self, index: int) -> bool:
        """Whether the batch at this place is held out."""
        every = max(2, round(1 / self.held_out)) if self.held_out > 0 else 0
        return bool(every) and self.batches >= 4 and index % every == every - 1


@dataclass(frozen=True, eq=False)
class Places:
    """Where rows were taken: the positions, and which of the rows found there are real (None for all)."""

    positions: Positions
    real: Array | None


class RowGatherer:
    """Gathers a layer's rows, some batches apart from the others.

    Without `second` the second moments of the rows are left out; without `outputs` what the layer itself
    makes of them is wanted, which follows from the moments of the rows; with `through` what it makes of other
    rows is, which follows from theirs: of a vocabulary that is far less than its scores.
    """

    def __init__(
        self,
        match: LayerMatch,
        draw: Draw,
        *,
        second: bool = True,
        outputs: bool = True,
        through: bool = False,
    ) -> None:
        layer = match.layer
        self._site, self._layer, self._mask = match, layer, draw.mask
        self._rng = np.random.default_rng((draw.seed, 1))
        self._holds_out = draw.holds_out
        wanted = draw.wanted(features(layer))
        self._per_feed = math.ceil(wanted / max(1, draw.samples))
        self._outputs, groups, each = outputs, layer.groups, features(layer)
        made = groups * each if through else layer.outputs if outputs else 0
        self._parts = [Gatherer(groups, made, each, second=second, device=draw.device) for _ in range(2)]
        self._others = [Gatherer(groups, 0, each, device=draw.device) for _ in range(2 if through else 0)]
        self._order = None if layer.conv is None else kernel_first(layer)
        self._weight = self._as_seen(as_rows(layer.weight, layer).astype(layer.weight.dtype))
        self._bias = layer.bias if match.adapter.takes_bias(layer) else None

    def places(self, x: Array, feed: Feed) -> Iterator[Places]:
        """Places of an activation's rows, drawn anew, in parts of which each makes few enough numbers."""
        if self._layer.conv is not None:
            sizes = output_sizes(self._layer, x)
            at = draw_positions(sizes, max(1, self._per_feed), self._rng)
            for part in self._in_parts(at, len(x)):
                yield Places(part, self._real_positions(feed, x, sizes, part))
            return
        lead = self._site.adapter.rows(x).shape[:-1]
        real = None if self._mask is None else self._mask.rows(feed, lead)
        among = np.arange(math.prod(lead)) if real is None else np.flatnonzero(real)
        (drawn,) = draw_positions((len(among),), self._per_feed * (len(x) if x.ndim > 1 else 1), self._rng)
        for part in self._in_parts((among[drawn],), 1):
            yield Places(part, None)

    def _in_parts(self, at: Positions, each: int) -> Iterator[Positions]:
        """Positions in parts, of which each stands for `each` rows."""
        size = each * (self._layer.groups * features(self._layer) + self._layer.outputs)
        step = max(1, _BLOCK // max(1, size))
        if not at:  # a single position without an axis
            yield at
        for start in range(0, len(at[0]) if at else 0, step):
            yield tuple(axis[start : start + step] for axis in at)

    def rows(self, x: Array, at: Places) -> Array:
        """Rows [g, n, D] of an activation at these places; those of convolutions lie as `conv_rows` says."""
        if self._layer.conv is not None:
            found = conv_rows(self._layer, x, at.positions)
            found = found if at.real is None else found[:, at.real]
        else:
            x = self._site.adapter.rows(x)
            found = x.reshape(-1, x.shape[-1])[at.positions[0]][None]
        return found if found.dtype in (np.float32, np.float64) else found.astype(np.float32)

    def _real_positions(self, feed: Feed, x: Array, sizes: tuple[int, ...], drawn: Positions) -> Array | None:
        """Which rows [N P] at the positions drawn are real, where a convolution runs along the sequence."""
        long = [axis for axis, size in enumerate(sizes) if size > 1]
        if self._mask is None or len(long) != 1 or x.shape[2 + long[0]] != sizes[long[0]]:
            return None
        real = self._mask.rows(feed, (len(x), sizes[long[0]]))
        return None if real is None else real[:, drawn[long[0]]].reshape(-1)

    def outputs(self, y: Array, at: Places) -> Array:
        """The rows [n, T] of a convolution's output at these places."""
        rows = at_positions(y, at.positions)
        return rows if at.real is None else rows[at.real]

    def wanted(self, rows: Array) -> Array:
        """What the layer itself makes of rows, [n, T]."""
        return self._made(rows, self._weight, self._bias)

    def made(self, rows: Array, weight: Array, bias: Array | None) -> Array:
        """What another weight [g, T/g, D] and a bias make of rows, [n, T]."""
        bias = None if bias is None else bias.astype(rows.dtype)
        return self._made(rows, self._as_seen(weight).astype(rows.dtype), bias)

    def _made(self, rows: Array, weight: Array, bias: Array | None) -> Array:
        y: Array = rows @ weight.swapaxes(1, 2)  # [g, n, T/g]
        y = y.swapaxes(0, 1).reshape(rows.shape[1], self._layer.outputs)
        return y if bias is None else y + bias

    def _as_seen(self, weight: Array) -> Array:
        """A weight [g, T/g, D] with its features as they lie in rows."""
        return weight if self._order is None else weight[:, :, self._order]

    def add(self, index: int, rows: Array, wanted: Array | None = None) -> None:
        """Rows of a batch, and what should be made of them where that was asked for."""
        if wanted is None:
            wanted = np.zeros((rows.shape[1], 0), rows.dtype)
        self._parts[self._holds_out(index)].add(rows, wanted)

    def add_through(self, index: int, rows: Array, others: Array) -> None:
        """Rows of a batch, and the rows [g, n, D] of which the layer makes what is wanted."""
        self.add(index, rows, others.swapaxes(0, 1).reshape(rows.shape[1], -1))
        other = self._others[self._holds_out(index)]
        other.add(others, np.zeros((rows.shape[1], 0), rows.dtype))

    def halves(self) -> tuple[Moments, Moments | None]:
        found = [part.moments() for part in self._parts]
        if self._others:
            seconds = (other.moments().xx for other in self._others)
            found = [
                own.through(self._weight, self._bias, second)
                for own, second in zip(found, seconds, strict=True)
            ]
        train, held = map(self._as_stored, found)
        # Rows that only batches held out have are better fitted to than none.
        return (train, held if held.count else None) if train.count else (held, None)

    def _as_stored(self, moments: Moments) -> Moments:
        """The moments with their features as they lie in the layer's weight."""
        if not self._outputs:
            moments = moments.of_layer(self._weight, self._bias)
        if self._order is None:
            return moments
        at = np.argsort(self._order)
        xx = moments.xx[:, at[:, None], at] if moments.xx.size else moments.xx
        return replace(moments, xx=xx, yx=moments.yx[:, :, at], x=moments.x[:, at])
