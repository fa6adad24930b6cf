"""Calibration inputs for want of real ones: random, and known to be so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.data.random_inputs import random_feeds, trial_of
from onnxdecomp.errors import ModelError

_SAMPLES = 8


def synthetic(
    model: ir.Model, *, seed: int = 0, shapes: Mapping[str, Sequence[int]] | None = None
) -> Calibration:
    """Random inputs that the model runs on.

    Args:
        model: The model.
        seed: Of the numbers.
        shapes: Shapes of inputs by name; those of inputs that no output depends on are left out.

    Raises:
        ModelError: No such inputs were found.
        UsageError: The shapes do not fit the inputs.
    """
    observer = open_observer(model, [str(value.name) for value in model.graph.outputs], threads=1)

    specs = observer.specs()
    read = {spec.name for spec in specs}
    fixed = {name: shape for name, shape in (shapes or {}).items() if name in read}
    feeds = random_feeds(
        specs, trial_of(observer.run), seed=seed, shapes=fixed, per_binding=_SAMPLES, count=1
    )
    if isinstance(feeds, str):
        raise ModelError(f"{feeds}; give inputs with --calib")
    return Calibration(feeds, synthetic=True, seed=seed)
