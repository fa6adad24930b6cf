"""Calibration inputs for want of real ones: random, and known to be so."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.calibrate.observe import Calibration
from onnxdecomp.calibrate.taps import open_taps
from onnxdecomp.errors import ModelError
from onnxdecomp.runtime.random_inputs import random_feeds, trial_of

_SAMPLES = 8


def synthetic(model: ir.Model, *, seed: int = 0) -> Calibration:
    """Random inputs that the model runs on.

    Raises:
        ModelError: No such inputs were found.
    """
    taps = open_taps(model, [str(value.name) for value in model.graph.outputs], threads=1)

    feeds = random_feeds(taps.specs(), trial_of(taps.run), seed=seed, per_binding=_SAMPLES, count=1)
    if isinstance(feeds, str):
        raise ModelError(f"{feeds}; give inputs with --calib")
    return Calibration(feeds, synthetic=True, seed=seed)
