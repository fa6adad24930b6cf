"""Width: the units of a channel that stay, and its readers fitted to what they leave.

Two layers cut together at the channel between them lose less than each replaced by a chain (ThiNet, Luo et
al. 2017; He et al. 2017, "Channel pruning"; for feed-forward blocks MoDeGPT, Lin et al. 2024): units that
others can stand in for go, and the layers that read the channel get the least squares weight on those that
stay, by the same quadratic loss, shrinkage and held-out rows as chains (see `fit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.elimination import ReaderMoments
from onnxdecomp.fitting.exchange import FEATURES, exchanged
from onnxdecomp.fitting.moments import Moments, merged
from onnxdecomp.fitting.quadratic_loss import Problem, problem
from onnxdecomp.fitting.strengths import SHRINKAGES, Trial, chosen, growth, tried
from onnxdecomp.fitting.unit_order import SHRINKAGE, UnitOrder, first_units
from onnxdecomp.tensor.blas_threads import one_thread

_UNHARMED = 1e-8
"""Of the outputs' energy: less is lost only where nothing that the layer read has changed."""

_STRONG = 1e-1
"""Of the choice of units, in place of `SHRINKAGE`, where there are few rows and held-out ones bear it out."""

_FEW_ROWS = 4
"""For each feature."""


@dataclass(frozen=True, eq=False)
class RefittedReader:
    """A reader on the features that are left, in float64.

    Attributes:
        weight: [g, T/g, D'], of the features that are left, in their order.
        bias: [T]; the layer's own where it must stay, None where it has none.
        features: int [g, D'], which of the D features these are.
        loss: E |y - V x|² over E |y|², y centred, on all rows.
        held_out: The same on held-out rows of a fit to the others, or None where none were held out.
        shrinkage: The strength chosen; infinite where the layer's own numbers are kept.
    """

    weight: Array
    bias: Array | None
    features: Array
    loss: float
    held_out: float | None
    shrinkage: float


def left_of_rows(reader: RefittedReader, rows: Array | None) -> RefittedReader:
    """The reader with some of its outputs, bool [T]; None: all. What it makes may itself be cut."""
    if rows is None:
        return reader
    groups, each, features = reader.weight.shape
    weight = reader.weight.reshape(groups * each, features)[rows].reshape(groups, -1, features)
    return replace(reader, weight=weight, bias=None if reader.bias is None else reader.bias[rows])


@dataclass(frozen=True, eq=False)
class Selection:
    """The units that stay, sorted, and the readers in the order in which they were given."""

    units: Array
    readers: tuple[RefittedReader, ...]

    @property
    def loss(self) -> float:
        """The sum of the readers' losses."""
        return sum(reader.loss for reader in self.readers)

    @property
    def held_out(self) -> float | None:
        """The sum of their losses on held-out rows; None where a reader had none."""
        losses = [reader.held_out for reader in self.readers]
        return None if None in losses else sum(loss for loss in losses if loss is not None)


@one_thread()
def select_units(
    readers: Sequence[ReaderMoments],
    width: int,
    kept: int,
    *,
    blocks: int = 1,
    order: UnitOrder | None = None,
    shrinkages: Sequence[float] = SHRINKAGES,
) -> Selection:
    """The units of a channel that its readers together lose least without, and the readers fitted anew.

    The first units of the order, and where there are few features units are exchanged after it.

    At full width the readers are repaired (see `repair`): their own numbers come back where nothing was lost.

    Args:
        readers: What reads the channel; at least one.
        width: U, the units that there are.
        kept: How many of them stay.
        blocks: The units are so many equal runs, of each of which equally many stay.
        order: Where it is known already (see `unit_order`).
        shrinkages: Strengths to choose among, for each reader; with no held-out rows the first is taken.

    Raises:
        ValueError: `kept` is not between 1 and `width`, or `blocks` does not divide both; or a reader's
            groups are left with features of unequal number.
    """
    if not 1 <= kept <= width:
        raise ValueError(f"{kept} of {width} units cannot stay")
    if width % blocks or kept % blocks:
        raise ValueError(f"{blocks} blocks do not divide {width} and {kept} units")
    if kept == width:
        return _fitted(readers, np.arange(width), shrinkages)
    strengths = (SHRINKAGE, _STRONG) if order is None and _few_rows(readers) else (SHRINKAGE,)
    found = []
    for strength in strengths:
        if order is not None:
            units = np.sort(order.order[:kept])
        else:
            units = first_units(readers, width, kept, blocks=blocks, shrinkage=strength)
        if sum(reader.weight.shape[2] for reader in readers) <= FEATURES:
            units = exchanged(readers, width, units, blocks=blocks, shrinkage=strength)
        found.append(_fitted(readers, units, shrinkages))
    return min(found, key=lambda one: one.loss if one.held_out is None else one.held_out)


def _fitted(readers: Sequence[ReaderMoments], units: Array, shrinkages: Sequence[float]) -> Selection:
    return Selection(units, tuple(refit_reader(reader, units, shrinkages) for reader in readers))


def _few_rows(readers: Sequence[ReaderMoments]) -> bool:
    """Whether held-out rows should say how far to trust the others in the choice of units, too."""
    return all(reader.held_out is not None for reader in readers) and any(
        reader.train.count < _FEW_ROWS * reader.weight.shape[2] for reader in readers
    )


@one_thread()
def refit_reader(
    reader: ReaderMoments, units: Array, shrinkages: Sequence[float] = SHRINKAGES, *, cut: bool = False
) -> RefittedReader:
    """A reader's best weight and bias where these units stay and all others are gone.

    Its own numbers stay where they lose nothing, and, with its bias corrected, where held-out rows say that
    others would be no better.

    Args:
        reader: The layer.
        units: Those that stay.
        shrinkages: Strengths to choose among. With no held-out rows the first is taken where something is
            gone, else the weight stays.
        cut: Something is gone although all units stay.

    Raises:
        ValueError: Its groups are left with features of unequal number.
    """
    features = left_features(reader.units, units)
    own = np.take_along_axis(reader.weight.astype(np.float64), features[:, None, :], axis=2)
    scale, whole, own_bias, reader = reader.scale, reader.weight, reader.bias, reader.scaled()
    rows = scale.reshape(*own.shape[:2], 1)
    weight = own * rows
    train = _restricted(reader.train, features)
    held_out = None if reader.held_out is None else _restricted(reader.held_out, features)
    everything = merged(train, held_out)
    if not features.size:
        bias = everything.y / everything.count / scale if reader.centred else own_bias
        return RefittedReader(own, bias, features, 1.0, None if held_out is None else 1.0, np.inf)

    def posed(moments: Moments, shrinkage: float = 0.0) -> Problem:
        return problem(moments, weight, shrinkage, centred=reader.centred)

    judged = posed(everything)
    lost = judged.relative(weight)
    moved = _moved(judged, weight, reader.bias) if reader.centred else 0.0
    strength, outside = np.inf, None
    if held_out is not None:
        judge = posed(held_out)
        outside = judge.about(weight)
    if lost + moved <= _UNHARMED:
        return RefittedReader(own, own_bias, features, max(0.0, lost), outside, strength)
    if held_out is not None:
        assert outside is not None

        def trial(shrinkage: float) -> Trial:
            best = posed(train, shrinkage).best
            return Trial(shrinkage, judge.about(best), growth(best / rows, whole))

        if (taken := chosen(tried(shrinkages, trial), outside)) is not None:
            strength, outside = taken.strength, taken.loss
    elif cut or features.shape[1] < reader.weight.shape[2]:
        strength = shrinkages[0]
    kept = bool(np.isinf(strength))
    fitted = weight if kept else posed(everything, strength).best
    loss = max(0.0, judged.relative(fitted))
    bias = judged.bias(fitted) / scale if reader.centred else own_bias
    return RefittedReader(own if kept else fitted / rows, bias, features, loss, outside, strength)


def left_features(of_features: Array, units: Array) -> Array:
    """Which features are left where these units stay, int [g, D'], of their units [g, D].

    Raises:
        ValueError: The groups are left with features of unequal number.
    """
    left = (of_features < 0) | np.isin(of_features, units)
    counts = left.sum(1)
    if (counts != counts[0]).any():
        raise ValueError(f"groups are left with {counts.min()} to {counts.max()} features")
    return np.nonzero(left)[1].reshape(len(left), -1)


def _restricted(moments: Moments, features: Array) -> Moments:
    """The moments of some features [g, D'] of the rows."""
    some = features[:, None, :]
    xx = np.stack([xx[np.ix_(at, at)] for xx, at in zip(moments.xx, features, strict=True)])
    yx = np.take_along_axis(moments.yx, some, axis=2)
    return Moments(
        moments.count, xx, yx, np.take_along_axis(moments.x, features, axis=1), moments.y, moments.yy
    )


def _moved(judged: Problem, weight: Array, own: Array | None) -> float:
    """What the means of the outputs have moved by, squared, over the outputs' energy."""
    bias = judged.bias(weight)
    moved = float(np.sum(np.square(bias if own is None else bias - own)))
    return moved / judged.energy if judged.energy else moved
