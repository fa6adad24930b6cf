"""What one calibration sample takes to compute, and how many of them tell enough to fit to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.input_shapes import input_shapes
from onnxdecomp.calibration.statistics import Calibration, unobservable
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.fitting.moments import features
from onnxdecomp.layers.adapter import LayerMatch

_ROWS = 8
"""Rows per feature of a layer that a fit is to see; of fewer than one, wide layers are fitted to noise."""


@dataclass(frozen=True)
class SampleWork:
    """What samples are worth and cost.

    Attributes:
        macs: Multiply-accumulates of the largest sample.
        samples: So many give layers enough rows for their features, the mean weighted with their work.
    """

    macs: int
    samples: int = 0


def sample_work(model: ir.Model, matched: Sequence[LayerMatch], calibration: Calibration) -> SampleWork:
    """The work of the largest calibration sample at its own size, lookups not counted."""
    feed = calibration.feeds.largest()
    names = {value.name for value in model.graph.inputs}
    shapes = input_shapes(model, {name: array.shape for name, array in feed.items() if name in names})
    real = _real_share(calibration)
    total, needed = 0, 0.0
    for match in matched:
        layer = match.layer
        if layer.lookup:
            continue
        chain, shape = dense_chain(layer), shapes[layer.graph, layer.name]
        macs = chain.macs(shape)
        total += macs
        if unobservable(match) is None:
            rows = real * math.prod(chain.output_shape(shape)) / layer.outputs
            needed += macs * _ROWS * features(layer) / max(rows, 1.0)
    return SampleWork(total, math.ceil(needed / max(total, 1)))


def _real_share(calibration: Calibration) -> float:
    """The share of positions that are no padding, over that of the largest sample."""
    mask = calibration.mask
    if mask is None:
        return 1.0
    name = mask.inputs[0].name
    real, count = 0, 0
    for feed in calibration.feeds.batches(calibration.batch):
        rows = mask.rows(feed, np.shape(feed[name])) if name in feed else None
        if rows is None:
            return 1.0
        real, count = real + int(rows.sum()), count + rows.size
    return real / max(count, 1)
