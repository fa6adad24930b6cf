"""Sensitivity: what a layer's loss does to the network's output.

A layer's own relative error says little of what it does to the output. So some of its candidates are put
into the original model, each alone, and the output is compared; in between, the effect is interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibrate.observe import Calibration, window
from onnxdecomp.calibrate.taps import open_taps
from onnxdecomp.calibrate.window import Window
from onnxdecomp.chain import Chain
from onnxdecomp.fitting.fit import stored
from onnxdecomp.layer import Array
from onnxdecomp.runtime.session import Feed
from onnxdecomp.sites.base import Site
from onnxdecomp.sites.find import find_again
from onnxdecomp.sites.rewrite import Rewriter

_WORK = 2e10
"""Multiply-accumulates of one look at the output: as many samples as that makes."""

_FEWEST, _MOST = 4, 512
"""Samples of one look."""


_BROKEN = 1e6
"""The squared relative error of an output that is not finite any more."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """The original's outputs on some of the calibration inputs.

    Attributes:
        feeds: The inputs, batched.
        names: The float outputs.
        values: Per feed and name.
        window: On the original with these inputs.
    """

    feeds: tuple[Feed, ...]
    names: tuple[str, ...]
    values: tuple[tuple[Array, ...], ...]
    window: Window


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


def original_outputs(model: ir.Model, calibration: Calibration, macs: int) -> Outputs:
    """The outputs of the model as it is.

    Args:
        model: The original.
        calibration: The inputs; the first ones are taken.
        macs: Multiply-accumulates of one sample.
    """
    names = tuple(
        str(value.name)
        for value in model.graph.outputs
        if value.dtype is None or value.dtype.is_floating_point()
    )
    taps = open_taps(model, names, provider=calibration.provider, threads=calibration.threads)
    count = int(np.clip(_WORK / max(macs, 1), _FEWEST, _MOST))
    some = replace(calibration, feeds=calibration.feeds.first(count))
    feeds = tuple(some.feeds.batches(calibration.batch))
    values = tuple(tuple(taps.run(feed)) for feed in feeds)
    return Outputs(feeds, names, values, window(model, some))


def output_error(
    model: ir.Model, outputs: Outputs, calibration: Calibration, known: Sequence[Feed] = ()
) -> float:
    """The squared relative L2 error of a model's outputs, the mean over the outputs; see `output_errors`."""
    shares = output_errors(model, outputs, calibration, known)
    return float(np.mean(shares)) if shares else 0.0


def output_errors(
    model: ir.Model, outputs: Outputs, calibration: Calibration, known: Sequence[Feed] = ()
) -> list[float]:
    """The squared relative L2 error of each output of a model.

    Args:
        model: The model.
        outputs: What the original gives.
        calibration: Where the model is run.
        known: Values inside the model, by name for each of the feeds, that need not be computed.
    """
    known = known or [{} for _ in outputs.feeds]
    taps = open_taps(
        model,
        outputs.names,
        provider=calibration.provider,
        threads=calibration.threads,
        known=known[0] if known else {},
    )
    energy, error = np.zeros(len(outputs.names)), np.zeros(len(outputs.names))
    for feed, inner, values in zip(outputs.feeds, known, outputs.values, strict=True):
        for index, (new, old) in enumerate(zip(taps.run(feed | inner), values, strict=True)):
            # What the original leaves infinite or NaN is no loss, whatever becomes of it.
            finite = np.isfinite(old)
            reference = old[finite].astype(np.float64)
            energy[index] += float(np.sum(np.square(reference)))
            error[index] += float(np.sum(np.square(new[finite].astype(np.float64) - reference)))
    shares = [float(e / n) if n > 0 else float(e > 0) for e, n in zip(error, energy, strict=True)]
    return [min(share, _BROKEN) if math.isfinite(share) else _BROKEN for share in shares]


def effect(
    model: ir.Model,
    site: Site,
    chains: Sequence[tuple[float, Chain]],
    outputs: Outputs,
    calibration: Calibration,
    pending: Collection[ir.Node] = (),
) -> Effect:
    """Measure the effect of one layer's chains, each with its loss; only what follows the layer is computed.

    Args:
        model: The original.
        site: The layer.
        chains: With their losses.
        outputs: What the original gives.
        calibration: Where models are run.
        pending: The nodes of this layer and of all that will be measured later.
    """
    points = []
    if chains:
        for _ in outputs.window.look([site.x.name or ""] if not site.place.path else [], pending):
            pass
    for loss, chain in chains:
        error = output_error(replaced(model, site, chain), outputs, calibration, outputs.window.held())
        points.append((loss, error))
    return Effect(tuple(sorted(points)))


def replaced(model: ir.Model, site: Site, chain: Chain) -> ir.Model:
    """A copy of the model with one layer replaced."""
    copy = model.clone()
    own = find_again(copy, site)
    own = replace(own, layer=replace(own.layer, weight=site.layer.weight))
    Rewriter(copy).replace(own, stored(chain, site.layer), {})
    return copy
