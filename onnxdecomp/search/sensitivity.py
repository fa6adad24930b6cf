"""Sensitivity: what a layer's loss does to the network's output.

A layer's own relative error says little of what it does to the output. So some of its candidates are put
into the original model, each alone, and the output is compared; in between, the effect is interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activation_cache import HELD, Window
from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.pinned_values import chosen, pins_of, present
from onnxdecomp.calibration.statistics import Calibration, window
from onnxdecomp.core.layer import Dim
from onnxdecomp.data.comparable_outputs import Compared, unsteady
from onnxdecomp.data.mask import Mask
from onnxdecomp.graph.attributes import dims
from onnxdecomp.runtime.metrics import Comparison
from onnxdecomp.runtime.session import Feed

_WORK = 2e10
"""Multiply-accumulates of one look at the output: as many samples as that makes."""

_LITTLE_WORK = 5e10
"""The same up to which the processor is asked: on a card a session takes as long to open."""

_ALL_WORK = 1e12
"""The same of all looks at the output of a model with many layers and channels."""

_FEWEST, _MOST = 4, 512
"""Samples of one look."""

_FEWEST_OF_MANY = 2
"""The same of many looks, where one or two samples give layers enough rows: they are of many positions."""

_LOOKED = 64
"""Samples of a look at one of many changes: their effects differ by more than as many samples do."""

_BROKEN = 1e6
"""The squared relative error of an output that is not finite any more, or beyond all bounds."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """The original's outputs on some of the calibration inputs.

    Attributes:
        feeds: The inputs, batched.
        names: The outputs that are compared: the floating-point ones where there are any.
        values: Per feed and name.
        window: On the original with these inputs.
        pins: What the original has chosen and drawn, for each of the feeds.
        declared: The shapes that the model declares for outputs.
        mask: Which positions count.
        left_out: Outputs that cannot be compared, with the reason.
        chosen: Outputs that pinned values take part in, with how they are compared.
        provider: Where a model is run on these inputs once.
        device: Where one is run often.
        work: Multiply-accumulates of the original on these inputs.
    """

    feeds: tuple[Feed, ...]
    names: tuple[str, ...]
    values: tuple[tuple[object, ...], ...]
    window: Window
    pins: tuple[Feed, ...] = ()
    declared: Mapping[str, Sequence[Dim] | None] = field(default_factory=dict)
    mask: Mask | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)
    provider: str = "cpu"
    device: str = "cpu"
    work: float = 0.0

    def where(self, runs: int) -> str:
        """Where a model is best run so often on these inputs, its session being opened for that."""
        return self.device if runs * self.work > _LITTLE_WORK else self.provider

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be compared, or not as it is, a sentence each."""
        left_out = (
            f"the search does not compare the output {name!r}: {why}" for name, why in self.left_out.items()
        )
        chosen = (
            f"the search compares the output {name!r} {how}"
            for name, how in self.chosen.items()
            if self.pins and name in self.names
        )
        return (*left_out, *chosen)


@dataclass(frozen=True)
class Effect:
    """What a layer's loss does to the output, from measured points.

    Attributes:
        points: (loss of the layer, squared relative error of the output), rising in the first.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, loss: float) -> float:
        """The output's squared relative error where the layer loses that much; log-log interpolated."""
        if loss <= 0:
            return 0.0
        if not self.points:
            return loss
        x = np.log([max(p, 1e-12) for p, _ in self.points])
        y = np.log([max(e, 1e-12) for _, e in self.points])
        at = math.log(max(loss, 1e-12))
        if at <= x[0] or len(x) == 1:
            return float(np.exp(y[0] + (at - x[0])))
        if at >= x[-1]:
            slope = max(1.0, float((y[-1] - y[0]) / max(x[-1] - x[0], 1e-9)))
            return float(np.exp(y[-1] + slope * (at - x[-1])))
        return float(np.exp(np.interp(at, x, y)))


def original_outputs(
    model: ir.Model, calibration: Calibration, macs: int, *, work: float = _WORK, fewest: int = _FEWEST
) -> Outputs:
    """The outputs of the model as it is.

    Args:
        model: The original.
        calibration: The inputs, of which some are taken, evenly.
        macs: Multiply-accumulates of one sample.
        work: Those of all samples.
        fewest: Samples, whatever they take.
    """
    outputs = [str(value.name) for value in model.graph.outputs]
    floats = [
        str(value.name)
        for value in model.graph.outputs
        if value.dtype is None or value.dtype.is_floating_point()
    ]
    names = floats or outputs
    threads, provider = calibration.threads, calibration.provider
    if max(fewest * macs, work) <= _LITTLE_WORK:
        provider = "cpu"
    first = open_observer(model, names, provider=provider, threads=threads).run(calibration.feeds.largest())
    held = HELD // max(1, sum(getattr(value, "nbytes", 0) for value in first))
    count = int(np.clip(work / max(macs, 1), fewest, max(fewest, min(_MOST, held))))
    some = replace(calibration, feeds=calibration.feeds.spread(count), provider=provider)
    feeds = tuple(some.feeds.batches(calibration.batch))
    pins = pins_of(model, some.feeds, batch=calibration.batch, provider=provider, threads=threads)
    observer = open_observer(model, names, known=pins[0] if pins else {}, provider=provider, threads=threads)
    values = [
        tuple(observer.run(feed | own)) for feed, own in zip(feeds, pins or ({},) * len(feeds), strict=True)
    ]
    again = observer.run(feeds[0] | (pins[0] if pins else {}))
    left_out = unsteady(names, values[0], again)
    kept = [index for index, name in enumerate(names) if name not in left_out]
    return Outputs(
        feeds,
        tuple(names[index] for index in kept),
        tuple(tuple(own[index] for index in kept) for own in values),
        window(model, some, pins),
        pins,
        {str(v.name): dims(v) for v in model.graph.outputs},
        calibration.mask,
        left_out,
        chosen(model),
        provider,
        calibration.provider,
        count * macs,
    )


def for_looks(
    outputs: Outputs, model: ir.Model, calibration: Calibration, macs: int, looks: int, wanted: int = _FEWEST
) -> Outputs:
    """The outputs on as many of the samples as there is time for where they are looked at so many times.

    Args:
        outputs: On samples enough for a few looks.
        model, calibration, macs: As for `original_outputs`.
        looks: How many there are.
        wanted: So many samples give layers enough rows.
    """
    work = min(_ALL_WORK / max(looks, 1), _LOOKED * macs)
    enough = min(_WORK, min(_MOST, len(calibration.feeds)) * macs)
    if work >= enough:
        return outputs
    fewest = min(_FEWEST, max(_FEWEST_OF_MANY, wanted))
    return original_outputs(model, calibration, macs, work=work, fewest=fewest)


def output_error(
    model: ir.Model,
    outputs: Outputs,
    calibration: Calibration,
    known: Sequence[Feed] = (),
    *,
    consume: bool = False,
) -> float:
    """The squared relative L2 error of a model's outputs, the mean over the outputs; see `output_errors`."""
    return mean_error(_compared(model, outputs, calibration, known, consume=consume))


def mean_error(compared: Compared) -> float:
    """The mean over the outputs of their squared relative errors."""
    return float(np.mean(_shares(compared)))


def output_errors(
    model: ir.Model,
    outputs: Outputs,
    calibration: Calibration,
    known: Sequence[Feed] = (),
    *,
    consume: bool = False,
) -> list[float]:
    """The squared relative L2 error of each output of a model.

    Of integers, booleans and strings it is the square of the share of values that differ. An output that
    cannot be compared in this model is left out; where none is left the error is beyond all bounds.

    Args:
        model: The model.
        outputs: What the original gives.
        calibration: With how many threads it is run.
        known: Values inside the model, by name for each of the feeds, that need not be computed.
        consume: Nobody needs the model any more: it is taken apart, and not copied.
    """
    return _shares(_compared(model, outputs, calibration, known, consume=consume))


def _compared(
    model: ir.Model, outputs: Outputs, calibration: Calibration, known: Sequence[Feed], *, consume: bool
) -> Compared:
    """The model's outputs beside the original's."""
    known = given_to(model, outputs, known)
    observer = open_observer(
        model,
        outputs.names,
        provider=outputs.provider,
        threads=calibration.threads,
        known=known[0] if known else {},
        consume=consume,
    )
    compared = Compared(outputs.names, declared=outputs.declared, mask=outputs.mask)
    for feed, inner, values in zip(outputs.feeds, known, outputs.values, strict=True):
        compared.add(feed, values, observer.run(feed | inner))
    return compared


def given_to(model: ir.Model, outputs: Outputs, known: Sequence[Feed]) -> list[Feed]:
    """What a model need not compute, for each of the feeds: known values and pins, as far as it has them."""
    # A cut leaves some constants out.
    held = present(model, known) or [{} for _ in outputs.feeds]
    pins = present(model, outputs.pins) or [{} for _ in outputs.feeds]
    return [own | inner for own, inner in zip(pins, held, strict=True)]


def _shares(compared: Compared) -> list[float]:
    return [_share(comparison) for comparison in compared.comparisons] or [_BROKEN]


def _share(comparison: Comparison) -> float:
    """The squared relative error; 1 where the original is zero throughout and the new output is not."""
    if comparison.nonfinite:
        return _BROKEN
    if comparison.discrete or comparison.energy > 0:
        return min(comparison.rel_l2**2, _BROKEN)
    return float(comparison.error_energy > 0)


def effect_of(points: Sequence[tuple[float, float]], outputs: Outputs) -> Effect:
    """The effect that was measured; none where the outputs are numbers and show nothing of any point."""
    # The largest of some scores may well stay what it was; numbers do not.
    values = [value for own in outputs.values for value in own]
    numbers = any(isinstance(value, np.ndarray) and value.dtype.kind == "f" for value in values)
    if numbers and not any(error for _, error in points):
        return Effect(())
    return Effect(tuple(sorted(points)))
