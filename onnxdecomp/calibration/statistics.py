"""Observing a layer: the rows that it sees in the model as it is by now, and what it should make of them.

The wanted output is the original layer's on the original's activations; the rows come from the compressed
model, so that a layer corrects what the layers before it have lost (Zhang et al. 2015, "asymmetric"). Where
the output goes into nothing but a sum with another branch, what that branch has lost is wanted too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activation_cache import HELD, Window
from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.im2col import Positions, at_positions, conv_rows, draw_positions, output_sizes
from onnxdecomp.calibration.nonlinearity import Aim
from onnxdecomp.calibration.pinned_values import loose
from onnxdecomp.calibration.residual import branch
from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.mask import Mask
from onnxdecomp.fitting.fit import SHRINKAGES
from onnxdecomp.fitting.moments import Gatherer, Moments, features, needed
from onnxdecomp.fitting.quadratic_loss import as_rows
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.runtime.memory_budget import budget, gibibytes
from onnxdecomp.runtime.session import Feed

_BLOCK = 1 << 24
"""Numbers of rows and wanted outputs that are made at once."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What layers are fitted to.

    Attributes:
        feeds: Inputs of the model.
        synthetic: They are random numbers, for want of better ones.
        batch: Feeds stacked for one run, where the model's batch size is free.
        rows: At least so many rows are drawn per layer where there are as many, and 24 per feature.
        held_out: The share of the batches that chooses the shrinkage.
        asymmetric: Fit to what layers see in the compressed model, else in the original.
        rectified: Spend nothing on what the activation behind a layer forgives.
        shrinkages: The strengths to choose among.
        provider, threads: Where the model is run.
        seed: Of the positions.
        mask: Which positions are padding: no rows are drawn from there.
    """

    feeds: Feeds
    synthetic: bool = False
    batch: int = 50
    rows: int = 32768
    held_out: float = 0.25
    asymmetric: bool = True
    rectified: bool = True
    shrinkages: tuple[float, ...] = SHRINKAGES
    provider: str = "cpu"
    threads: int = 0
    seed: int = 0
    mask: Mask | None = None


_HELD = 1 << 26
"""Numbers of one activation that one run of the model may make."""

_COPIES = 64
"""Bytes that a run takes for each number of its largest activation, about: those beside it, and copies."""


_TRIAL, _FEWEST = 1e11, 16
"""Multiply-accumulates of the samples that a trial is fitted to, and the fewest samples."""


def sized(calibration: Calibration, matched: Sequence[LayerMatch], largest: int = 1) -> Calibration:
    """The calibration with batches small enough for the activations, and enough of them to hold some out.

    Args:
        calibration, matched: What is fitted, and to what.
        largest: Numbers in the largest value of a run on one sample (see `largest_value`).
    """
    for match in matched:
        for shape in (match.layer.input_shape, match.layer.output_shape):
            known = [dim for dim in shape or () if isinstance(dim, int)]
            largest = max(largest, math.prod(known))
    most = min(_HELD, budget() // _COPIES)
    batch = min(calibration.batch, max(1, most // largest), max(1, len(calibration.feeds) // 8))
    return replace(calibration, batch=batch)


def shortened(calibration: Calibration, macs: int) -> Calibration:
    """The calibration with as many samples as a trial of a plan has time for.

    Args:
        calibration: The whole.
        macs: Multiply-accumulates of one sample.
    """
    count = max(_FEWEST, int(_TRIAL / max(macs, 1)))
    return replace(calibration, feeds=calibration.feeds.first(count))


def parted(calibration: Calibration) -> tuple[Calibration, Calibration]:
    """The calibration in two: inputs to fit trials to, and others, a quarter, to judge them by.

    A fit is better on what it was fitted to than elsewhere. Where there are fewer than four inputs, or
    nothing is fitted to them, both are the whole.
    """
    feeds = calibration.feeds
    count = len(feeds) - len(feeds) // 4
    if calibration.synthetic or count == len(feeds):
        return calibration, calibration
    return replace(calibration, feeds=feeds.first(count)), replace(calibration, feeds=feeds.after(count))


def unobservable(match: LayerMatch) -> str | None:
    """Why no rows of this layer can be had, a phrase for people; None where they can."""
    layer = match.layer
    if match.place.path:
        return "it stands in a subgraph or a function"
    if not match.adapter.has_rows:
        return f"the input of {layer.op_type} is not made of rows"
    if layer.is_stack:
        return "its weight is a stack of matrices"
    if layer.dtype not in ("float32", "float64", "float16"):
        return f"ONNX Runtime gives no {layer.dtype} activations out"
    if (size := needed(layer)) > (most := budget()):
        return f"a fit to its inputs would take {gibibytes(size)} of memory, more than {gibibytes(most)}"
    return None


def centred(match: LayerMatch) -> bool:
    """Whether the layer can take a bias for the means of its outputs without a further node."""
    return match.adapter.takes_bias(match.layer)


def window(
    model: ir.Model, calibration: Calibration, pins: Sequence[Feed] = (), *, beside: int = 1
) -> Window:
    """A window of the model's activations on the calibration inputs, with some values pinned.

    It is one of `beside` windows that are held at the same time and share the memory for it.
    """
    return Window(
        model,
        calibration.feeds,
        batch=calibration.batch,
        provider=calibration.provider,
        threads=calibration.threads,
        held=HELD // beside,
        pins=pins,
    )


@dataclass(frozen=True, eq=False)
class Reference:
    """A layer as it was in the original, where a cut has left less of it.

    Attributes:
        match: The layer in the original.
        outputs: Which of its outputs are left, int [T'], or what they are mapped by, float [T', T]; None:
            they are as they were.
    """

    match: LayerMatch
    outputs: Array | None = None

    def left(self, outputs: Array) -> Array:
        """What is left of outputs [n, T] of the original."""
        if self.outputs is None:
            return outputs
        if self.outputs.ndim == 2:
            return np.asarray(outputs @ self.outputs.T.astype(outputs.dtype))
        return np.asarray(outputs[:, self.outputs])

    def then(self, outputs: Array) -> Reference:
        """The same after one more change, of what is left by now."""
        first = self.outputs
        if first is None:
            return Reference(self.match, outputs)
        if outputs.ndim == 1:
            return Reference(self.match, first[outputs])
        if first.ndim == 2:
            return Reference(self.match, outputs @ first)
        whole = np.zeros((len(outputs), self.match.layer.outputs))
        whole[:, first] = outputs
        return Reference(self.match, whole)


def observe(
    match: LayerMatch,
    now: Window,
    original: Window,
    calibration: Calibration,
    pending: Collection[ir.Node] = (),
    aim: Aim | None = None,
    reference: Reference | None = None,
) -> tuple[Moments, Moments | None]:
    """Moments of a layer's rows, and of held-out ones (None where there are too few samples).

    Args:
        match: The layer as it stands in the model of `now`.
        now: Of the model with the layers before it replaced; to fit to what layers see in the original, a
            second window of that.
        original: Of the model as it was, with values of the same names.
        calibration: The inputs.
        pending: The nodes of `now` that will still be replaced, this layer's among them.
        aim: Changes the wanted outputs; the rows are those of every other look, so their second moments
            are left out.
        reference: The layer in the original, where that is another one by now.
    """
    (found,) = observe_together([match], now, original, calibration, pending, aim, [reference])
    return found


@np.errstate(over="ignore", invalid="ignore")  # Moments.finite tells
def observe_together(
    matched: Sequence[LayerMatch],
    now: Window,
    original: Window,
    calibration: Calibration,
    pending: Collection[ir.Node] = (),
    aim: Aim | None = None,
    references: Sequence[Reference | None] | None = None,
    *,
    alone: bool = False,
) -> list[tuple[Moments, Moments | None]]:
    """Moments of several layers in a single walk over the inputs; see `observe`.

    With `alone` what another branch has lost that an output is added to is not wanted.
    """
    known = references or [None] * len(matched)
    looks = [
        _Look(match, own, calibration, aim, alone=alone) for match, own in zip(matched, known, strict=True)
    ]
    names = [name for look in looks for name in look.names]
    windows = zip(now.advance(names, pending), original.advance(names), strict=True)
    for index, ((looked, meant), feed) in enumerate(zip(windows, mask_feeds(calibration), strict=False)):
        values = iter(zip(looked, meant, strict=True))
        for look in looks:
            own = list(itertools.islice(values, len(look.names)))
            look.add(index, [one for one, _ in own], [two for _, two in own], feed)
    return [look.gather.halves() for look in looks]


class _Look:
    """What is gathered of one layer: rows of one model, and what the original makes of its own."""

    def __init__(
        self,
        match: LayerMatch,
        reference: Reference | None,
        calibration: Calibration,
        aim: Aim | None,
        *,
        alone: bool,
    ) -> None:
        self._other = None if alone else branch(match)
        self._match, self._reference, self._aim = match, reference, aim
        self.names = [match.x.name or ""]
        if self._other is not None:
            self.names.append(self._other.name or "")
        self.gather = _Halves(match, calibration, second=aim is None)
        self._original = self.gather
        if reference is not None:
            self._original = _Halves(reference.match, calibration, second=False)
        self._apart = loose(match.x) or (self._other is not None and loose(self._other))

    def add(self, index: int, looked: Sequence[Array], meant: Sequence[Array], feed: Feed) -> None:
        """The values of `names` in both models for one batch."""
        gather, reference = self.gather, self._reference
        # Rows that are no counterparts, chosen by other scores or drawn anew, say nothing about each other.
        unlike = self._apart or any(
            self._positions(one) != self._positions(two) for one, two in zip(looked, meant, strict=True)
        )
        if unlike and reference is not None:
            return
        seen = meant if unlike else looked
        for at in gather.places(seen[0], feed):
            rows, wanted = gather.rows(seen[0], at), self._original.wanted(self._original.rows(meant[0], at))
            wanted = wanted if reference is None else reference.left(wanted)
            added = None
            if self._other is not None:
                # The branch may be the layer's own input, which is then tapped once.
                added, then = gather.outputs(seen[-1], at), gather.outputs(meant[-1], at)
                wanted = wanted + (then if reference is None else reference.left(then)) - added
            if self._aim is not None:
                wanted = self._aim(rows, wanted, added)
            gather.add(index, rows, wanted)

    def _positions(self, x: Array) -> tuple[int, ...]:
        """The shape without the axis of the features, whose number a cut changes."""
        if self._reference is None:
            return x.shape
        if self._match.layer.conv is not None:
            return (*x.shape[:1], *x.shape[2:])
        return self._match.adapter.rows(x).shape[:-1]


def mask_feeds(calibration: Calibration) -> Iterator[Feed]:
    """The inputs batch by batch where a mask is among them; else nothing of them is read."""
    if calibration.mask is None:
        return itertools.repeat({})
    return calibration.feeds.batches(calibration.batch)


@np.errstate(over="ignore", invalid="ignore")  # Moments.finite tells
def observe_unchanged(
    model: ir.Model, matched: Sequence[LayerMatch], calibration: Calibration
) -> list[tuple[Moments, Moments | None]]:
    """Moments of several layers of one and the same model, in a single walk over the inputs."""
    names = [match.x.name or "" for match in matched]
    observer = open_observer(model, names, provider=calibration.provider, threads=calibration.threads)
    place = {name: index for index, name in enumerate(observer.names)}
    gathers = [_Halves(match, calibration) for match in matched]
    for index, feed in enumerate(calibration.feeds.batches(calibration.batch)):
        seen = observer.run(feed)
        for name, gather in zip(names, gathers, strict=True):
            x = seen[place[name]]
            for at in gather.places(x, feed):
                rows = gather.rows(x, at)
                gather.add(index, rows, gather.wanted(rows))
    return [gather.halves() for gather in gathers]


def packs(matched: Sequence[LayerMatch], budget: int = 512 << 20) -> Iterator[list[LayerMatch]]:
    """The matches in groups whose moments together take at most `budget` bytes (one match at least)."""
    pack: list[LayerMatch] = []
    held = 0
    for match in matched:
        d, g = features(match.layer), match.layer.groups
        size = 2 * 8 * d * (g * d + match.layer.outputs)
        if pack and held + size > budget:
            yield pack
            pack, held = [], 0
        pack.append(match)
        held += size
    if pack:
        yield pack


@dataclass(frozen=True, eq=False)
class _Places:
    """Where rows were taken: the positions, and which of the rows found there are real (None for all)."""

    positions: Positions
    real: Array | None


class _Halves:
    """Gathers a layer's rows, some batches apart from the others."""

    def __init__(self, match: LayerMatch, calibration: Calibration, *, second: bool = True) -> None:
        layer = match.layer
        self._site, self._layer, self._mask = match, layer, calibration.mask
        self._rng = np.random.default_rng((calibration.seed, 1))
        self._batches = math.ceil(len(calibration.feeds) / calibration.batch)
        if not calibration.feeds.stackable:
            self._batches = len(calibration.feeds)
        wanted = max(calibration.rows, 24 * features(layer))
        self._per_feed = math.ceil(wanted / max(1, len(calibration.feeds)))
        self._every = max(2, round(1 / calibration.held_out)) if calibration.held_out > 0 else 0
        sizes = (layer.groups, layer.outputs, features(layer))
        self._parts = [Gatherer(*sizes, second=second), Gatherer(*sizes, second=second)]
        self._weight = as_rows(layer.weight, layer).astype(layer.weight.dtype)
        self._bias = layer.bias if centred(match) else None

    def places(self, x: Array, feed: Feed) -> Iterator[_Places]:
        """Places of an activation's rows, drawn anew, in parts of which each makes few enough numbers."""
        if self._layer.conv is not None:
            sizes = output_sizes(self._layer, x)
            at = draw_positions(sizes, max(1, self._per_feed), self._rng)
            for part in self._in_parts(at, len(x)):
                yield _Places(part, self._real_positions(feed, x, sizes, part))
            return
        lead = self._site.adapter.rows(x).shape[:-1]
        real = None if self._mask is None else self._mask.rows(feed, lead)
        among = np.arange(math.prod(lead)) if real is None else np.flatnonzero(real)
        (drawn,) = draw_positions((len(among),), self._per_feed * (len(x) if x.ndim > 1 else 1), self._rng)
        for part in self._in_parts((among[drawn],), 1):
            yield _Places(part, None)

    def _in_parts(self, at: Positions, each: int) -> Iterator[Positions]:
        """Positions in parts, of which each stands for `each` rows."""
        size = each * (self._layer.groups * features(self._layer) + self._layer.outputs)
        step = max(1, _BLOCK // max(1, size))
        if not at:  # a single position without an axis
            yield at
        for start in range(0, len(at[0]) if at else 0, step):
            yield tuple(axis[start : start + step] for axis in at)

    def rows(self, x: Array, at: _Places) -> Array:
        """Rows [g, n, D] of an activation at these places."""
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

    def outputs(self, y: Array, at: _Places) -> Array:
        """The rows [n, T] of a convolution's output at these places."""
        rows = at_positions(y, at.positions)
        return rows if at.real is None else rows[at.real]

    def wanted(self, rows: Array) -> Array:
        """What the layer itself makes of rows, [n, T]."""
        y: Array = rows @ self._weight.swapaxes(1, 2)  # [g, n, T/g]
        y = y.swapaxes(0, 1).reshape(rows.shape[1], self._layer.outputs)
        return y if self._bias is None else y + self._bias

    def add(self, index: int, rows: Array, wanted: Array) -> None:
        held = self._every and self._batches >= 4 and index % self._every == self._every - 1
        self._parts[1 if held else 0].add(rows, wanted)

    def halves(self) -> tuple[Moments, Moments | None]:
        train, held = (part.moments() for part in self._parts)
        # Rows that only batches held out have are better fitted to than none.
        return (train, held if held.count else None) if train.count else (held, None)
