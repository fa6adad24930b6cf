"""Observing a layer: the rows that it sees in the model as it is by now, and what it should make of them.

The wanted output is the original layer's on the original's activations; the rows come from the compressed
model, so that a layer corrects what the layers before it have lost (Zhang et al. 2015, "asymmetric"). Where
the output goes into nothing but a sum with another branch, what that branch has lost is wanted too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activation_cache import HELD, Window
from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.look import Look, Reference
from onnxdecomp.calibration.nonlinearity import Aim
from onnxdecomp.calibration.row_gatherer import Draw, RowGatherer
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.steps import Shape
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.mask import Mask
from onnxdecomp.fitting.fit import SWEEPS
from onnxdecomp.fitting.moments import Moments, features, needed
from onnxdecomp.fitting.strengths import SHRINKAGES
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.runtime.memory_budget import budget, gibibytes
from onnxdecomp.runtime.providers import provider_of
from onnxdecomp.runtime.session import Feed
from onnxdecomp.tasks.values import digest


@dataclass(frozen=True, eq=False)
class Calibration:
    """What layers are fitted to.

    Attributes:
        feeds: Inputs of the model.
        synthetic: They are random numbers, for want of better ones.
        batch: Feeds stacked for one run, where the model's batch size is free.
        rows, per_feature: How many rows are drawn of a layer (see `Draw.wanted`).
        held_out: The share of the batches that chooses the shrinkage.
        asymmetric: Fit to what layers see in the compressed model, else in the original.
        rectified: Spend nothing on what the activation behind a layer forgives.
        shrinkages: The strengths to choose among.
        sweeps: Of the alternation of a fit, at most.
        provider, threads: Where the model is run; on CUDA moments are added up there, too, where torch is.
        seed: Of the positions.
        mask: Which positions are padding: no rows are drawn from there.
    """

    feeds: Feeds
    synthetic: bool = False
    batch: int = 50
    rows: int = 8192
    per_feature: int = 24
    held_out: float = 0.25
    asymmetric: bool = True
    rectified: bool = True
    shrinkages: tuple[float, ...] = SHRINKAGES
    sweeps: int = SWEEPS
    provider: str = "cpu"
    threads: int = 0
    seed: int = 0
    mask: Mask | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Equal for calibrations that give the same moments: a hash of inputs and of their use."""
        names = [field.name for field in fields(self) if field.name != "feeds"]
        settings = {name: getattr(self, name) for name in names}
        return digest(settings, self.feeds.stackable, *map(digest, self.feeds))


_HELD = 1 << 26
"""Numbers of one activation that one run of the model may make."""

_COPIES = 64
"""Bytes that a run takes for each number of its largest activation, about: those beside it, and copies."""


_TRIAL, _FEWEST = 1e11, 16
"""Multiply-accumulates of the samples that a trial is fitted to, and the fewest samples."""

_AMPLE = 8
"""Where samples are large: times as many as give layers enough rows, of which a trial needs no more."""

_MORE = 4
"""Times as much is spent where else there would be too few samples to tell one plan from another."""


_FEWER_ROWS, _FEWER_PER_FEATURE, _FEWER = 2048, 8, 128
"""Rows of a layer where fits are only compared, and samples where these give them."""

_SPREAD = 4
"""A sample gives at most one row in so many positions."""

VARIED, _MANY, _WORK = 32, 256, 2e11
"""Samples of a fit at least; and so many where running the model on them takes at most that many
multiply-accumulates."""

_LARGE = 64
"""Samples are large where a trial has time for fewer."""

_BATCHES = 8
"""As many batches there are at least, where there are so many samples: of fewer none could be held out."""


_JUDGES = 4
"""Of so many inputs one judges trials."""


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
    batch = min(calibration.batch, max(1, most // largest), max(1, len(calibration.feeds) // _BATCHES))
    return replace(calibration, batch=batch)


def bounded(
    calibration: Calibration, matched: Sequence[LayerMatch], shapes: Mapping[tuple[str, str], Shape]
) -> Calibration:
    """The calibration with as many samples as its fits need rows, drawn evenly from all that there are.

    Where every layer is applied at many positions of a sample, a part of them gives all rows that are drawn,
    and to run the model on the others too would take most of the time.

    Args:
        calibration, matched: What is fitted, and to what.
        shapes: Of the layers' inputs for one sample, by graph and name.
    """
    draw = draw_of(calibration)
    needed, macs = 0.0, 0
    for match in matched:
        shape = shapes.get((match.layer.graph, match.layer.name))
        if shape is None or match.layer.conv is None:
            return calibration  # one row of a sample may be all that there is
        chain = dense_chain(match.layer)
        positions = math.prod(chain.output_shape(shape)[2:])
        rows = draw.wanted(features(match.layer))
        needed, macs = max(needed, rows * _SPREAD / max(1, positions)), macs + chain.macs(shape)
    count = math.ceil(max(needed, VARIED, min(_MANY, _WORK / max(1, macs))))
    if count >= len(calibration.feeds):
        return calibration
    return replace(calibration, feeds=calibration.feeds.spread(count))


def hasty(calibration: Calibration, wanted: int = 0) -> Calibration:
    """The calibration for fits that are only compared with each other: of fewer rows and in fewer rounds.

    Args:
        calibration: For fits that count.
        wanted: So many samples give layers enough rows; of more there are enough to vary only.
    """
    count = max(_FEWER, wanted)
    if count < len(calibration.feeds):
        batch = min(calibration.batch, count // _BATCHES)
        calibration = replace(calibration, feeds=calibration.feeds.spread(count), batch=batch)
    return replace(
        calibration,
        rows=min(calibration.rows, _FEWER_ROWS),
        per_feature=min(calibration.per_feature, _FEWER_PER_FEATURE),
        shrinkages=calibration.shrinkages[-3:-1] or calibration.shrinkages,
        rectified=False,
        sweeps=1,
    )


def shortened(calibration: Calibration, macs: int, wanted: int = 0) -> Calibration:
    """The calibration with as many samples as a trial of a plan has time for, in batches to hold some out.

    Args:
        calibration: The whole.
        macs: Multiply-accumulates of one sample.
        wanted: So many give layers enough rows; up to them there is more time, far beyond them less.
    """
    time = _TRIAL / max(macs, 1)
    enough = _AMPLE * wanted if wanted and time < _LARGE else math.inf
    return _of(
        calibration, int(max(min(_FEWEST, enough), min(int(time), enough), min(wanted, int(_MORE * time))))
    )


def surveyed(calibration: Calibration, macs: int, wanted: int) -> Calibration:
    """The calibration with as many samples as candidates of all layers are weighed by.

    Those of a trial, and three times as many: where samples are large and have rows at many positions, the
    others tell nothing that these do not.

    Args:
        calibration: The whole.
        macs: Multiply-accumulates of one sample.
        wanted: So many give layers enough rows.
    """
    if not wanted or _TRIAL / max(macs, 1) >= _LARGE:
        return calibration
    return _of(calibration, max(_FEWEST, 3 * _AMPLE * wanted))


def _of(calibration: Calibration, count: int) -> Calibration:
    """So many samples of the calibration, in batches to hold some out; all where there are no more."""
    if count >= len(calibration.feeds):
        return calibration
    batch = min(calibration.batch, max(1, count // _BATCHES))
    return replace(calibration, feeds=calibration.feeds.spread(count), batch=batch)


def parted(calibration: Calibration) -> tuple[Calibration, Calibration]:
    """The calibration in two: inputs to fit trials to, and others, a quarter, to judge them by.

    A fit is better on what it was fitted to than elsewhere. Both are of all parts of the inputs, which are
    often sorted. Where there are fewer than four, or nothing is fitted to them, both are the whole.
    """
    if calibration.synthetic or len(calibration.feeds) < _JUDGES:
        return calibration, calibration
    fitted, judging = calibration.feeds.apart(_JUDGES)
    return replace(calibration, feeds=fitted), replace(calibration, feeds=judging)


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
        Look(match, own, draw_of(calibration), aim, alone=alone)
        for match, own in zip(matched, known, strict=True)
    ]
    look_at(looks, now, original, calibration, pending)
    return [look.halves() for look in looks]


@np.errstate(over="ignore", invalid="ignore")  # Moments.finite tells
def look_at(
    looks: Sequence[Look],
    now: Window,
    original: Window,
    calibration: Calibration,
    pending: Collection[ir.Node] = (),
) -> None:
    """Show each of the looks what it asks for, in a single walk over the inputs."""
    names = [name for look in looks for name in look.names]
    originals = [name for look in looks for name in look.original_names]
    later = original.counterparts(pending)
    windows = zip(now.advance(names, pending), original.advance(originals, later), strict=True)
    for index, ((looked, meant), feed) in enumerate(zip(windows, mask_feeds(calibration), strict=False)):
        seen, should = iter(looked), iter(meant)
        for look in looks:
            own = list(itertools.islice(seen, len(look.names)))
            look.add(index, own, list(itertools.islice(should, len(look.original_names))), feed)


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
    gathers = [RowGatherer(match, draw_of(calibration), outputs=False) for match in matched]
    for index, feed in enumerate(calibration.feeds.batches(calibration.batch)):
        seen = observer.run(feed)
        for name, gather in zip(names, gathers, strict=True):
            x = seen[place[name]]
            for at in gather.places(x, feed):
                gather.add(index, gather.rows(x, at))
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


def draw_of(calibration: Calibration) -> Draw:
    """How rows are drawn from these inputs."""
    feeds = calibration.feeds
    batches = math.ceil(len(feeds) / calibration.batch) if feeds.stackable else len(feeds)
    return Draw(
        len(feeds),
        batches,
        calibration.rows,
        calibration.held_out,
        calibration.seed,
        calibration.mask,
        calibration.per_feature,
        provider_of(calibration.provider).tensors_on,
    )
